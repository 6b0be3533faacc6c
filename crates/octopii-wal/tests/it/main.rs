//! The log as its users see it, on real and on failing disks.

mod basics;
