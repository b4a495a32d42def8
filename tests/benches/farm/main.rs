//! What a build costs: `cargo bench -p distbuild-tests --bench farm [-- SECTION…]` prints a Markdown table.
//!
//! Everything runs in the real daemons of the release build, and has its baseline beside it: the same
//! work without us, in the same run, in turns, so that whatever else the machine does meets both. The
//! figures are medians with the least and the greatest in brackets. A section is chosen by (part of) its name.
//!
//! It needs `cc`, `make` and `bash` on the host. What each section measures is told in its module.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and fails loudly"
)]

mod cold_lua;
mod cpu;
mod input_count;
mod noop_jobs;
mod null_build;
mod samples;
mod table;
mod warm_compile;

/// By name, in the order in which they run.
const SECTIONS: [(&str, fn()); 5] = [
    ("noop-jobs", noop_jobs::run),
    ("input-count", input_count::run),
    ("null-build", null_build::run),
    ("cold-lua", cold_lua::run),
    ("warm-compile", warm_compile::run),
];

fn main() {
    // Cargo says `--bench`; every other argument chooses.
    let words = std::env::args().skip(1).filter(|word| !word.starts_with("--"));
    let words: Vec<String> = words.collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let chosen: Vec<_> = SECTIONS.iter().filter(|(name, _)| wanted(name)).collect();
    assert!(!chosen.is_empty(), "the sections are {:?}", SECTIONS.map(|(name, _)| name));

    let binary = distbuild_tests::binary::distbuild();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let cores = std::thread::available_parallelism().unwrap();
    println!("{} on {cores} cores; load before: {}", binary.display(), load.trim());
    for (name, run) in chosen {
        println!("\n### {name}\n");
        run();
    }
}
