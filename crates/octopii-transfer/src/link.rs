//! Messages on a stream.

use octopii_transport::{RecvStream, StreamError};

use crate::TransferError;
use crate::wire::{HEADER_LEN, Header, Malformed};

/// Reads the next message's header. Not cancel-safe.
pub(crate) async fn read_header(recv: &mut RecvStream) -> Result<Header, TransferError> {
    let mut bytes = [0; HEADER_LEN];
    recv.read_exact(&mut bytes).await?;
    Ok(Header::decode(bytes)?)
}

/// Reads a body; its length has been checked against the limit of its tag, about 66 KiB at the most for what is read so.
/// Not cancel-safe.
pub(crate) async fn read_body(recv: &mut RecvStream, header: Header) -> Result<Vec<u8>, TransferError> {
    let mut body = vec![0; header.len];
    recv.read_exact(&mut body).await?;
    Ok(body)
}

impl From<StreamError> for TransferError {
    fn from(e: StreamError) -> Self {
        Self::Lost(e)
    }
}

impl From<Malformed> for TransferError {
    fn from(e: Malformed) -> Self {
        Self::Protocol(e.0)
    }
}
