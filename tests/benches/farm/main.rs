//! Everything that distbuild is measured by: `cargo bench -p distbuild-tests --bench farm [-- SECTION…]`.
//!
//! Each section prints its tables, and at the end stands one summary: what, seen, target, met or
//! missed. What runs is the release build in real daemons, or, where a part is measured alone, the
//! benchmark of its crate. Everything has its baseline beside it: the same work without us, in the same
//! run, in turns, so that whatever else the machine does meets both. Figures are medians with
//! the least and the greatest in brackets.
//!
//! The sections' limits are 22 minutes together, building aside: a section takes as many rounds
//! as fit into its limit, three at least, so that a busy machine may take longer. A section is chosen by (part of) its name; one that
//! fails is told in the summary, and in the exit code.
//!
//! It needs Linux with FUSE, `cc`, `ar`, `make` and `bash`; `ninja`, `ccache` and `distcc` are compared with
//! if they are installed, and `bazel` is a client. What each section measures is told in its module.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and fails loudly"
)]

mod bazel;
mod builds;
mod compile;
mod cpu;
mod durable;
mod input_count;
mod large_tree;
mod noop_jobs;
mod null_build;
mod other_crates;
mod peers;
mod plain_build;
mod precise;
mod prefetch;
mod reapi;
mod samples;
mod section;
mod summary;
mod table;
mod workers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use other_crates::{Built, OtherCrate};
use section::Section;
use summary::Row;

/// What a section does.
#[derive(Clone, Copy)]
enum Work {
    Here(fn(&mut Section)),
    There(OtherCrate),
}

/// Name, limit in seconds, and work; in the order of the targets in `docs/BENCHMARKS.md`. The limits
/// are 22 minutes together.
const SECTIONS: [(&str, u64, Work); 20] = [
    ("compile", 170, Work::Here(compile::run)),
    ("mount", 60, there("distbuild-fs", "mount", &[])),
    ("prefetch", 100, Work::Here(prefetch::run)),
    ("action", 30, there("distbuild-worker", "action", &[])),
    ("input-count", 20, Work::Here(input_count::run)),
    ("noop-jobs", 30, Work::Here(noop_jobs::run)),
    ("durable", 60, Work::Here(durable::run)),
    ("reapi", 40, Work::Here(reapi::run)),
    ("bazel", 120, Work::Here(bazel::run)),
    ("large", 40, there("distbuild-worker", "large", &[])),
    ("small", 40, there("distbuild-worker", "fetch", &[])),
    ("decisions", 30, there("distbuild-sched", "decisions", &MILLION_JOBS)),
    ("swarm", 30, there("distbuild-coordinator", "swarm", &["wave/10000/1000"])),
    ("builds", 100, Work::Here(builds::run)),
    ("workers", 70, Work::Here(workers::run)),
    ("null-build", 60, Work::Here(null_build::run)),
    ("large-tree", 40, Work::Here(large_tree::run)),
    ("ingest", 20, there("distbuild-cas", "ingest", &[])),
    ("peers", 60, Work::Here(peers::run)),
    ("precise", 180, Work::Here(precise::run)),
];

/// Of the scheduler's curve the end.
const MILLION_JOBS: [&str; 2] = ["layered/1000000/10000", "flat/1000000/10000"];

const fn there(
    package: &'static str,
    bench: &'static str,
    arguments: &'static [&'static str],
) -> Work {
    Work::There(OtherCrate { package, bench, arguments })
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [compile::compiler::ARGUMENT, process] => compile::compiler::serve(process),
        [compile::served::ARGUMENT, mount, store] => compile::served::serve(mount, store),
        // Cargo says `--bench`; every other argument chooses.
        ref words => return run(words.iter().filter(|word| !word.starts_with("--")).collect()),
    }
    ExitCode::SUCCESS
}

fn run(words: Vec<&&str>) -> ExitCode {
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(**word));
    let chosen: Vec<_> = SECTIONS.iter().filter(|(name, ..)| wanted(name)).collect();
    assert!(!chosen.is_empty(), "the sections are {:?}", SECTIONS.map(|(name, ..)| name));

    let binary = distbuild_tests::binary::distbuild();
    let others = chosen.iter().filter_map(|(_, _, work)| match work {
        Work::There(bench) => Some(*bench),
        Work::Here(_) => None,
    });
    let built = Built::build(&others.collect::<Vec<_>>());
    let cores = std::thread::available_parallelism().unwrap();
    println!("{} on {cores} processors", binary.display());
    if sessions_compete() {
        println!(
            "the kernel divides processors between sessions, and each job is one: on a busy machine times \
             that pass favour who has more of them; a control group of its own (cpu) for all of this prevents it"
        );
    }
    let (started, mut rows, mut failed) = (Instant::now(), Vec::new(), false);
    for (name, limit, work) in chosen {
        println!("\n### {name}\n\nload average before: {}\n", load());
        let (limit, began) = (Duration::from_secs(*limit), Instant::now());
        let mut section = Section::begin(limit);
        let end = catch_unwind(AssertUnwindSafe(|| match work {
            Work::Here(run) => run(&mut section),
            // Twice the limit: it was chosen for an idle machine, and these do not look at the clock.
            Work::There(bench) => built.run(*bench, 2 * limit, &mut section),
        }));
        println!("took {} s; load average after: {}", began.elapsed().as_secs(), load());
        rows.extend(section.end());
        if end.is_err() {
            failed = true;
            rows.push(Row::skipped(name, "the section failed"));
        }
    }
    println!("\n### summary\n");
    summary::print(&rows);
    println!("\ntook {} s", started.elapsed().as_secs());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Whether the kernel gives each session an equal share, as it does outside of control groups.
fn sessions_compete() -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let groups = read("/proc/self/cgroup");
    // A line is number:controllers:path, of the unified hierarchy without controllers.
    let path = |controller: &str| {
        let fields = groups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let mut fields =
            fields.filter(|fields| fields[1].split(',').any(|name| name == controller));
        fields.next().map(|fields| fields[2].to_owned())
    };
    let in_no_group = path("cpu").or_else(|| path("")).is_some_and(|path| path == "/");
    read("/proc/sys/kernel/sched_autogroup_enabled").trim() == "1" && in_no_group
}

/// Processes that ran or wanted to, a mean over 1, 5 and 15 minutes.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
