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

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(exit_code) = testd::run_if_asked(&arguments) {
        return exit_code;
    }
    let cases = [cases::CASES, failures::CASES, messages::CASES, mounts::CASES, passthrough::CASES]
        .concat();
    let trials = cases.into_iter().map(|(name, case): Case| {
        Trial::test(name, move || {
            case();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
