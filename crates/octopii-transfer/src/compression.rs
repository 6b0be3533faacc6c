//! Blocks made smaller for the way: zstd, each block a frame of its own, which tells the length of what is in it. Everything but
//! [`compress_all`] blocks.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use octopii_transport::Executor;
use tokio::sync::mpsc;
use zstd_safe::{CCtx, DCtx};

use crate::buffers::Buffers;
use crate::source::{Block, Form};

/// What may be asked for. Higher ones take tens of MiB per transfer, for blocks that gain nothing from it.
pub(crate) const LEVELS: RangeInclusive<i32> = 1..=19;

/// What saves less than one part in so many is not worth the receiver's time.
const WORTH: usize = 32;

/// Blocks that are compressed in one step on a blocking thread.
const STEP: usize = 2;

/// The compressing side of one transfer.
pub(crate) struct Compressor {
    context: CCtx<'static>,
    level: i32,
    scratch: Vec<u8>,
}

impl Compressor {
    /// `None` if there is no memory for it: about 1 MiB for the low levels, some 20 MiB for the highest.
    pub(crate) fn new(level: i32) -> Option<Self> {
        Some(Self { context: CCtx::try_create()?, level, scratch: Vec::new() })
    }

    /// The content as one frame, if that is smaller and not only by a little.
    pub(crate) fn compress(&mut self, content: &[u8]) -> Option<Bytes> {
        let room = content.len().checked_sub(content.len() / WORTH + 1)?;
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let room = &mut self.scratch[..room];
        // An error means that it does not fit.
        let len = self.context.compress(room, content, self.level).ok()?;
        // A copy, for this one waits until the network has it, and must not keep a whole block's memory until then.
        (len > 0).then(|| Bytes::copy_from_slice(&room[..len]))
    }
}

impl Compressor {
    /// Lets a block travel compressed if less of it travels then.
    fn shrink(&mut self, block: &mut Block) {
        let plain = match &block.form {
            Form::Sparse(pages) => pages.content_len(),
            Form::Plain | Form::Compressed(_) => block.content.len(),
        };
        if plain > 0
            && let Some(frame) = self.compress(&block.content).filter(|frame| frame.len() < plain)
        {
            block.form = Form::Compressed(frame);
        }
    }
}

/// The receiving side of one transfer. Takes about 100 KiB.
pub(crate) struct Decompressor {
    context: DCtx<'static>,
    buffers: Arc<Buffers>,
    scratch: Vec<u8>,
}

impl Decompressor {
    /// `None` if there is no memory for it.
    pub(crate) fn new() -> Option<Self> {
        Some(Self { context: DCtx::try_create()?, buffers: Arc::default(), scratch: Vec::new() })
    }

    /// The `len` bytes that are in the frame that the parts make up; `None` if that is not what they are: one frame, whole, with
    /// nothing behind it, that tells and has exactly so many. Nothing is written beyond that length, whatever the frame says, and the
    /// frame's own window costs no memory, since the output itself is used for it.
    pub(crate) fn decompress(&mut self, parts: &[Bytes], len: usize) -> Option<Bytes> {
        let frame = match parts {
            [only] => &only[..],
            parts => {
                self.scratch.clear();
                parts.iter().for_each(|part| self.scratch.extend_from_slice(part));
                &self.scratch[..]
            }
        };
        let is_one_frame = zstd_safe::find_frame_compressed_size(frame) == Ok(frame.len());
        let told = zstd_safe::get_frame_content_size(frame).ok().flatten();
        if !is_one_frame || told != Some(len as u64) {
            return None;
        }
        let mut buffer = self.buffers.take(len);
        let written = self.context.decompress(buffer.as_mut_slice(), frame);
        (written == Ok(len)).then(|| buffer.freeze())
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decompressor(_)")
    }
}

