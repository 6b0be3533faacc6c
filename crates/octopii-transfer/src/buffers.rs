//! Block buffers that are used again: a fresh one would cost its pages anew with every block.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Buffers that nobody uses now.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

/// At most this many are kept; more are in use at times, and freed.
const KEPT: usize = 16;

/// A buffer that goes back when it is dropped, also as [`Bytes`].
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    /// A buffer of `len` bytes, whose content is whatever it was last used for.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let mut bytes = self.free().pop().unwrap_or_default();
        // Zeroes only what it grows by.
        bytes.resize(len, 0);
        Buffer { bytes, home: Arc::clone(self) }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The content to share; the buffer goes back when the last clone is dropped.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut free = self.home.free();
        if free.len() < KEPT {
            free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_nobody_reads_it_any_more() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take(5);
        buffer.as_mut_slice().copy_from_slice(b"hello");
        let at = buffer.as_ref().as_ptr();
        let bytes = buffer.freeze();
        let part = bytes.slice(1..3);
        drop(bytes);
        assert_eq!(&part[..], b"el");
        assert_ne!(buffers.take(3).as_ref().as_ptr(), at, "still read");
        drop(part);
        // The latest one back is the first one out.
        assert_eq!(buffers.take(5).as_ref().as_ptr(), at);
        drop((0..2 * KEPT).map(|_| buffers.take(1)).collect::<Vec<_>>());
        assert_eq!(buffers.free().len(), KEPT);
    }
}
