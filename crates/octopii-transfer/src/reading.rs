//! What the sender of an accepted chunk may say: blocks in order, repairs, the end.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::activity::Activity;
use crate::link::Inlet;
use crate::pages::{MAX_MAP, Pages};
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
                Tag::Data | Tag::Sparse | Tag::Compressed
                    if !done && (header.tag != Tag::Compressed || expected.compressed) =>
                {
                    let block = read_block(recv, header, activity).await?;
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

/// Reads a block whose message's header has been read, in whichever form it travels. Not cancel-safe.
pub(crate) async fn read_block(
    recv: &mut Inlet,
    header: Header,
    activity: &Activity,
) -> Result<IncomingBlock, TransferError> {
    let rest = header.len - wire::DATA_PREFIX - wire::DATA_SUFFIX;
    let offset = read_offset(recv).await?;
    let Body { parts, len, travelled } = match header.tag {
        Tag::Sparse => read_sparse(recv, rest, activity).await?,
        Tag::Compressed => read_compressed(recv, rest, activity).await?,
        _ => Body { parts: recv.parts(rest, activity).await?, len: rest, travelled: rest },
    };
    let mut prefix = [0; wire::DATA_SUFFIX];
    recv.read_exact(&mut prefix).await?;
    let compressed = header.tag == Tag::Compressed;
    Ok(IncomingBlock { offset, parts, len, prefix: Digest(prefix), compressed, travelled })
}

/// A block without what is around it.
pub(crate) struct Body {
    pub(crate) parts: Vec<Bytes>,
    /// Of the content.
    pub(crate) len: usize,
    travelled: usize,
}

/// Reads the `rest` bytes of a block with pages of zeroes that follow its offset, and puts those pages in. Not cancel-safe.
pub(crate) async fn read_sparse(
    recv: &mut Inlet,
    rest: usize,
    activity: &Activity,
) -> Result<Body, TransferError> {
    let len = read_length(recv).await?;
    let map_len = Pages::map_len(len)?;
    let travelled = rest.checked_sub(wire::LENGTH + map_len);
    let travelled = travelled.ok_or(TransferError::Protocol("a block is shorter than its map"))?;
    let mut map = [0; MAX_MAP];
    recv.read_exact(&mut map[..map_len]).await?;
    let pages = Pages::decode(len, &map[..map_len])?;
    if pages.content_len() != travelled {
        return Err(TransferError::Protocol("a block's content is not what its map tells of"));
    }
    let parts = pages.fill(recv.parts(travelled, activity).await?);
    Ok(Body { parts, len: pages.len(), travelled })
}

/// The same of a compressed block, which stays so.
async fn read_compressed(recv: &mut Inlet, rest: usize, activity: &Activity) -> Result<Body, TransferError> {
    let travelled = rest - wire::LENGTH;
    let len = read_length(recv).await? as usize;
    if travelled >= len {
        return Err(TransferError::Protocol("a block that compression does not make smaller comes as it is"));
    }
    Ok(Body { parts: recv.parts(travelled, activity).await?, len, travelled })
}

async fn read_length(recv: &mut Inlet) -> Result<u32, TransferError> {
    let mut len = [0; wire::LENGTH];
    recv.read_exact(&mut len).await?;
    Ok(u32::from_le_bytes(len))
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
