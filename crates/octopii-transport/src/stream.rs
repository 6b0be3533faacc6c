//! Streams that know their kind, and length-prefixed frames on them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::StreamError;
use crate::activity::InUse;

/// What a stream is for: its first byte on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum StreamKind {
    /// Acknowledged one-way messages.
    Message = 1,
    /// The application's requests and responses.
    Rpc = 2,
    /// Chunk transfers.
    Transfer = 3,
    /// Consensus, apart from the application's RPC so that neither starves the other.
    Raft = 4,
    /// Directories, with many files on one stream.
    Tree = 5,
}

impl StreamKind {
    /// Every kind, in the order of its byte.
    pub const ALL: [Self; 5] = [Self::Message, Self::Rpc, Self::Transfer, Self::Raft, Self::Tree];

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == byte)
    }

    /// Its place in [`ALL`](Self::ALL).
    pub(crate) fn index(self) -> usize {
        self as usize - 1
    }

    /// Bulk data yields to everything else on the same connection, and Raft goes first. 0 is what a stream has to begin
    /// with: most streams are calls, and need not be told.
    pub(crate) fn priority(self) -> i32 {
        match self {
            Self::Raft => 1,
            Self::Rpc | Self::Message => DEFAULT_PRIORITY,
            Self::Transfer | Self::Tree => -1,
        }
    }
}

/// The sending half of a stream.
///
/// Dropping it without [`finish`](Self::finish) resets the stream: the peer then sees an error, never a short message
/// that looks whole.
#[derive(Debug)]
pub struct SendStream {
    inner: quinn::SendStream,
    done: bool,
    _in_use: Option<InUse>,
}

/// The receiving half of a stream. Dropping it tells the peer to stop sending.
#[derive(Debug)]
pub struct RecvStream {
    inner: quinn::RecvStream,
    _in_use: Option<InUse>,
    // Received, not yet asked for, as it came. Empty while `partial` is not.
    ready: Bytes,
    // The beginning of a frame that did not come in one piece, and what came behind it.
    partial: BytesMut,
}

const DEFAULT_PRIORITY: i32 = 0;

/// The code of a stream that was dropped unfinished.
const ABANDONED: u32 = 0;

/// Bytes of a frame's length.
const HEADER: usize = 4;

/// Frames up to this long are copied out of what came from the network, so that keeping a small one does not keep the 64 KiB of
/// datagrams that it came with.
const COPIED: usize = 16 << 10;

/// What one read from the network brings at the most.
const READ_STEP: usize = 64 << 10;

impl SendStream {
    pub(crate) fn new(inner: quinn::SendStream) -> Self {
        Self { inner, done: false, _in_use: None }
    }

    /// Counted among its connection's as long as it lives.
    pub(crate) fn counted(self, in_use: InUse) -> Self {
        // A stream is dropped by its own code, so its fields cannot be moved.
        let mut counted = self;
        counted._in_use = Some(in_use);
        counted
    }

    /// Writes all of `data`, waiting for flow control. Not cancel-safe: a dropped call may have written a part.
    pub async fn write_all(&mut self, data: &[u8]) -> Result<(), StreamError> {
        self.inner.write_all(data).await.map_err(write_error)
    }

    /// Writes a buffer without copying it. Not cancel-safe.
    pub async fn write_chunk(&mut self, data: Bytes) -> Result<(), StreamError> {
        self.inner.write_chunk(data).await.map_err(write_error)
    }

    /// Writes several buffers, one after the other, without copying them. Not cancel-safe.
    pub async fn write_chunks(&mut self, data: &mut [Bytes]) -> Result<(), StreamError> {
        self.inner.write_all_chunks(data).await.map_err(write_error)
    }

    /// Writes a frame: its length as a little-endian `u32`, then its bytes. Not cancel-safe.
    pub async fn write_frame(&mut self, frame: &[u8]) -> Result<(), StreamError> {
        let len = u32::try_from(frame.len())
            .map_err(|_| StreamError::FrameTooLarge { len: frame.len() as u64, limit: u32::MAX as usize })?;
        let mut whole = BytesMut::with_capacity(4 + frame.len());
        whole.put_u32_le(len);
        whole.put_slice(frame);
        self.write_chunk(whole.freeze()).await
    }

