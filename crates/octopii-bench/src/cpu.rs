//! Processor time of this process, from `/proc`.

use octopii_bench::Outcome;

/// What the kernel counts in, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of processor time that all threads of this process have taken, in user and kernel mode, ended ones included.
pub(crate) fn seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name, which may hold anything; times are the 14th and 15th.
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat has no program name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| -> Outcome<f64> {
        Ok(fields.get(at).ok_or("/proc/self/stat is too short")?.parse::<u64>()? as f64)
    };
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}
