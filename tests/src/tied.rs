//! Processes that end with the test that started them, whatever ends that.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// Starts a process that the kernel kills when the thread that started it is gone, also when the tests are
/// killed. So it has to be started by the thread of the test itself.
///
/// # Panics
/// The program does not start.
#[expect(unsafe_code, reason = "a call between fork and exec")]
pub fn start(command: &mut Command) -> Child {
    // SAFETY: a single system call, which neither allocates nor takes a lock.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    command.spawn().expect("the program starts")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_process_ends_with_the_thread_that_started_it() {
        let started = || start(Command::new("sleep").arg("60"));
        let mut child = std::thread::spawn(started).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
    }
}
