//! Resident memory of processes, from `/proc`.

use octopii_bench::Outcome;

/// KiB that a process has now; `"self"` is this one.
pub(crate) fn kib(process: &str) -> Outcome<u64> {
    status(process, "VmRSS:")
}

/// KiB that it had at most.
pub(crate) fn peak_kib(process: &str) -> Outcome<u64> {
    status(process, "VmHWM:")
}

fn status(process: &str, field: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).ok_or("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
