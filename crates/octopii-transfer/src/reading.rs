//! What the sender of an accepted chunk may say: blocks in order, repairs, the end.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::activity::Activity;
use crate::link::Inlet;
use crate::store::IncomingBlock;
use crate::storing::Arrival;
use crate::wire::{self, Header, Tag};
use crate::{Digest, FailureCode, Refusal, TransferError};

/// A block may take this many idle times: one byte now and then is no transfer.
pub(crate) const BLOCK_PATIENCE: u32 = 10;

/// What was agreed on before the first block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// Where the first block begins.
    pub(crate) from: u64,
    /// Content bytes in all, if the sender knows.
    pub(crate) size: Option<u64>,
    pub(crate) block_size: u32,
    /// Blocks may come compressed.
    pub(crate) compressed: bool,
}

/// Hands over what arrives until the stream ends, which is an error also when everything has come, or until nobody takes it
/// any more. Not cancel-safe.
pub(crate) async fn read_arrivals(
    recv: &mut Inlet,
    arrivals: mpsc::Sender<Arrival>,
    expected: Expected,
    activity: &Activity,
    idle: Duration,
) -> Result<(), TransferError> {
    let patience = idle.saturating_mul(BLOCK_PATIENCE);
    let mut received = expected.from;
    let mut last_was_short = false;
    let mut done = false;
    loop {
        let header = recv.header().await?;
        let message = async {
            match header.tag {
                Tag::Data | Tag::Compressed if !done && (header.tag == Tag::Data || expected.compressed) => {
                    let block = match header.tag {
                        Tag::Compressed => read_compressed(recv, header, activity).await?,
                        _ => read_block(recv, header, activity).await?,
                    };
                    if block.offset != received {
                        return Err(TransferError::Protocol("a block does not follow the one before it"));
                    }
                    // Of content that comes as it comes, any block may be short.
                    let out_of_line = last_was_short && expected.size.is_some();
                    if block.len > expected.block_size as usize || out_of_line {
                        return Err(TransferError::Protocol(
                            "only the last block may differ from the block size",
                        ));
                    }
                    last_was_short = block.len < expected.block_size as usize;
                    received += block.len as u64;
                    if expected.size.is_some_and(|size| received > size) {
                        return Err(size_mismatch(expected.size, received));
                    }
                    Ok(Arrival::Block(block))
                }
                Tag::Repair => {
                    let len = header.len - wire::DATA_PREFIX;
                    let offset = read_offset(recv).await?;
                    Ok(Arrival::Repair { offset, parts: recv.parts(len, activity).await? })
                }
                Tag::Done if !done => {
                    let (size, digest) = wire::decode_done(&recv.body(header).await?)?;
                    if size != received || expected.size.is_some_and(|expected| expected != size) {
                        return Err(size_mismatch(expected.size.or(Some(size)), received));
                    }
                    done = true;
                    Ok(Arrival::Done(digest))
                }
                _ => Err(TransferError::Protocol("only blocks and their end follow an offer")),
            }
        };
        let arrival =
            timeout(patience, message).await.unwrap_or(Err(TransferError::Stalled { idle: patience }))?;
        if arrivals.send(arrival).await.is_err() {
            return Ok(());
        }
        activity.tick();
    }
}

/// Reads a data message whose header has been read. Not cancel-safe.
pub(crate) async fn read_block(
    recv: &mut Inlet,
    header: Header,
    activity: &Activity,
) -> Result<IncomingBlock, TransferError> {
    let len = header.len - wire::DATA_PREFIX - wire::DATA_SUFFIX;
    let offset = read_offset(recv).await?;
    let parts = recv.parts(len, activity).await?;
    let mut prefix = [0; wire::DATA_SUFFIX];
    recv.read_exact(&mut prefix).await?;
    Ok(IncomingBlock { offset, parts, len, prefix: Digest(prefix), compressed: false })
}

/// The same of a compressed block.
async fn read_compressed(
    recv: &mut Inlet,
    header: Header,
    activity: &Activity,
) -> Result<IncomingBlock, TransferError> {
    let compressed_len = header.len - wire::COMPRESSED_PREFIX - wire::DATA_SUFFIX;
    let offset = read_offset(recv).await?;
    let mut len = [0; 4];
    recv.read_exact(&mut len).await?;
    let len = u32::from_le_bytes(len) as usize;
    if compressed_len >= len {
        return Err(TransferError::Protocol("a block that compression does not make smaller comes as it is"));
    }
    let parts = recv.parts(compressed_len, activity).await?;
    let mut prefix = [0; wire::DATA_SUFFIX];
    recv.read_exact(&mut prefix).await?;
    Ok(IncomingBlock { offset, parts, len, prefix: Digest(prefix), compressed: true })
}

pub(crate) async fn read_offset(recv: &mut Inlet) -> Result<u64, TransferError> {
    let mut offset = [0; wire::DATA_PREFIX];
    recv.read_exact(&mut offset).await?;
    Ok(u64::from_le_bytes(offset))
}

pub(crate) fn size_mismatch(announced: Option<u64>, received: u64) -> TransferError {
    let announced = announced.unwrap_or_default();
    let message = format!("{announced} bytes were announced, but {received} arrived");
    TransferError::Unacceptable(Refusal::new(FailureCode::SizeMismatch, message))
}
