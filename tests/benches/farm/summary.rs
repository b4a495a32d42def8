//! The rows of the summary: what was measured, what was seen, the target, and whether it is met.
//!
//! A row also has the form of a line, `row: what | seen | target | met`, by which the benchmarks of the
//! other crates, processes of their own, hand theirs over.

use crate::samples::Samples;
use crate::table::{Unit, bound, show};

/// What a line of a benchmark begins with that is a row.
const PREFIX: &str = "row: ";

/// What is asked of the median.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Nothing is asked; it is told all the same.
    Told,
}

/// How the figure stands to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// There is no target.
    Told,
    /// It was not measured; in place of the figure stands why.
    Skipped,
}

/// One line of the summary.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    what: String,
    seen: String,
    target: String,
    verdict: Verdict,
}

impl Target {
    fn verdict(self, value: f64) -> Verdict {
        let met = match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Told => return Verdict::Told,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }

    fn text(self, unit: Unit) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", bound(unit, most)),
            Self::AtLeast(least) => format!("≥ {}", bound(unit, least)),
            Self::Told => String::new(),
        }
    }
}

impl Verdict {
    const ALL: [(Self, &str); 4] = [
        (Self::Met, "met"),
        (Self::Missed, "missed"),
        (Self::Told, "told"),
        (Self::Skipped, "skipped"),
    ];

    fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

impl Row {
    /// Of measurements, whose median is held against the target.
    pub(crate) fn of(what: &str, unit: Unit, seen: &Samples, target: Target) -> Self {
        Self::of_estimate(what, unit, seen.median(), seen, target)
    }

    /// Of measurements from which something better than the median was made; they show how far it is
    /// to be trusted.
    pub(crate) fn of_estimate(
        what: &str,
        unit: Unit,
        estimate: f64,
        seen: &Samples,
        target: Target,
    ) -> Self {
        Self {
            what: what.into(),
            seen: show(unit, estimate, seen),
            target: target.text(unit),
            verdict: target.verdict(estimate),
        }
    }

    /// Of something that could not be measured here.
    pub(crate) fn skipped(what: &str, why: &str) -> Self {
        Self {
            what: what.into(),
            seen: why.into(),
            target: String::new(),
            verdict: Verdict::Skipped,
        }
    }

    /// The row in a line of a benchmark; none if the line is something else.
    ///
    /// # Panics
    /// It begins as a row and is none.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let row = line.strip_prefix(PREFIX)?;
        let fields: Vec<&str> = row.split('|').map(str::trim).collect();
        let [what, seen, target, verdict] = fields[..] else { panic!("not four fields: {line}") };
        let verdict = Verdict::ALL.iter().find(|(_, word)| *word == verdict);
        let verdict = verdict.unwrap_or_else(|| panic!("not how a row ends: {line}")).0;
        Some(Self { what: what.into(), seen: seen.into(), target: target.into(), verdict })
    }
}

/// Prints the table of all rows.
pub(crate) fn print(rows: &[Row]) {
    println!("| what | seen | target | |");
    println!("|---|---|---|---|");
    for Row { what, seen, target, verdict } in rows {
        let word = match verdict {
            Verdict::Missed => format!("**{}**", verdict.word()),
            _ => verdict.word().to_owned(),
        };
        println!("| {what} | {seen} | {target} | {word} |");
    }
}
