//! The one place that writes to the terminal.
//!
//! What machines read (the line of a daemon, JSON, what jobs print) goes to stdout, everything for
//! people to stderr. A closed pipe is no error: who closed it does not want more. Anything else that keeps
//! stdout from being written is reported once and remembered, so that no exit code hides it.

use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are copied at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Whether something that belonged on stdout is not there.
static LOST: AtomicBool = AtomicBool::new(false);

/// Whether something that belonged on stdout could not be written.
pub(crate) fn is_lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// Whether an error of a writer says no more than that nobody wants to read on.
pub(crate) fn is_unwanted(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

fn check(written: io::Result<()>) {
    if let Err(failure) = written
        && !is_unwanted(&failure)
        && !LOST.swap(true, Ordering::Relaxed)
    {
        error(format_args!("failed to write to stdout: {failure}"));
    }
}

/// A line on stdout.
pub(crate) fn line(text: impl Display) {
    let mut out = io::stdout().lock();
    check(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// A line on stderr.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// What went wrong, on stderr.
pub(crate) fn error(text: impl Display) {
    note(format_args!("error: {text}"));
}

/// Bytes on stdout, exactly as they are.
///
/// # Errors
/// They cannot be read.
pub(crate) fn bytes(data: impl Read) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let Copied { written, read, .. } = copy(data, &mut out);
    check(written.and_then(|()| out.flush()));
    read
}

/// Bytes on stderr; a last line without its end gets one, so that what follows starts a line.
///
/// # Errors
/// They cannot be read.
pub(crate) fn note_bytes(data: impl Read) -> io::Result<()> {
    let mut out = io::stderr().lock();
    let copied = copy(data, &mut out);
    if copied.last.is_some_and(|last| last != b'\n') {
        let _ = out.write_all(b"\n");
    }
    copied.read
}

/// How far a copy has come; reading and writing fail for different people.
struct Copied {
    read: io::Result<()>,
    written: io::Result<()>,
    last: Option<u8>,
}

fn copy(mut from: impl Read, to: &mut impl Write) -> Copied {
    let mut copied = Copied { read: Ok(()), written: Ok(()), last: None };
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return copied,
            Ok(count) => {
                copied.last = piece[..count].last().copied();
                copied.written = to.write_all(&piece[..count]);
                if copied.written.is_err() {
                    return copied;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                copied.read = Err(error);
                return copied;
            }
        }
    }
}

/// One JSON value on stdout, on one line.
pub(crate) fn json(value: &serde_json::Value) {
    line(value);
}
