//! What the mount costs against plain files: `cargo bench -p distbuild-fs --bench mount [-- SECTION…]`.
//!
//! * `small`: walking, asking for, opening and reading 20 000 small files, everything known to the kernel.
//! * `large`: one file of 1 GiB in the page cache: from the beginning to the end, pieces of 4 KiB at random, mapped.
//! * `views`: showing a tree and taking it away.
//!
//! Everything is done in turns on a plain directory and on the mounts, in one process, and told as medians with the
//! least and the greatest. What the serving process uses of the processor counts as ours. Lines that begin with
//! `row: ` are what `cargo bench -p distbuild-tests` takes over into its summary. It needs root and 4 GiB of memory.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and fails loudly"
)]

mod large;
mod samples;
mod served;
mod small;
mod views;

use std::process::ExitCode;

/// By name, in the order in which they run.
const SECTIONS: [(&str, fn()); 3] =
    [("small", small::run), ("large", large::run), ("views", views::run)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, folder] = &arguments[..]
        && word == served::ARGUMENT
    {
        served::serve(folder.as_ref());
        return ExitCode::SUCCESS;
    }
    // Cargo says `--bench`; every other argument chooses.
    let words: Vec<_> = arguments.iter().filter(|word| !word.starts_with("--")).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(*word));
    for (name, run) in SECTIONS.iter().filter(|(name, _)| wanted(name)) {
        println!("\n### {name}\n");
        run();
    }
    ExitCode::SUCCESS
}
