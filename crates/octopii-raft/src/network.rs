//! Between the members: what they ask, what they answer, and whom they listen to.

pub(crate) mod gate;
pub(crate) mod lane;
pub(crate) mod link;
pub(crate) mod message;
pub(crate) mod service;
