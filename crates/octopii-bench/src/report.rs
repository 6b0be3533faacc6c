//! Rounds in turn, medians, ratios.

use std::fmt::Display;
use std::time::Duration;

use crate::Outcome;

/// Prints the head of a table.
pub(crate) fn head(title: &str, unit: &str) {
    println!(
        "\n### {title}\n\n| workload | reference, {unit} | octopii, {unit} | ratio | ratios, lowest to highest |"
    );
    println!("|---|---|---|---|---|");
}

/// Measures reference and subject in turn, `rounds` times after one that does not count, and prints a row. More is better.
pub(crate) fn compare(
    workload: impl Display,
    rounds: usize,
    mut reference: impl FnMut() -> Outcome<f64>,
    mut subject: impl FnMut() -> Outcome<f64>,
) -> Outcome<()> {
    let (mut references, mut subjects, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (r, s) = (reference()?, subject()?);
        if round > 0 {
            references.push(r);
            subjects.push(s);
            ratios.push(s / r);
        }
    }
    let (reference, subject, ratio) = (median(&mut references), median(&mut subjects), median(&mut ratios));
    println!(
        "| {workload} | {reference:.0} | {subject:.0} | {ratio:.2} | {:.2} to {:.2} |",
        ratios.first().copied().unwrap_or(f64::NAN),
        ratios.last().copied().unwrap_or(f64::NAN)
    );
    Ok(())
}

/// The median, and `values` sorted.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A quantile of durations, which it sorts.
pub(crate) fn quantile(values: &mut [Duration], q: f64) -> Duration {
    values.sort_unstable();
    let at = ((values.len().saturating_sub(1)) as f64 * q).round() as usize;
    values.get(at).copied().unwrap_or_default()
}
