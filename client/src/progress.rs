//! What people see of a build while it runs: a display on a terminal, plain lines elsewhere.
//!
//! The display is redrawn a few times a second from the record; it is never told of single events. What
//! stays to be read (failures, what jobs print, notes) is written above it, and is all that there is without
//! a terminal, together with one line a job.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use distbuild_proto::wire::Outcome;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::build::console::visible;
use crate::build::record::Record;
use crate::build::traffic::Traffic;
use crate::output;

/// How often the display is drawn.
pub(crate) const REFRESH: Duration = Duration::from_millis(125);
/// Running jobs that are shown by name.
const SHOWN_JOBS: usize = 8;

/// Where a build shows itself.
#[derive(Debug)]
pub(crate) enum Screen {
    /// A terminal.
    Display(Display),
    /// A pipe or a file.
    Lines,
}

/// The display on a terminal.
#[derive(Debug)]
pub(crate) struct Display {
    all: MultiProgress,
    total: ProgressBar,
    jobs: Vec<ProgressBar>,
}

impl Screen {
    /// A display if stderr is a terminal that can show one.
    pub(crate) fn new(jobs: usize) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if !std::io::stderr().is_terminal() || dumb {
            return Self::Lines;
        }
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let total = all.add(ProgressBar::new(jobs as u64));
        total.set_style(style(colours()));
        Self::Display(Display { all, total, jobs: Vec::new() })
    }

    /// Whether every job's end is worth a line.
    pub(crate) fn is_lines(&self) -> bool {
        matches!(self, Self::Lines)
    }

    /// Lines to be read.
    pub(crate) fn note(&self, text: &str) {
        self.above(|| output::note(text));
    }

    /// What a job printed: its stdout to stdout, its stderr to stderr.
    ///
    /// # Errors
    /// It cannot be read; what could be read is shown.
    pub(crate) fn print(&self, stdout: impl Read, stderr: impl Read) -> io::Result<()> {
        self.above(|| {
            let stdout = output::bytes(stdout);
            output::note_bytes(stderr).and(stdout)
        })
    }

    fn above<T>(&self, write: impl FnOnce() -> T) -> T {
        match self {
            Self::Display(display) => display.all.suspend(write),
            Self::Lines => write(),
        }
    }

    /// Draws the build as it is now.
    pub(crate) fn refresh(&mut self, record: &Record, traffic: &Traffic) {
        if let Self::Display(display) = self {
            display.refresh(record, traffic);
        }
    }

    /// Takes the display away.
    pub(crate) fn close(&mut self) {
        if let Self::Display(display) = self {
            display.jobs.iter().for_each(ProgressBar::finish_and_clear);
            display.total.finish_and_clear();
        }
        *self = Self::Lines;
    }
}

impl Display {
    fn refresh(&mut self, record: &Record, traffic: &Traffic) {
        let running = record.running();
        let left_out = running.len().saturating_sub(SHOWN_JOBS);
        let cached = record.count(Outcome::Cached) + record.count(Outcome::CutOff);
        self.total.set_position(record.finished() as u64);
        self.total.set_message(format!(
            "{} running, {cached} cached, {} sent, {} received",
            running.len(),
            HumanBytes(traffic.sent()),
            HumanBytes(traffic.received()),
        ));
        let mut lines: Vec<String> = running
            .take(SHOWN_JOBS)
            .map(|(job, worker)| {
                format!("  {} @ {}", visible(record.plan().name(job)), visible(worker))
            })
            .collect();
        if left_out > 0 {
            lines.push(format!("  and {left_out} more"));
        }
        while self.jobs.len() > lines.len() {
            if let Some(bar) = self.jobs.pop() {
                bar.finish_and_clear();
                self.all.remove(&bar);
            }
        }
        for (at, line) in lines.into_iter().enumerate() {
            if self.jobs.len() == at {
                let bar = ProgressBar::new_spinner();
                bar.set_style(line_style());
                self.jobs.push(self.all.add(bar));
            }
            self.jobs[at].set_message(line);
        }
    }
}

/// Whether colours are welcome: <https://no-color.org>.
fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn style(colours: bool) -> ProgressStyle {
    let template = if colours {
        "[{pos}/{len}] {bar:24.green/black} {elapsed}, {eta} left, {msg}"
    } else {
        "[{pos}/{len}] {bar:24} {elapsed}, {eta} left, {msg}"
    };
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

fn line_style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}
