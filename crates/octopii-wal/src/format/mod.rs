//! The bytes on disk, as described in `docs/formats/wal.md`. Little-endian throughout.

pub(crate) mod footer;
pub(crate) mod frame;
pub(crate) mod record;
pub(crate) mod segment;

/// Every frame begins at a multiple of this, so that a page with acknowledged bytes is never written again.
pub(crate) const PAGE: u64 = 4096;

/// `n` rounded up to whole pages.
pub(crate) fn pages(n: u64) -> u64 {
    n.next_multiple_of(PAGE)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(b)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}
