//! What the end of a job says to people.

use std::borrow::Cow;
use std::fmt::Write as _;

use distbuild_proto::action::Step;
use distbuild_proto::graph::Job;
use distbuild_proto::wire::{JobFinished, JobResult, Outcome};

use super::record::{Record, succeeded, word};

/// Longest command that is shown, in bytes.
const COMMAND_BYTES: usize = 4096;

/// The line that every job gets: `[12/35] cached  cc lapi.c`.
pub(crate) fn line(record: &Record, finished: &JobFinished) -> String {
    let (done, total) = (record.finished(), record.plan().len());
    let name = visible(record.plan().name(finished.job));
    let outcome = finished.outcome();
    let mut line = format!("[{done}/{total}] {:<9} {name}", shown(outcome));
    match outcome {
        Outcome::Failed => {
            let how = how(finished.result.as_ref(), &finished.reason);
            let _ = write!(line, " ({})", visible_lines(&how));
        }
        outcome if !succeeded(outcome) && !finished.reason.is_empty() => {
            let _ = write!(line, " ({})", visible_lines(&finished.reason));
        }
        _ => {}
    }
    line
}

/// The line of a job that failed, and the command that did.
pub(crate) fn failure(record: &Record, finished: &JobFinished) -> String {
    let mut text = line(record, finished);
    let job = record.plan().job(finished.job);
    if let (Some(job), Some(result)) = (job, &finished.result)
        && let Some(failed) = result.failed_command
        && let Some(command) = command(job, failed)
    {
        let _ = write!(text, "\n  command: {}", visible_lines(&command));
    }
    text
}

/// A word that others chose, as people may see it: what would drive the terminal is escaped.
pub(crate) fn visible(word: &str) -> Cow<'_, str> {
    escaped(word, drives_terminal)
}

/// The same of a text that may have several lines.
pub(crate) fn visible_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| drives_terminal(c) && c != '\n' && c != '\t')
}

/// Controls, and what turns the direction of writing around.
fn drives_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_bad(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

fn shown(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Executed => "done",
        Outcome::CutOff => "cut off",
        Outcome::Failed => "FAILED",
        Outcome::TimedOut => "TIMED OUT",
        Outcome::InfraError => "ERROR",
        Outcome::NoWorker => "NO WORKER",
        outcome => word(outcome),
    }
}

fn how(result: Option<&JobResult>, reason: &str) -> String {
    match result {
        Some(result) if result.signal != 0 => format!("signal {}", result.signal),
        Some(result) if result.exit_code != 0 => format!("exit code {}", result.exit_code),
        _ if reason.is_empty() => "it could not be run".to_owned(),
        _ => reason.to_owned(),
    }
}

/// A command of a job as a shell would take it.
fn command(job: &Job, number: u32) -> Option<String> {
    let steps = job.steps();
    let mut text = match steps.get(number as usize)? {
        Step::Exec(exec) => {
            let words: Vec<String> = exec.argv().iter().map(|word| quoted(word)).collect();
            words.join(" ")
        }
        Step::Cat(cat) => format!("write {}", quoted(cat.output())),
    };
    if text.len() > COMMAND_BYTES {
        let end = (0..=COMMAND_BYTES).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    Some(text)
}

/// A word that a shell reads as these bytes; what is not UTF-8 is shown and not to be copied.
fn quoted(word: &[u8]) -> String {
    let text = String::from_utf8_lossy(word);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use distbuild_proto::graph::Graph;
    use serde_json::json;

    use super::*;
    use crate::build::plan::Plan;

    fn record() -> Record {
        let commands = json!([
            { "exec": ["/bin/true"] },
            { "exec": ["/bin/sh", "-c", "echo 'no' >&2; exit 7"] },
        ]);
        let file = json!({ "version": 1, "jobs": [{ "name": "cc a/b.c", "cmds": commands }] });
        let graph = Graph::from_json(file.to_string().as_bytes()).unwrap();
        Record::new(Arc::new(Plan::new(graph, &[]).unwrap()))
    }

    #[test]
    fn a_failure_names_job_code_and_the_command_that_failed() {
        let result = JobResult { exit_code: 7, failed_command: Some(1), ..JobResult::default() };
        let finished = JobFinished {
            outcome: Outcome::Failed.into(),
            result: Some(result),
            ..JobFinished::default()
        };
        assert_eq!(
            failure(&record(), &finished),
            "[0/1] FAILED    cc a/b.c (exit code 7)\n  command: /bin/sh -c 'echo '\\''no'\\'' >&2; exit 7'"
        );
    }

    #[test]
    fn a_job_that_did_not_run_says_why() {
        let finished = JobFinished {
            outcome: Outcome::Skipped.into(),
            reason: "its dependency \"x\" did not succeed".to_owned(),
            ..JobFinished::default()
        };
        assert_eq!(
            line(&record(), &finished),
            "[0/1] skipped   cc a/b.c (its dependency \"x\" did not succeed)"
        );
    }

    #[test]
    fn what_would_drive_the_terminal_is_escaped() {
        assert_eq!(
            visible("cc a\u{1b}[2J\r\nb\u{9b}m\u{202e}é"),
            r"cc a\u{1b}[2J\r\nb\u{9b}m\u{202e}é"
        );
        assert_eq!(visible_lines("a\n\tb\u{7}"), "a\n\tb\\u{7}");
        assert!(matches!(visible("cc a/b.c"), Cow::Borrowed(_)));
    }
}
