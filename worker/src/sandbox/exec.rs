//! The `exec` command: finding a program and starting it, exactly with the arguments and
//! environment that are given.
//!
//! Init is single-threaded and has already become what its commands shall be: user, root directory,
//! descriptors, signals. So a command is one `posix_spawn`, which shares memory until the exec and
//! costs the same however large init is.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Pid, access};

/// Exit code of a program that was not found.
const NOT_FOUND: i32 = 127;
/// Exit code of a program that was found and cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecError {
    /// The job's own fault.
    #[error("{message}")]
    Unrunnable {
        /// As a shell would report it.
        code: i32,
        /// What is wrong, one line.
        message: String,
    },
    /// The machine has run out of something, or an input could not be read: an infrastructure
    /// error.
    #[error("start {program}: {source}")]
    System {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Starts a program in `working_directory`, which becomes init's own; the caller waits for it.
pub(super) fn start(
    argv: &[Vec<u8>],
    environ: &[Vec<u8>],
    working_directory: &[u8],
) -> Result<Pid, ExecError> {
    let argv0 = argv.first().map(Vec::as_slice).unwrap_or_default();
    let arguments = c_strings(argv, "an argument")?;
    let variables = c_strings(environ, "an environment variable")?;
    let directory = Path::new(OsStr::from_bytes(working_directory));
    nix::unistd::chdir(directory).map_err(|errno| {
        let directory = directory.display();
        failed(argv0, errno, |text| format!("cannot enter working directory {directory}: {text}"))
    })?;
    let program = find(argv0, environ)?;
    spawn(&program, &arguments, &variables).map_err(|errno| {
        let name = program.to_string_lossy();
        failed(argv0, errno, |text| match errno {
            // The file itself has just been seen.
            Errno::ENOENT => format!("cannot execute {name}: its interpreter was not found"),
            Errno::ENOEXEC => format!("cannot execute {name}: {text} (no \"#!\" line?)"),
            _ => format!("cannot execute {name}: {text}"),
        })
    })
}

/// Tells the job's fault from the machine's.
fn failed(program: &[u8], errno: Errno, message: impl FnOnce(String) -> String) -> ExecError {
    match errno {
        Errno::EAGAIN | Errno::EIO | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => {
            let program = String::from_utf8_lossy(program).into_owned();
            ExecError::System { program, source: errno.into() }
        }
        _ => unrunnable(NOT_EXECUTABLE, message(errno.desc().to_lowercase())),
    }
}

fn unrunnable(code: i32, message: String) -> ExecError {
    ExecError::Unrunnable { code, message }
}

fn c_strings(values: &[Vec<u8>], what: &str) -> Result<Vec<CString>, ExecError> {
    values
        .iter()
        .map(|value| CString::new(value.as_slice()))
        .collect::<Result<_, _>>()
        .map_err(|_| unrunnable(NOT_EXECUTABLE, format!("{what} holds a NUL byte")))
}

/// The file that `argv0` names: itself if it holds a `/`, else the first executable file of that
/// name in the directories of the command's own `PATH`, where an empty one is the working
/// directory.
fn find(argv0: &[u8], environ: &[Vec<u8>]) -> Result<CString, ExecError> {
    let name = String::from_utf8_lossy(argv0).into_owned();
    if argv0.is_empty() {
        return Err(unrunnable(NOT_FOUND, "the command is empty".to_owned()));
    }
    let mut unusable = None;
    let mut executable = |path: &[u8]| {
        let path_name = Path::new(OsStr::from_bytes(path));
        if access(path_name, AccessFlags::F_OK).is_err() {
            return None;
        }
        if path_name.is_file() && access(path_name, AccessFlags::X_OK).is_ok() {
            return CString::new(path).ok();
        }
        unusable.get_or_insert_with(|| path_name.display().to_string());
        None
    };
    let found = if argv0.contains(&b'/') {
        executable(argv0)
    } else {
        let path = environ.iter().find_map(|variable| variable.strip_prefix(b"PATH="));
        let Some(path) = path else {
            let message = format!("{name}: not found, PATH is not set");
            return Err(unrunnable(NOT_FOUND, message));
        };
        path.split(|byte| *byte == b':').find_map(|directory| {
            let directory = if directory.is_empty() { b".".as_slice() } else { directory };
            executable(&[directory, b"/", argv0].concat())
        })
    };
    found.ok_or_else(|| match unusable {
        Some(path) => unrunnable(NOT_EXECUTABLE, format!("{path}: not an executable file")),
        None => unrunnable(NOT_FOUND, format!("{name}: not found")),
    })
}

#[expect(unsafe_code, reason = "std's Command cannot hand over an environment byte for byte")]
fn spawn(program: &CString, argv: &[CString], environ: &[CString]) -> Result<Pid, Errno> {
    let pointers = |values: &[CString]| -> Vec<*mut libc::c_char> {
        let values = values.iter().map(|value| value.as_ptr().cast_mut());
        values.chain([std::ptr::null_mut()]).collect()
    };
    let (argv, environ) = (pointers(argv), pointers(environ));
    let mut pid = 0;
    // SAFETY: all strings end with NUL, both arrays with a null pointer, and they outlive the call,
    // which does not write to them; null attributes and actions ask for nothing.
    let result = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            argv.as_ptr(),
            environ.as_ptr(),
        )
    };
    if result == 0 { Ok(Pid::from_raw(pid)) } else { Err(Errno::from_raw(result)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environ(path: &str) -> Vec<Vec<u8>> {
        vec![format!("PATH={path}").into_bytes()]
    }

    #[test]
    fn a_name_is_looked_up_in_the_given_path_only() {
        assert_eq!(find(b"sh", &environ("/nowhere:/bin")).unwrap().as_bytes(), b"/bin/sh");
        let error = find(b"sh", &environ("/nowhere")).unwrap_err();
        assert!(matches!(error, ExecError::Unrunnable { code: 127, .. }), "{error}");
        let error = find(b"sh", &[]).unwrap_err();
        assert!(matches!(error, ExecError::Unrunnable { code: 127, .. }), "{error}");
    }

    #[test]
    fn a_directory_or_a_file_that_is_not_executable_is_told_from_a_missing_one() {
        for name in [&b"/etc"[..], b"/etc/passwd"] {
            let error = find(name, &[]).unwrap_err();
            assert!(matches!(error, ExecError::Unrunnable { code: 126, .. }), "{error}");
        }
        let error = find(b"/no/such/file", &[]).unwrap_err();
        assert!(matches!(error, ExecError::Unrunnable { code: 127, .. }), "{error}");
    }
}
