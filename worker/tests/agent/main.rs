//! The worker against a scripted coordinator, with its real helper processes: mounts, namespaces, jobs.
//!
//! This binary is the tests and, started anew, the helper process.

#![allow(clippy::unwrap_used, reason = "tests, which clippy does not see without a harness")]

mod fake;
mod holder;
mod jobs;
mod lifetime;
mod rig;
mod roots;
mod transfers;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == distbuild_worker::HELPER_COMMAND) {
        return distbuild_worker::helper_main(arguments);
    }
    let mut arguments = Arguments::from_args();
    // Each test has processes of its own; the machine's cores are what they share.
    arguments.test_threads.get_or_insert(2);
    let suites = [jobs::trials(), roots::trials(), transfers::trials(), lifetime::trials()];
    let trials = suites.into_iter().flatten();
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A test on a runtime of its own.
fn trial<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        runtime.block_on(test());
        Ok(())
    })
}
