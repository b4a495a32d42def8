//! No-op jobs a second through a real spawner, with all namespaces, beside the same program started
//! without any: `cargo bench -p distbuild-worker --bench spawn`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints, and fails loudly"
)]

#[expect(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/sandbox/daemon.rs"]
mod daemon;

use std::process::Stdio;
use std::time::{Duration, Instant};

use daemon::{As, Daemon, exec};
use distbuild_worker::sandbox::{Command, JobEnd};

/// How long each line is measured.
const WINDOW: Duration = Duration::from_secs(3);

fn main() {
    daemon::serve_if_asked();
    daemon::install();
    println!("{:<44} {:>9} {:>10} {:>10}", "", "jobs/s", "set-up µs", "run µs");
    plain();
    for kind in [As::Root, As::OrdinaryUser] {
        for width in [1, 2, 8] {
            sandboxed(kind, width, "true", || vec![exec(&["/bin/true"])]);
        }
        sandboxed(kind, 2, "no command", Vec::new);
    }
    daemon::uninstall();
}

/// The baseline: a process with two pipes, in the namespaces of this one.
fn plain() {
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < WINDOW {
        let mut command = std::process::Command::new("/bin/true");
        let output = command.stdin(Stdio::null()).output().expect("true runs");
        assert!(output.status.success());
        count += 1;
    }
    let per_second = f64::from(count) / start.elapsed().as_secs_f64();
    println!(
        "{:<44} {per_second:>9.0} {:>10} {:>10}",
        "baseline: plain fork and exec, 1 at once", "", ""
    );
}

fn sandboxed(kind: As, width: usize, name: &str, commands: fn() -> Vec<Command>) {
    let daemon = Daemon::start(kind);
    let run = |count: &mut u64, setup_us: &mut u64, run_us: &mut u64| {
        let job = daemon.job(commands());
        let start = Instant::now();
        while start.elapsed() < WINDOW {
            let outcome = job.run();
            assert!(matches!(outcome.ended.end, JobEnd::Exited { code: 0, .. }), "{outcome:?}");
            *count += 1;
            *setup_us += outcome.ended.times.setup_us;
            *run_us += outcome.ended.times.run_us;
        }
    };
    let start = Instant::now();
    let totals: Vec<_> = std::thread::scope(|scope| {
        let threads = (0..width).map(|_| {
            scope.spawn(|| {
                let (mut count, mut setup_us, mut run_us) = (0, 0, 0);
                run(&mut count, &mut setup_us, &mut run_us);
                (count, setup_us, run_us)
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let sum = |part: fn(&(u64, u64, u64)) -> u64| totals.iter().map(part).sum::<u64>();
    let (count, setup_us, run_us) = (sum(|t| t.0), sum(|t| t.1), sum(|t| t.2));
    println!(
        "{:<44} {:>9.0} {:>10} {:>10}",
        format!("{kind:?}: {name}, {width} at once"),
        count as f64 / seconds,
        setup_us / count,
        run_us / count,
    );
}
