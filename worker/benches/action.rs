//! Set-up plus tear-down of a traced action without commands, by the number of its input files:
//! `cargo bench -p distbuild-worker --bench action`.
//!
//! From the assignment to the result as a coordinator sees them, one action after the other: view, sandbox
//! with all namespaces, no command, view dropped, empty outputs collected, report; so two messages over a
//! socket are in it. The same for an action that may change its input root and has an output in a new directory:
//! an overlay is mounted and a directory made. The baselines in the same rounds: the same program started without any of that, and a
//! hard-link farm of the same files, made and removed.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and fails loudly"
)]

#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/agent/fake.rs"]
mod fake;
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/agent/rig.rs"]
mod rig;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use distbuild_proto::wire::{AttemptEnd, to_worker};
use distbuild_proto::{Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name};

use rig::{Job, Rig};

const SIZES: [usize; 3] = [10, 1_000, 100_000];
const FILES_A_DIRECTORY: usize = 100;
const ROUNDS: usize = 7;
/// For set-up plus tear-down, whatever the number of files.
const TARGET: Duration = Duration::from_millis(1);
const ACTIONS_A_ROUND: usize = 100;
/// A farm of so many links takes seconds.
const LINKED_AT_MOST: usize = 1_000;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == distbuild_worker::HELPER_COMMAND) {
        return distbuild_worker::helper_main(arguments);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run());
    ExitCode::SUCCESS
}

async fn run() {
    let mut rig = Rig::start().await;
    let trees = SIZES.map(|files| tree(&rig, files));
    let links = tempfile::tempdir().unwrap();
    let mut attempt = 0;
    let mut actions = [const { Vec::new() }; SIZES.len()];
    let mut in_roots = [const { Vec::new() }; SIZES.len()];
    let (mut plain, mut linked) = (Vec::new(), [const { Vec::new() }; SIZES.len()]);
    for round in 0..=ROUNDS {
        for (position, (files, tree)) in SIZES.into_iter().zip(trees).enumerate() {
            let (mut took, mut took_in_root) = (Vec::new(), Vec::new());
            for _ in 0..ACTIONS_A_ROUND {
                attempt += 2;
                let job = || Job { source: Some(tree), ..Job::new("") };
                took.push(action(&mut rig, job().assign_without_commands(attempt)).await);
                let in_root = job().assign_in_root_without_commands(attempt + 1);
                took_in_root.push(action(&mut rig, in_root).await);
            }
            // The first round finds nothing in any cache.
            if round > 0 {
                actions[position].append(&mut took);
                in_roots[position].append(&mut took_in_root);
                if files <= LINKED_AT_MOST {
                    linked[position].push(link_farm(links.path(), files));
                }
            }
        }
        plain.extend((0..ACTIONS_A_ROUND).map(|_| fork_and_exec()));
    }
    rig.worker.shutdown().await;
    println!("{:<58} {:>9} {:>9} {:>9}", "µs", "median", "10 %", "90 %");
    line("baseline: fork, exec and end of /bin/true", plain);
    let took = actions.into_iter().zip(in_roots);
    for ((files, (native, in_root)), linked) in SIZES.into_iter().zip(took).zip(linked) {
        let what = format!("an action without commands, {files} input files");
        let native_us = line(&what, native).as_micros();
        row(&what, native_us);
        let what = format!("the same, that may change its {files} input files");
        let in_root_us = line(&what, in_root).as_micros();
        row(&what, in_root_us);
        println!("  over the native one: {} µs", in_root_us.saturating_sub(native_us));
        if !linked.is_empty() {
            line(&format!("  baseline: hard-link farm of {files} files"), linked);
        }
    }
}

/// Prints what `cargo bench -p distbuild-tests` takes over into its summary.
fn row(what: &str, median_us: u128) {
    let verdict = if median_us <= TARGET.as_micros() { "met" } else { "missed" };
    println!("row: set-up plus tear-down of {what} | {median_us} µs | ≤ 1000 µs | {verdict}");
}

/// Prints a line of the table, and gives the median.
fn line(what: &str, mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    let (median, low, high) = (at(50), at(10), at(90));
    println!("{what:<58} {:>9} {:>9} {:>9}", median.as_micros(), low.as_micros(), high.as_micros());
    median
}

/// A source tree in the worker's store.
fn tree(rig: &Rig, files: usize) -> Digest {
    let store = rig.worker.store();
    let keep = |directory: Directory| {
        let (digest, blob) = directory.encode_with_digest(DigestFunction::Blake3);
        store.insert(&digest, &blob, false).unwrap();
        digest
    };
    let name = |number: usize| Name::new(number.to_string().as_bytes()).unwrap();
    let file = |number: usize| FileNode {
        name: name(number),
        digest: DigestFunction::Blake3.digest(number.to_string().as_bytes()),
        executable: false,
    };
    let directories = (0..files.div_ceil(FILES_A_DIRECTORY)).map(|directory| {
        let numbers = (directory * FILES_A_DIRECTORY..files).take(FILES_A_DIRECTORY);
        let inner = Directory::new(numbers.map(file).collect(), vec![], vec![]).unwrap();
        DirectoryNode { name: name(directory), digest: keep(inner) }
    });
    let directories = directories.collect();
    keep(Directory::new(vec![], directories, vec![]).unwrap())
}

async fn action(rig: &mut Rig, assign: to_worker::Body) -> Duration {
    let start = Instant::now();
    rig.link.send(assign).await;
    let (ended, _) = rig.link.end().await;
    let took = start.elapsed();
    assert_eq!(ended.end(), AttemptEnd::AttemptSucceeded, "{ended:?}");
    rig.link.acknowledge(ended.attempt).await;
    took
}

fn fork_and_exec() -> Duration {
    let start = Instant::now();
    let output = Command::new("/bin/true").env_clear().stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    start.elapsed()
}

fn link_farm(below: &Path, files: usize) -> Duration {
    let (from, to) = (below.join(format!("from-{files}")), below.join("to"));
    fs::create_dir_all(&from).unwrap();
    for number in 0..files {
        fs::write(from.join(number.to_string()), "").unwrap();
    }
    let start = Instant::now();
    for number in 0..files {
        let directory = to.join((number / FILES_A_DIRECTORY).to_string());
        fs::create_dir_all(&directory).unwrap();
        fs::hard_link(from.join(number.to_string()), directory.join(number.to_string())).unwrap();
    }
    fs::remove_dir_all(&to).unwrap();
    start.elapsed()
}
