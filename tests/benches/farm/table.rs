//! The tables of details that the sections print, and how figures are written.

use crate::samples::Samples;

/// How a figure is shown; times are measured in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    Microseconds,
    PerSecond,
    /// Of ours to the baseline.
    Ratio,
    /// A number of things.
    Count,
}

/// Begins a table.
pub(crate) fn head() {
    println!("| what | ours | baseline | ours ÷ baseline |");
    println!("|---|---|---|---|");
}

/// A line whose baseline is other work, done in turns with ours.
pub(crate) fn line(what: &str, unit: Unit, ours: &Samples, (name, baseline): (&str, &Samples)) {
    let ratio = median(Unit::Ratio, &ours.over(baseline));
    let (ours, baseline) = (median(unit, ours), median(unit, baseline));
    println!("| {what} | {ours} | {name}: {baseline} | {ratio} |");
}

/// A line that explains another one, or has its baseline in itself.
pub(crate) fn alone(what: &str, unit: Unit, ours: &Samples) {
    println!("| {what} | {} | | |", median(unit, ours));
}

fn median(unit: Unit, samples: &Samples) -> String {
    show(unit, samples.median(), samples)
}

/// A figure with the least and the greatest of what it was made from.
pub(crate) fn show(unit: Unit, figure: f64, samples: &Samples) -> String {
    let (least, greatest) = samples.range();
    let (factor, digits, name) = unit.parts();
    format!(
        "{:.digits$}{name} ({:.digits$}–{:.digits$})",
        figure * factor,
        least * factor,
        greatest * factor,
    )
}

/// A figure without the zeros at its end.
pub(crate) fn bound(unit: Unit, value: f64) -> String {
    let (factor, digits, name) = unit.parts();
    // Through text, so that no more digits appear than the figure beside it has.
    let value: f64 = format!("{:.digits$}", value * factor).parse().unwrap();
    format!("{value}{name}")
}

impl Unit {
    /// Factor, digits after the point, and name.
    fn parts(self) -> (f64, usize, &'static str) {
        match self {
            Self::Seconds => (1.0, 3, " s"),
            Self::Milliseconds => (1e3, 2, " ms"),
            Self::Microseconds => (1e6, 0, " µs"),
            Self::PerSecond => (1.0, 0, " /s"),
            Self::Ratio => (1.0, 3, ""),
            Self::Count => (1.0, 1, ""),
        }
    }
}
