//! Messages on a stream.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use octopii_transport::{RecvStream, StreamError};

use crate::TransferError;
use crate::activity::Activity;
use crate::framing::{HEADER_LEN, Malformed};
use crate::wire::Header;

/// Parts taken from the network at once, a packet's worth each.
const AT_ONCE: usize = 32;

/// Shorter pieces are copied together, so that a few bytes never keep the buffer of a whole packet.
const SMALL_PART: usize = 512;

/// The receiving half of a stream, with what was taken from it ahead: a read of many parts costs little more than one of one.
#[derive(Debug)]
pub(crate) struct Inlet {
    recv: RecvStream,
    // Never empty buffers.
    ahead: VecDeque<Bytes>,
}

impl Inlet {
    pub(crate) fn new(recv: RecvStream) -> Self {
        Self { recv, ahead: VecDeque::new() }
    }

    /// Reads the next message's header. Not cancel-safe.
    pub(crate) async fn header(&mut self) -> Result<Header, TransferError> {
        let mut bytes = [0; HEADER_LEN];
        self.read_exact(&mut bytes).await?;
        Ok(Header::decode(bytes)?)
    }

    /// Reads a body; its length has been checked against the limit of its tag, about 66 KiB at the most for what is read so.
    /// Not cancel-safe.
    pub(crate) async fn body(&mut self, header: Header) -> Result<Vec<u8>, TransferError> {
        let mut body = vec![0; header.len];
        self.read_exact(&mut body).await?;
        Ok(body)
    }

    /// Fills `out`. Not cancel-safe.
    pub(crate) async fn read_exact(&mut self, out: &mut [u8]) -> Result<(), StreamError> {
        let mut rest = out;
        while !rest.is_empty() {
            let part = self.next(rest.len()).await?;
            let (now, later) = rest.split_at_mut(part.len());
            now.copy_from_slice(&part);
            rest = later;
        }
        Ok(())
    }

    /// The next `len` bytes, as they arrived. Not cancel-safe.
    pub(crate) async fn parts(&mut self, len: usize, activity: &Activity) -> Result<Vec<Bytes>, StreamError> {
        let mut parts: Vec<Bytes> = Vec::new();
        let mut small = BytesMut::new();
        let mut missing = len;
        while missing > 0 {
            if self.ahead.is_empty() {
                self.fill().await?;
                activity.tick();
            }
            let part = self.next(missing).await?;
            missing -= part.len();
            if part.len() < SMALL_PART {
                small.extend_from_slice(&part);
                continue;
            }
            if !small.is_empty() {
                parts.push(small.split().freeze());
            }
            parts.push(part);
        }
        if !small.is_empty() {
            parts.push(small.freeze());
        }
        Ok(parts)
    }

    /// Reads and forgets everything up to the end of the stream, whatever ends it.
    pub(crate) async fn end(&mut self) {
        self.ahead.clear();
        while let Ok(Some(_)) = self.recv.read_chunk(usize::MAX).await {}
    }

    /// Tells the peer to send no more.
    pub(crate) fn stop(&mut self, code: u32) {
        self.recv.stop(code);
    }

    /// Between 1 and `max` bytes.
    async fn next(&mut self, max: usize) -> Result<Bytes, StreamError> {
        loop {
            match self.ahead.front_mut() {
                Some(part) if part.len() > max => return Ok(part.split_to(max)),
                Some(part) if part.has_remaining() => break,
                Some(_) => drop(self.ahead.pop_front()),
                None => self.fill().await?,
            }
        }
        self.ahead.pop_front().ok_or(StreamError::UnexpectedEnd)
    }

    async fn fill(&mut self) -> Result<(), StreamError> {
        let mut parts = [const { Bytes::new() }; AT_ONCE];
        let filled = self.recv.read_chunks(&mut parts).await?.ok_or(StreamError::UnexpectedEnd)?;
        self.ahead.extend(parts.into_iter().take(filled));
        Ok(())
    }
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
