//! The table that is printed, a line as soon as it is known.

use crate::samples::Samples;

/// How a figure is shown; times are measured in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    Microseconds,
    PerSecond,
    Ratio,
}

/// Begins a table.
pub(crate) fn head() {
    println!("| what | ours | baseline | ours ÷ baseline | target |");
    println!("|---|---|---|---|---|");
}

/// A line whose baseline is other work, done in turns with ours.
pub(crate) fn line(
    what: &str,
    unit: Unit,
    ours: &Samples,
    (name, baseline): (&str, &Samples),
    target: &str,
) {
    let ratio = show(Unit::Ratio, &ours.over(baseline));
    let (ours, baseline) = (show(unit, ours), show(unit, baseline));
    println!("| {what} | {ours} | {name}: {baseline} | {ratio} | {target} |");
}

/// A line that explains another one, or has its baseline in itself.
pub(crate) fn alone(what: &str, unit: Unit, ours: &Samples, target: &str) {
    println!("| {what} | {} | | | {target} |", show(unit, ours));
}

fn show(unit: Unit, samples: &Samples) -> String {
    let (factor, digits, name) = match unit {
        Unit::Seconds => (1.0, 3, " s"),
        Unit::Milliseconds => (1e3, 2, " ms"),
        Unit::Microseconds => (1e6, 0, " µs"),
        Unit::PerSecond => (1.0, 0, " /s"),
        Unit::Ratio => (1.0, 3, ""),
    };
    let (least, greatest) = samples.range();
    format!(
        "{:.digits$}{name} ({:.digits$}–{:.digits$})",
        samples.median() * factor,
        least * factor,
        greatest * factor,
    )
}
