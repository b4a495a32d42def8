//! Repeated measurements of several things, taken in turns, and how they are told.

use std::time::Duration;

/// Measurements of one thing, in the order in which they were taken.
#[derive(Clone, Debug)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Not measured yet.
    pub(crate) const NONE: Self = Self(Vec::new());

    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    /// Each divided by the one of `other` that was taken in the same round.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
    }

    /// The median, with the least and the greatest.
    pub(crate) fn show(&self, digits: usize) -> String {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{:.digits$} ({least:.digits$}–{greatest:.digits$})", self.median())
    }
}

/// Does each work once a round, in an order that is turned round every time.
pub(crate) fn in_turns<const N: usize>(
    rounds: usize,
    mut work: impl FnMut(usize) -> f64,
) -> [Samples; N] {
    let mut samples = [const { Samples::NONE }; N];
    for round in 0..rounds {
        for position in 0..N {
            let subject = if round % 2 == 0 { position } else { N - 1 - position };
            samples[subject].push(work(subject));
        }
    }
    samples
}

/// Processor time of this process so far.
pub(crate) fn own_cpu() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    Duration::from(time)
}

/// What is asked of a ratio to the plain directory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    Told,
}

/// A line for the summary of all benchmarks.
pub(crate) fn row(what: &str, ratio: &Samples, target: Target) {
    let met = |met: bool| if met { "met" } else { "missed" };
    let (bound, verdict) = match target {
        Target::AtMost(most) => (format!("≤ {most}"), met(ratio.median() <= most)),
        Target::AtLeast(least) => (format!("≥ {least}"), met(ratio.median() >= least)),
        Target::Told => (String::new(), "told"),
    };
    println!("row: {what} | {} | {bound} | {verdict}", ratio.show(2));
}