/// Compresses blocks on blocking threads, between where they are read and the network, until there are no more or nobody takes
/// them. What does not shrink, or for want of memory cannot be compressed, goes on as it is.
pub(crate) async fn compress_all(
    executor: Executor,
    level: i32,
    mut blocks: mpsc::Receiver<Block>,
    smaller: mpsc::Sender<Block>,
) {
    let mut compressor = executor.blocking(move || Compressor::new(level)).await;
    let mut step = Vec::new();
    while blocks.recv_many(&mut step, STEP).await > 0 {
        if compressor.is_some() {
            let compressing = move || {
                for block in &mut step {
                    compressor.iter_mut().for_each(|compressor| compressor.shrink(block));
                }
                (compressor, step)
            };
            (compressor, step) = executor.blocking(compressing).await;
        }
        for block in step.drain(..) {
            if smaller.send(block).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 1 << 20;

    fn text() -> Vec<u8> {
        (0..LEN as u32)
            .flat_map(|n| format!("line {}\n", n.wrapping_mul(2_654_435_761)).into_bytes())
            .take(LEN)
            .collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
    }

    /// The same context before and after a failure.
    #[test]
    fn what_shrinks_comes_back_and_what_does_not_is_left_alone() {
        let mut small = Decompressor::new().unwrap();
        for level in [*LEVELS.start(), 3, *LEVELS.end()] {
            let mut compressor = Compressor::new(level).unwrap();
            for content in [text(), vec![0; LEN], text()[..5000].to_vec(), vec![7; 100]] {
                assert!(compressor.compress(&noise(LEN)).is_none());
                let frame = compressor.compress(&content).unwrap();
                assert!(frame.len() < content.len());
                assert_eq!(small.decompress(std::slice::from_ref(&frame), content.len()).unwrap(), content);
                let parts: Vec<_> = frame.chunks(700).map(Bytes::copy_from_slice).collect();
                assert!(small.decompress(&parts[..parts.len() - 1], content.len()).is_none(), "cut");
                assert_eq!(small.decompress(&parts, content.len()).unwrap(), content);
            }
        }
        for len in 0..40 {
            // Too short to be worth anything, or just so.
            let content = noise(len);
            assert!(Compressor::new(3).unwrap().compress(&content).is_none(), "{len}");
        }
    }

    /// A frame is what it was said to be, to the byte, or nothing.
    #[test]
    fn what_is_not_exactly_the_block_is_not_taken() {
        let mut small = Decompressor::new().unwrap();
        let content = text();
        let frame = Compressor::new(3).unwrap().compress(&content).unwrap();
        for len in [1, LEN - 1, LEN + 1] {
            assert!(small.decompress(std::slice::from_ref(&frame), len).is_none(), "{len}");
        }
        let two = [&frame[..], &frame].concat();
        assert!(small.decompress(&[two.into()], 2 * LEN).is_none(), "two frames");
        let behind = [&frame[..], b"x"].concat();
        assert!(small.decompress(&[behind.into()], LEN).is_none());
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &frame].concat();
        assert!(small.decompress(&[skippable.into()], LEN).is_none());
        let skippable = [&frame[..], &[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]].concat();
        assert!(small.decompress(&[skippable.into()], LEN).is_none(), "whose end is something else");
        for garbage in [Bytes::new(), Bytes::from_static(b"\x28\xb5\x2f\xfd"), noise(900).into()] {
            assert!(small.decompress(&[garbage], LEN).is_none());
        }
        assert_eq!(small.decompress(&[frame], LEN).unwrap(), content);
    }

    /// The frame's header may say what it wants: gigabytes of content, a window of terabytes, no length at all.
    #[test]
    fn a_bomb_is_refused_before_it_goes_off() {
        let mut small = Decompressor::new().unwrap();
        // A frame of 4 GiB of zeroes: blocks of one repeated byte (RLE), 128 KiB each.
        let rle = |last: bool| {
            let header = u32::from(last) | 1 << 1 | (128 << 10) << 3;
            [&header.to_le_bytes()[..3], &[0]].concat()
        };
        let body: Vec<u8> = (0..32 << 10).flat_map(|n| rle(n == (32 << 10) - 1)).collect();
        // Single segment, 8 bytes of size.
        let bomb =
            |told: u64| [&[0x28, 0xb5, 0x2f, 0xfd, 0b1110_0000][..], &told.to_le_bytes(), &body].concat();
        assert!(small.decompress(&[bomb(4 << 30).into()], LEN).is_none(), "an honest one");
        assert!(small.decompress(&[bomb(LEN as u64).into()], LEN).is_none(), "one that lies about its size");
        assert!(small.decompress(&[bomb(u64::MAX).into()], LEN).is_none());
        // No single segment, no size, the largest window.
        let silent = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xff][..], &body].concat();
        assert!(small.decompress(&[silent.into()], LEN).is_none());
        let block: Vec<u8> = (0..8).flat_map(|n| rle(n == 7)).collect();
        let silent = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x50][..], &block].concat();
        assert!(small.decompress(&[silent.into()], LEN).is_none(), "right, but does not tell its size");
        // The frames above are well formed: with a block's worth of content the same bytes are a block of zeroes.
        let honest =
            [&[0x28, 0xb5, 0x2f, 0xfd, 0b1110_0000][..], &(LEN as u64).to_le_bytes(), &block].concat();
        assert_eq!(small.decompress(&[honest.into()], LEN).unwrap(), vec![0; LEN]);
    }

    #[test]
    fn any_flipped_byte_is_an_error_or_other_content_of_the_same_length() {
        let mut small = Decompressor::new().unwrap();
        let content = &text()[..3000];
        let frame = Compressor::new(3).unwrap().compress(content).unwrap();
        for at in 0..frame.len() {
            let mut changed = frame.to_vec();
            changed[at] ^= 0x10;
            if let Some(other) = small.decompress(&[changed.into()], content.len()) {
                assert_eq!(other.len(), content.len());
            }
        }
    }
}
