//! Writers that append again and again for a while.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::report::quantile;

/// What some writers did together.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Appends per second of all writers.
    pub rate: f64,
    /// Median time of one append.
    pub p50: Duration,
    /// Time that one append in a hundred exceeded.
    pub p99: Duration,
}

/// Has `writers` threads append for `time`. `writer` is called on each thread, with its number, and makes what appends once.
///
/// One append in `every` is timed, and only then is the clock looked at: 1 for appends that take a sync, more for those that
/// take less than looking at the clock would.
pub fn drive<A>(
    writers: usize,
    time: Duration,
    every: usize,
    writer: impl Fn(usize) -> Outcome<A> + Sync,
) -> Outcome<Load>
where
    A: FnMut() -> Outcome<()>,
{
    let ready = Barrier::new(writers);
    let outcomes: Vec<Outcome<Writer>> = std::thread::scope(|scope| {
        let spawn = |n| {
            let (ready, writer) = (&ready, &writer);
            scope.spawn(move || {
                let append = writer(n);
                // Also after a failure, or the others would wait forever.
                ready.wait();
                work(append?, time, every)
            })
        };
        let threads: Vec<_> = (0..writers).map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("a writer panicked")).collect()
    });
    let writers = outcomes.into_iter().collect::<Outcome<Vec<_>>>()?;
    let begun = writers.iter().map(|w| w.begun).min().ok_or("there are no writers")?;
    let ended = writers.iter().map(|w| w.ended).max().ok_or("there are no writers")?;
    let appends: u64 = writers.iter().map(|w| w.appends).sum();
    let mut times: Vec<_> = writers.into_iter().flat_map(|w| w.times).collect();
    Ok(Load {
        rate: appends as f64 / (ended - begun).as_secs_f64(),
        p50: quantile(&mut times, 0.5),
        p99: quantile(&mut times, 0.99),
    })
}

struct Writer {
    begun: Instant,
    ended: Instant,
    appends: u64,
    times: Vec<Duration>,
}

fn work(mut append: impl FnMut() -> Outcome<()>, time: Duration, every: usize) -> Outcome<Writer> {
    let begun = Instant::now();
    let (mut ended, mut appends, mut times) = (begun, 0, Vec::new());
    while ended - begun < time {
        for _ in 1..every {
            append()?;
        }
        // A timed append begins where the one before ended, unless some in between were not timed.
        let at = if every == 1 { ended } else { Instant::now() };
        append()?;
        ended = Instant::now();
        times.push(ended - at);
        appends += every as u64;
    }
    Ok(Writer { begun, ended, appends, times })
}
