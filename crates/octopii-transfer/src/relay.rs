//! Content from a third node: a receiver fetches from another receiver of the same chunk what the sender vouches for, block
//! by block.
//!
//! The sender of a distribution tells every receiver the prefix digests of all blocks ([`gather`]), and the content itself
//! to few of them only. Who has verified blocks shelves them ([`shelf`]) for those who know the distribution's key, and serves
//! them as they come in ([`serve`]). Nobody needs to trust a relay: what does not fit the sender's digests is thrown away,
//! and the sender is told from where on another supplier is needed.

pub(crate) mod feed;
pub(crate) mod gather;
pub(crate) mod serve;
pub(crate) mod shelf;
