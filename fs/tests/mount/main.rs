//! The real mount, in a namespace of its own: each case starts a process that serves one and plays
//! its agent. Nothing survives a failure, since the mount ends with that process.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod cases;
mod failures;
mod messages;
mod mounts;
mod passthrough;
mod rig;
mod testd;
mod trees;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

type Case = (&'static str, fn());

/// The kernel may give up pages of a file at any time, and then reads them again: seldom enough that it does not
/// happen in each of so many tries at a case that counts messages.
const COUNTING_TRIES: u32 = 4;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(exit_code) = testd::run_if_asked(&arguments) {
        return exit_code;
    }
    let cases = [cases::CASES, failures::CASES, mounts::CASES, passthrough::CASES].concat();
    let counting = messages::CASES.iter().map(|case| (*case, COUNTING_TRIES));
    let trials =
        cases.into_iter().map(|case| (case, 1)).chain(counting).map(|((name, case), tries)| {
            Trial::test(name, move || {
                // The last try decides, and says why.
                if (1..tries).any(|_| std::panic::catch_unwind(case).is_ok()) {
                    return Ok(());
                }
                case();
                Ok(())
            })
        });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
