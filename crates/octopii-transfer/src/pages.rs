//! Which pages of a block hold nothing but zeroes: on the way each of them is one bit, and a file with holes is stored without them.

use std::ops::Range;

use bytes::Bytes;

use crate::framing::Malformed;
use crate::wire::MAX_BLOCK;

/// What is looked at as a whole; file systems keep holes in no smaller pieces. It divides every legal block size.
const PAGE: usize = 4096;

/// Bytes of the longest map.
pub(crate) const MAX_MAP: usize = MAX_BLOCK as usize / PAGE / 8;

static ZEROES: [u8; MAX_BLOCK as usize] = [0; MAX_BLOCK as usize];

/// So many zeroes, a block's worth at the most, for which no memory is taken.
pub(crate) fn zeroes(len: usize) -> Bytes {
    Bytes::from_static(&ZEROES[..len])
}

/// The pages of a block. The last one may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pages {
    /// Bytes in the block.
    len: usize,
    /// A bit for each page, from the lowest bit of the first byte on: 1 if it may hold anything but zeroes. Those behind the last page
    /// are 0.
    map: [u8; MAX_MAP],
}

/// Pages in a row of the same kind, and where they are in the block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) range: Range<usize>,
    pub(crate) has_content: bool,
}

impl Pages {
    /// Those of a block's content; `None` if there is something in each. What is no page of zeroes costs a look at its first bytes.
    pub(crate) fn of(content: &[u8]) -> Option<Self> {
        let mut map = [0; MAX_MAP];
        let mut empty = false;
        for (n, page) in content.chunks(PAGE).enumerate() {
            match page == &ZEROES[..page.len()] {
                true => empty = true,
                false => *map.get_mut(n / 8)? |= 1 << (n % 8),
            }
        }
        empty.then_some(Self { len: content.len(), map })
    }

    /// How long the map of a block of this length is; an error if there is no such block.
    pub(crate) fn map_len(len: u32) -> Result<usize, Malformed> {
        match len {
            1..=MAX_BLOCK => Ok((len as usize).div_ceil(PAGE).div_ceil(8)),
            _ => Err(Malformed("the length of a block is out of range")),
        }
    }

    /// From another side's word.
    pub(crate) fn decode(len: u32, map: &[u8]) -> Result<Self, Malformed> {
        if map.len() != Self::map_len(len)? {
            return Err(Malformed("a map is not as long as its block wants it"));
        }
        let mut pages = Self { len: len as usize, map: [0; MAX_MAP] };
        pages.map[..map.len()].copy_from_slice(map);
        let (count, marked) =
            (pages.count(), map.iter().map(|byte| byte.count_ones() as usize).sum::<usize>());
        if (0..count).filter(|&n| pages.has_content(n)).count() != marked {
            return Err(Malformed("a map tells of pages that the block does not have"));
        }
        if marked == count {
            return Err(Malformed("a block without pages of zeroes comes as it is"));
        }
        Ok(pages)
    }

    /// Bytes in the block.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The map, as long as the block wants it.
    pub(crate) fn map(&self) -> &[u8] {
        &self.map[..self.count().div_ceil(8)]
    }

    /// Bytes in the pages that have content.
    pub(crate) fn content_len(&self) -> usize {
        self.content().map(|range| range.len()).sum()
    }