    /// Says that nothing more will come. Data already written is still delivered.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.done = true;
        self.inner.finish().map_err(|_| StreamError::Finished)
    }

    /// Gives the stream up; the peer sees [`StreamError::Reset`] with this code.
    pub fn reset(&mut self, code: u32) {
        self.done = true;
        // An error means that it is finished or reset already, which is what was asked for.
        let _ = self.inner.reset(code.into());
    }

    /// Sets what goes first when the connection is busy: higher before lower. Raft begins with 1, calls and messages with
    /// 0, bulk with -1.
    pub fn set_priority(&self, priority: i32) {
        // An error means that the stream is closed: nothing left to order.
        let _ = self.inner.set_priority(priority);
    }

    /// Gives the stream the priority of its kind.
    pub(crate) fn prioritise(&self, kind: StreamKind) {
        if kind.priority() != DEFAULT_PRIORITY {
            self.set_priority(kind.priority());
        }
    }

    /// Returns once the peer's transport has received everything after [`finish`](Self::finish), or with the code with
    /// which the peer stopped reading. Says nothing about the peer's application. Cancel-safe.
    pub async fn stopped(&mut self) -> Result<Option<u32>, StreamError> {
        match self.inner.stopped().await {
            Ok(code) => Ok(code.map(code_of)),
            Err(quinn::StoppedError::ConnectionLost(e)) => Err(lost(&e)),
            Err(quinn::StoppedError::ZeroRttRejected) => {
                Err(StreamError::ConnectionLost("0-RTT rejected".into()))
            }
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        // quinn would finish it, and half a message would look like a whole one.
        if !self.done {
            self.reset(ABANDONED);
        }
    }
}

impl RecvStream {
    pub(crate) fn new(inner: quinn::RecvStream) -> Self {
        Self { inner, ready: Bytes::new(), partial: BytesMut::new(), _in_use: None }
    }

    /// Counted among its connection's as long as it lives.
    pub(crate) fn counted(self, in_use: InUse) -> Self {
        Self { _in_use: Some(in_use), ..self }
    }

