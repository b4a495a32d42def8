//! The `cat` command: a text into a file of the directory for outputs, and nowhere else.
//!
//! Earlier commands of the job own that directory and may have put anything there: symlinks out of
//! it, pipes that nobody reads, devices. The kernel itself keeps the path below the directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// Why a text was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum CatError {
    /// The path cannot be written: the job's own fault.
    #[error("cannot write {path}: {reason}")]
    Refused {
        /// The path as the job gave it.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk failed or is full: an infrastructure error.
    #[error("write {path}: {source}")]
    Storage {
        /// The path as the job gave it.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes `text` to `output`, an absolute path below `directory`, as the job's own user.
pub(super) fn write(text: &[u8], output: &[u8], directory: &str) -> Result<(), CatError> {
    let path = || String::from_utf8_lossy(output).into_owned();
    let refused = |reason: String| CatError::Refused { path: path(), reason };
    let failed = |error: io::Error| match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::EXDEV => refused("the path leaves the output directory".to_owned()),
        // What opening a pipe without a reader gives.
        Errno::ENXIO => refused("not a regular file".to_owned()),
        Errno::ENOSPC
        | Errno::EDQUOT
        | Errno::EIO
        | Errno::EROFS
        | Errno::EMFILE
        | Errno::ENFILE
        | Errno::ENOMEM => CatError::Storage { path: path(), source: error },
        errno => refused(errno.desc().to_lowercase()),
    };

    let relative = Path::new(OsStr::from_bytes(output))
        .strip_prefix(directory)
        .map_err(|_| refused("not in the output directory".to_owned()))?;
    let mut file = open_below(directory, relative).map_err(|errno| failed(errno.into()))?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(refused("not a regular file".to_owned()));
    }
    // Truncated only now: never something that turned out to be no file.
    file.set_len(0).and_then(|()| file.write_all(text)).map_err(failed)
}

/// Opens or creates a file whose path never leaves `directory`, whatever symlinks it meets.
fn open_below(directory: &str, relative: &Path) -> Result<File, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(directory, flags, Mode::empty())?;
    // Not blocking: opening a pipe would wait for a reader.
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let how = OpenHow::new()
        .flags(flags)
        .mode(Mode::from_bits_truncate(0o644))
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(directory, relative, how).map(File::from)
}