    /// All pages, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = next;
            let has_content = (first < self.count()).then(|| self.has_content(first))?;
            while next < self.count() && self.has_content(next) == has_content {
                next += 1;
            }
            Some(Run { range: first * PAGE..(next * PAGE).min(self.len), has_content })
        })
    }

    /// Those with content.
    pub(crate) fn content(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.runs().filter(|run| run.has_content).map(|run| run.range)
    }

    /// What is to travel of the block's content. It waits until the network has it, and then until it is acknowledged: of a block of which
    /// little is left, it is a copy, which does not keep the rest of the block.
    pub(crate) fn slices(&self, content: &Bytes) -> Vec<Bytes> {
        let left = self.content_len();
        if left >= self.len / 2 {
            return self.content().map(|range| content.slice(range)).collect();
        }
        let mut copy = Vec::with_capacity(left);
        self.content().for_each(|range| copy.extend_from_slice(&content[range]));
        Some(Bytes::from(copy)).filter(|copy| !copy.is_empty()).into_iter().collect()
    }

    /// The whole block, from the content of those pages that have some.
    pub(crate) fn fill(&self, parts: Vec<Bytes>) -> Vec<Bytes> {
        let mut content = parts.into_iter();
        let (mut whole, mut rest) = (Vec::new(), Bytes::new());
        for Run { range, has_content } in self.runs() {
            if !has_content {
                whole.push(zeroes(range.len()));
                continue;
            }
            let mut missing = range.len();
            while missing > 0 {
                if rest.is_empty() {
                    let Some(next) = content.next() else { return whole };
                    rest = next;
                }
                let part = rest.split_to(missing.min(rest.len()));
                missing -= part.len();
                whole.push(part);
            }
        }
        whole
    }

    fn count(&self) -> usize {
        self.len.div_ceil(PAGE)
    }

    fn has_content(&self, page: usize) -> bool {
        self.map[page / 8] & 1 << (page % 8) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter per page: a dot for zeroes. The last page is short by `cut`.
    fn block(pages: &str, cut: usize) -> Vec<u8> {
        let fill = |letter| if letter == b'.' { vec![0; PAGE] } else { vec![letter; PAGE] };
        let mut block: Vec<u8> = pages.bytes().flat_map(fill).collect();
        block.truncate(block.len() - cut);
        block
    }

    #[test]
    fn what_is_left_out_is_put_back() {
        let long = "a.".repeat(128);
        for pages in [".", "..", ".a", "a.", "a..b", ".ab.", "aaaaaaaa.", "........a", ".......aa.b", &long] {
            for cut in [0, 1, PAGE - 1] {
                let block = block(pages, cut);
                let found = Pages::of(&block).unwrap();
                assert_eq!(found.len(), block.len());
                assert_eq!(Pages::decode(block.len() as u32, found.map()), Ok(found), "{pages} {cut}");
                let content: Vec<u8> = found.content().flat_map(|range| block[range].to_vec()).collect();
                assert_eq!(content.len(), found.content_len());
                assert_eq!(found.runs().map(|run| run.range.len()).sum::<usize>(), block.len());
                for piece in [1000, PAGE, 100_000] {
                    let parts = content.chunks(piece).map(Bytes::copy_from_slice).collect();
                    assert!(found.fill(parts).concat() == block, "{pages} {cut} {piece}");
                }
            }
        }
    }

    /// What waits for a slow peer would otherwise be many times what is sent to it.
    #[test]
    fn little_content_keeps_no_block() {
        for (pages, shares) in
            [("a.......", false), ("aaa.....", false), ("aaaa....", true), ("a.a.a.a.", true), (".", false)]
        {
            let whole = Bytes::from(block(pages, 0));
            let found = Pages::of(&whole).unwrap();
            let slices = found.slices(&whole);
            assert!(slices.iter().all(|slice| !slice.is_empty()));
            let content: Vec<_> = found.content().flat_map(|range| whole[range].to_vec()).collect();
            assert!(slices.concat() == content, "{pages}");
            let within = whole.as_ptr_range();
            let shared = slices.iter().any(|slice| within.contains(&slice.as_ptr()));
            assert_eq!(shared, shares, "{pages}");
        }
    }

    #[test]
    fn a_page_is_empty_only_if_all_of_it_is() {
        for at in [0, 1, PAGE - 1, PAGE, 2 * PAGE - 1] {
            let mut block = vec![0; 2 * PAGE];
            block[at] = 1;
            let content = Pages::of(&block).unwrap().content().next();
            let page = at / PAGE * PAGE;
            assert_eq!(content, Some(page..page + PAGE));
        }
        assert_eq!(Pages::of(&block("abcdefghij", 3)), None);
        assert_eq!(Pages::of(b""), None);
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        let page = PAGE as u32;
        for (len, map) in [
            (0, &[][..]),
            (MAX_BLOCK + 1, &[0; 32]),
            (u32::MAX, &[0; 32]),
            (1, &[]),
            (page, &[0, 0]),
            (8 * page + 1, &[0]),
            // A page that is not there, and none without content.
            (1, &[2]),
            (9 * page, &[0, 2]),
            (1, &[1]),
            (8 * page, &[0xff]),
        ] {
            assert!(Pages::decode(len, map).is_err(), "{len} {map:?}");
        }
        assert_eq!(Pages::decode(MAX_BLOCK, &[0; MAX_MAP]).unwrap().content_len(), 0);
    }
}
