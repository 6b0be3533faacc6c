//! What the fuzz targets share.

pub mod image;
pub mod memory;
pub mod token;

use std::alloc::{GlobalAlloc, Layout, System};

/// Ends the process when a single allocation is far larger than anything the input could justify.
pub struct Limited;

const LIMIT: usize = 64 << 20;

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }
}

fn check(size: usize) {
    if size > LIMIT {
        eprintln!("an allocation of {size} bytes");
        std::process::abort();
    }
}
