//! The operating system's clock and random numbers, answered by the simulation that the calling thread runs.
//!
//! The C library's functions of these names are shadowed for this whole test binary, dependencies included: ring,
//! `getrandom`, std's hash keys and `SystemTime` all end here. Threads outside a simulation are passed on to the kernel.
#![expect(unsafe_code, reason = "C symbols can only be replaced by C symbols")]

use std::arch::asm;
use std::ffi::{c_int, c_long, c_uint, c_void};

use octopii_sim::world;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const CLOCK_GETTIME: i64 = 228;
    pub(super) const GETRANDOM: i64 = 318;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const CLOCK_GETTIME: i64 = 113;
    pub(super) const GETRANDOM: i64 = 278;
}

const CLOCK_REALTIME: c_int = 0;

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    // The C library's `errno`, under the name that both glibc and musl give it.
    fn __errno_location() -> *mut c_int;
}

/// `getrandom(2)`.
///
/// # Safety
///
/// `buf` must be valid for writing `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buf: *mut c_void, len: usize, flags: c_uint) -> isize {
    // SAFETY: the caller's promise.
    if unsafe { simulated_random(buf, len) } {
        return len as isize;
    }
    // SAFETY: the arguments are those of the system call, with the caller's promise.
    unsafe { result(raw(number::GETRANDOM, [buf as i64, len as i64, i64::from(flags), 0, 0, 0])) as isize }
}

/// `clock_gettime(2)`. The monotonic clock is tokio's business: it stands still in a simulation by itself.
///
/// # Safety
///
/// `time` must be valid for writing.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    if clock == CLOCK_REALTIME
        && let Some(now) = world::wall_clock()
    {
        let now = Timespec { seconds: now.as_secs() as i64, nanoseconds: i64::from(now.subsec_nanos()) };
        // SAFETY: the caller's promise.
        unsafe { time.write(now) };
        return 0;
    }
    // SAFETY: the arguments are those of the system call, with the caller's promise.
    unsafe { result(raw(number::CLOCK_GETTIME, [i64::from(clock), time as i64, 0, 0, 0, 0])) as c_int }
}

/// `syscall(2)`: how some code reaches `getrandom`, and std its futexes.
///
/// C declares it variadic; on these platforms the first six integers of either kind of call travel in the same
/// registers, and reading one that the caller did not set gives a number that the kernel ignores.
///
/// # Safety
///
/// As for the system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    // SAFETY: the caller's promise for this system call.
    if number == number::GETRANDOM && unsafe { simulated_random(a as *mut c_void, b as usize) } {
        return b;
    }
    // SAFETY: the caller's promise.
    unsafe { result(raw(number, [a, b, c, d, e, f])) }
}

/// Fills the buffer if this thread runs a simulation.
unsafe fn simulated_random(buf: *mut c_void, len: usize) -> bool {
    // The probe of a caller who only wants to know whether the call exists; its pointer may be dangling.
    if len == 0 {
        return false;
    }
    // SAFETY: the caller of `getrandom` hands over `len` writable bytes. They may be uninitialised: zero them first.
    let out = unsafe {
        buf.cast::<u8>().write_bytes(0, len);
        std::slice::from_raw_parts_mut(buf.cast::<u8>(), len)
    };
    world::fill_random(out)
}

/// From the kernel's convention (negative error number) to C's (`-1` and `errno`).
unsafe fn result(returned: i64) -> i64 {
    if (-4095..0).contains(&returned) {
        // SAFETY: the location is this thread's own and always valid.
        unsafe { *__errno_location() = -returned as c_int };
        return -1;
    }
    returned
}

#[cfg(target_arch = "x86_64")]
unsafe fn raw(number: i64, args: [i64; 6]) -> i64 {
    let returned;
    // SAFETY: the kernel's calling convention; what the call does to memory is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => returned,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    returned
}

#[cfg(target_arch = "aarch64")]
unsafe fn raw(number: i64, args: [i64; 6]) -> i64 {
    let returned;
    // SAFETY: the kernel's calling convention; what the call does to memory is the caller's promise.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => returned,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack),
        );
    }
    returned
}