    /// The next bytes in order, at most `max` of them, without copying; `None` at the end of the stream. Cancel-safe.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        if !self.partial.is_empty() {
            let n = self.partial.len().min(max);
            return Ok(Some(self.partial.split_to(n).freeze()));
        }
        if !self.ready.is_empty() {
            let n = self.ready.len().min(max);
            return Ok(Some(self.ready.split_to(n)));
        }
        match self.inner.read_chunk(max, true).await {
            Ok(chunk) => Ok(chunk.map(|c| c.bytes)),
            Err(e) => Err(read_error(e)),
        }
    }

    /// The next bytes in order, as they arrived, into as many of `parts` as there is data for; `None` at the end of the
    /// stream, otherwise how many were filled: at least one, unless `parts` is empty. Cheaper per byte than
    /// [`read_chunk`](Self::read_chunk), and without its limit. Cancel-safe.
    pub async fn read_chunks(&mut self, parts: &mut [Bytes]) -> Result<Option<usize>, StreamError> {
        match parts.first_mut() {
            Some(first) if !self.received().is_empty() => {
                *first = if self.partial.is_empty() {
                    std::mem::take(&mut self.ready)
                } else {
                    self.partial.split().freeze()
                };
                Ok(Some(1))
            }
            _ => self.inner.read_chunks(parts).await.map_err(read_error),
        }
    }

    /// Fills `out`, or fails with [`StreamError::UnexpectedEnd`]. Not cancel-safe.
    pub async fn read_exact(&mut self, out: &mut [u8]) -> Result<(), StreamError> {
        let mut done = 0;
        while done < out.len() {
            let chunk = self.read_chunk(out.len() - done).await?.ok_or(StreamError::UnexpectedEnd)?;
            out[done..done + chunk.len()].copy_from_slice(&chunk);
            done += chunk.len();
        }
        Ok(())
    }

    /// The length of the next frame in bytes, of which nothing is taken yet; `None` at the end of the stream. Cancel-safe.
    ///
    /// A frame longer than `limit` bytes is [`StreamError::FrameTooLarge`] before any of it is read.
    pub async fn frame_len(&mut self, limit: usize) -> Result<Option<usize>, StreamError> {
        loop {
            let mut received = self.received();
            if received.len() >= HEADER {
                let len = received.get_u32_le() as usize;
                return if len > limit {
                    Err(StreamError::FrameTooLarge { len: len as u64, limit })
                } else {
                    Ok(Some(len))
                };
            }
            if !self.fill().await? {
                return if self.received().is_empty() { Ok(None) } else { Err(StreamError::UnexpectedEnd) };
            }
        }
    }

    /// The next frame, `None` at the end of the stream. Cancel-safe: what has arrived is kept for the next call.
    ///
    /// The announced length is never trusted with memory: the buffer grows with what has arrived, a step at a time. A
    /// frame longer than `limit` bytes is [`StreamError::FrameTooLarge`] before any of it is read.
    pub async fn read_frame(&mut self, limit: usize) -> Result<Option<Bytes>, StreamError> {
        let Some(len) = self.frame_len(limit).await? else { return Ok(None) };
        while self.received().len() < HEADER + len {
            if !self.fill().await? {
                return Err(StreamError::UnexpectedEnd);
            }
        }
        Ok(Some(self.take_frame(len)))
    }

    /// The next frame, if all of it has been received already: what can be taken without waiting after another frame.
    ///
    /// `None` also when it is not there yet, too long, or the stream has ended: [`read_frame`](Self::read_frame) tells.
    pub fn received_frame(&mut self, limit: usize) -> Option<Bytes> {
        let mut received = self.received();
        let len = received.try_get_u32_le().ok()? as usize;
        if len > limit || received.len() < len {
            return None;
        }
        Some(self.take_frame(len))
    }

    /// Takes a frame of which everything has been received.
    fn take_frame(&mut self, len: usize) -> Bytes {
        if len <= COPIED {
            let copied = Bytes::copy_from_slice(&self.received()[HEADER..HEADER + len]);
            if self.partial.is_empty() {
                self.ready.advance(HEADER + len);
            } else {
                self.partial.advance(HEADER + len);
            }
            return copied;
        }
        if self.partial.is_empty() {
            self.ready.advance(HEADER);
            self.ready.split_to(len)
        } else {
            self.partial.advance(HEADER);
            self.partial.split_to(len).freeze()
        }
    }

    fn received(&self) -> &[u8] {
        if self.partial.is_empty() { &self.ready } else { &self.partial }
    }

    /// Waits for more bytes; false at the end of the stream. A piece that comes while nothing is pending is not copied.
    async fn fill(&mut self) -> Result<bool, StreamError> {
        let Some(chunk) = self.inner.read_chunk(READ_STEP, true).await.map_err(read_error)? else {
            return Ok(false);
        };
        if self.received().is_empty() {
            self.ready = chunk.bytes;
        } else {
            let ready = std::mem::take(&mut self.ready);
            self.partial.extend_from_slice(&ready);
            self.partial.extend_from_slice(&chunk.bytes);
        }
        Ok(true)
    }

    /// Tells the peer to send no more; it sees [`StreamError::Stopped`] with this code.
    pub fn stop(&mut self, code: u32) {
        // An error means that the stream has ended: there is nothing to stop.
        let _ = self.inner.stop(code.into());
    }
}

pub(crate) fn lost(e: &quinn::ConnectionError) -> StreamError {
    StreamError::ConnectionLost(e.to_string())
}

fn code_of(code: quinn::VarInt) -> u32 {
    u32::try_from(code.into_inner()).unwrap_or(u32::MAX)
}

fn write_error(e: quinn::WriteError) -> StreamError {
    match e {
        quinn::WriteError::Stopped(code) => StreamError::Stopped(code_of(code)),
        quinn::WriteError::ConnectionLost(e) => lost(&e),
        quinn::WriteError::ClosedStream => StreamError::Finished,
        quinn::WriteError::ZeroRttRejected => StreamError::ConnectionLost("0-RTT rejected".into()),
    }
}

fn read_error(e: quinn::ReadError) -> StreamError {
    match e {
        quinn::ReadError::Reset(code) => StreamError::Reset(code_of(code)),
        quinn::ReadError::ConnectionLost(e) => lost(&e),
        quinn::ReadError::ClosedStream | quinn::ReadError::IllegalOrderedRead => StreamError::Finished,
        quinn::ReadError::ZeroRttRejected => StreamError::ConnectionLost("0-RTT rejected".into()),
    }
}
