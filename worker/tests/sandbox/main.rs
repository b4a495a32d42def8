//! The sandbox with real processes: each test starts a spawner, as root or as an ordinary user, and
//! runs jobs through it.
//!
//! The spawner must be single-threaded at birth, so this binary brings its own `main`: it is the
//! tests, and, started with an argument of its own, the spawner.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "these are tests, although they bring their own main"
)]

mod commands;
mod daemon;
mod input_root;
mod isolation;
mod life;

use daemon::As;
use libtest_mimic::{Arguments, Trial};

/// A test that holds for a spawner of either kind.
type Test = (&'static str, fn(As));

fn main() {
    daemon::serve_if_asked();
    let arguments = Arguments::from_args();
    let suites = [commands::TESTS, input_root::TESTS, isolation::TESTS, life::TESTS].concat();
    let both = suites.into_iter().flat_map(|(name, test)| {
        [("root", As::Root), ("ordinary_user", As::OrdinaryUser)].map(|(kind, value)| {
            Trial::test(format!("{kind}::{name}"), move || {
                test(value);
                Ok(())
            })
        })
    });
    daemon::install();
    let conclusion = libtest_mimic::run(&arguments, both.collect());
    daemon::uninstall();
    conclusion.exit()
}
