//! One section of the benchmark while it runs: its time limit, its rounds and its rows.

use std::time::{Duration, Instant};

use crate::samples::Samples;
use crate::summary::{Row, Target};
use crate::table::Unit;

/// Rounds that are taken however late it is: a median of fewer says nothing.
pub(crate) const LEAST_ROUNDS: usize = 3;

/// A section that runs.
#[derive(Debug)]
pub(crate) struct Section {
    deadline: Instant,
    rows: Vec<Row>,
}

impl Section {
    /// Begins one that is to last so long.
    pub(crate) fn begin(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit, rows: Vec::new() }
    }

    /// Its rows, when it is over.
    pub(crate) fn end(self) -> Vec<Row> {
        self.rows
    }

    /// Adds a row to the summary.
    pub(crate) fn row(&mut self, what: &str, unit: Unit, seen: &Samples, target: Target) {
        self.rows.push(Row::of(what, unit, seen, target));
    }

    /// Adds a row that was made elsewhere.
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The part of what is left of its time that `share` is of 1.
    pub(crate) fn share(&self, share: f64) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).mul_f64(share)
    }

    /// Runs every subject once a round, in turns: A B, B A, A B, … An order that is turned round every
    /// time gives nobody the warmer caches. Ends after `most` rounds, or, with [`LEAST_ROUNDS`] at
    /// least, when another one would not fit into `time`.
    pub(crate) fn in_turns<const N: usize>(
        &self,
        most: usize,
        time: Duration,
        subjects: [&mut dyn FnMut() -> f64; N],
    ) -> [Samples; N] {
        let mut samples = [const { Samples::new() }; N];
        let started = Instant::now();
        for round in 0..most {
            let taken = started.elapsed();
            if round >= LEAST_ROUNDS && taken + taken / round as u32 > time {
                break;
            }
            for position in 0..N {
                let subject = if round % 2 == 0 { position } else { N - 1 - position };
                let value = subjects[subject]();
                samples[subject].push(value);
            }
        }
        samples
    }
}
