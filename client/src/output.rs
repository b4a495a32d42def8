//! The one place that writes to the terminal.
//!
//! What machines read (the line of a daemon, JSON, what jobs print) goes to stdout, everything for
//! people to stderr. A closed pipe is no error: who closed it does not want more.

use std::fmt::Display;
use std::io::Write;

/// A line on stdout.
pub(crate) fn line(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// A line on stderr.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// What went wrong, on stderr.
pub(crate) fn error(text: impl Display) {
    note(format_args!("error: {text}"));
}

/// Bytes on stdout, exactly as they are.
pub(crate) fn bytes(data: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(data).and_then(|()| out.flush());
}

/// Bytes on stderr; a last line without its end gets one, so that what follows starts a line.
pub(crate) fn note_bytes(data: &[u8]) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(data);
    if data.last().is_some_and(|last| *last != b'\n') {
        let _ = out.write_all(b"\n");
    }
}

/// One JSON value on stdout, on one line.
pub(crate) fn json(value: &serde_json::Value) {
    line(value);
}
