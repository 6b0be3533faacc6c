//! Rounds in turn, medians, ratios.

use std::fmt::Display;
use std::time::Duration;

use crate::Outcome;

/// Prints the head of a table.
pub fn head(title: &str, unit: &str) {
    println!(
        "\n### {title}\n\n| workload | reference, {unit} | octopii, {unit} | ratio | ratios, lowest to highest |"
    );
    println!("|---|---|---|---|---|");
}

/// Something to measure once.
pub type Subject<'a, T> = Box<dyn FnMut() -> Outcome<T> + 'a>;

/// Measures all `subjects` in turn, `rounds` times after one that does not count, so that whatever else the machine does
/// hits all alike. Returns each one's rounds.
pub fn in_turn<T>(rounds: usize, subjects: &mut [Subject<'_, T>]) -> Outcome<Vec<Vec<T>>> {
    let mut taken: Vec<Vec<T>> = subjects.iter().map(|_| Vec::new()).collect();
    for round in 0..=rounds {
        for (subject, taken) in subjects.iter_mut().zip(&mut taken) {
            let value = subject()?;
            if round > 0 {
                taken.push(value);
            }
        }
    }
    Ok(taken)
}

/// Measures reference and subject in turn and prints a row. More is better.
pub fn compare<'a>(
    workload: impl Display,
    rounds: usize,
    reference: impl FnMut() -> Outcome<f64> + 'a,
    subject: impl FnMut() -> Outcome<f64> + 'a,
) -> Outcome<()> {
    let mut taken = in_turn(rounds, &mut [Box::new(reference), Box::new(subject)])?;
    let mut ratios = ratios(&taken[1], &taken[0]);
    let (reference, subject, ratio) = (median(&mut taken[0]), median(&mut taken[1]), median(&mut ratios));
    println!(
        "| {workload} | {reference:.0} | {subject:.0} | {ratio:.2} | {:.2} to {:.2} |",
        ratios.first().copied().unwrap_or(f64::NAN),
        ratios.last().copied().unwrap_or(f64::NAN)
    );
    Ok(())
}

/// What each round had of `these` per what it had of `those`.
pub fn ratios(these: &[f64], those: &[f64]) -> Vec<f64> {
    these.iter().zip(those).map(|(a, b)| a / b).collect()
}

/// The median, and `values` sorted.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A quantile of durations, which it sorts.
pub fn quantile(values: &mut [Duration], q: f64) -> Duration {
    values.sort_unstable();
    let at = ((values.len().saturating_sub(1)) as f64 * q).round() as usize;
    values.get(at).copied().unwrap_or_default()
}
