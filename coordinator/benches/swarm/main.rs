//! The coordinator alone under load: a real one, over real gRPC on loopback TCP, with stub workers that
//! report success at once, and a stub client with graphs of up to a million jobs.
//!
//! The coordinator is a process of its own, so that its CPU and memory are its own figures; stubs and
//! client share another. On a machine with two processors the two compete, so the coordinator's CPU says
//! more than jobs a second: `µs/job` is what a submitted job costs, `µs/run` what an executed one does.
//! Beside the large build small ones of a better class come and go: how long their assignments take, and
//! they as a whole, shows whether the large one keeps others waiting.
//!
//! `cargo bench -p distbuild-coordinator --bench swarm` takes some minutes; names of lines after `--`,
//! such as `wave/100000/1000`, measure only those. `DISTBUILD_SWARM_PERF=/path` writes a CPU profile of the coordinator there
//! (`perf record`) for each line.

mod client;
mod coordinator;
mod stub;

use std::io::Write;
use std::time::Duration;

use crate::client::Shape;
use crate::coordinator::Process;
use crate::stub::Swarm;

/// A large build is cancelled after so many jobs.
const ENOUGH_JOBS: u32 = 50_000;

/// The tasks of a thousand stubs are short: more threads would only take the coordinator's time.
const STUB_THREADS: usize = 1;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What one line of the table shows.
struct Line {
    shape: Shape,
    jobs: u32,
    workers: u32,
}

impl Line {
    fn name(&self) -> String {
        format!("{}/{}/{}", self.shape.name(), self.jobs, self.workers)
    }

    async fn measure(&self) -> Result<String, Failure> {
        let process = Process::start()?;
        let swarm = Swarm::join(&process.address, self.workers).await?;
        let quiet = process.usage()?;
        // One job at a time, nothing else: the way of an assignment without a queue.
        let idle = swarm.chain(&process.address, 300, 50).await?;
        let profile = process.profile(&self.name())?;
        let mut started = process.usage()?;
        let before = started.cpu;
        let sample = || {
            if let Ok(usage) = process.usage() {
                started = usage;
            }
        };
        let big = client::run(&process.address, self.shape, self.jobs, ENOUGH_JOBS, 100, sample);
        let mut running = Box::pin(big);
        // A second build of a better class comes every now and then while the first one is
        // submitted and runs.
        let mut beside = Vec::new();
        let ran = loop {
            let small = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let begun = std::time::Instant::now();
                let chain = swarm.chain(&process.address, 5, 1).await?;
                Ok::<_, Failure>((begun.elapsed(), chain))
            };
            tokio::select! {
                ended = &mut running => break ended?,
                small = small => beside.push(small?),
            }
        };
        drop((profile, running));
        let after = process.usage()?;
        let per_job = |bytes: u64| bytes / u64::from(self.jobs);
        let mut whole: Vec<_> = beside.iter().map(|(took, _)| *took).collect();
        let mut steps: Vec<_> = beside.into_iter().flat_map(|(_, steps)| steps).collect();
        let mut idle = idle;
        swarm.leave().await;
        // What `cargo bench -p distbuild-tests` takes over into its summary.
        let row = format!(
            "row: coordinator, {} jobs on {} stub workers, jobs a second (CPU a job) | {:.0} /s ({:.0} µs) | | told",
            self.jobs,
            self.workers,
            f64::from(ran.executed) / ran.ran.as_secs_f64(),
            (after.cpu - started.cpu).as_secs_f64() * 1e6 / f64::from(ran.executed),
        );
        let line = format!(
            "{:>5} {:>8} {:>7} {:>9.2} {:>9.1} {:>9.0} {:>9.1} {:>8} {:>8} {:>17} {:>17} {:>17}",
            self.shape.name(),
            self.jobs,
            self.workers,
            ran.submitted.as_secs_f64(),
            (started.cpu - before).as_secs_f64() * 1e6 / f64::from(self.jobs),
            f64::from(ran.executed) / ran.ran.as_secs_f64(),
            (after.cpu - started.cpu).as_secs_f64() * 1e6 / f64::from(ran.executed),
            per_job(started.rss.saturating_sub(quiet.rss)),
            per_job(after.most_rss.saturating_sub(quiet.rss)),
            percentiles(&mut idle),
            percentiles(&mut steps),
            percentiles(&mut whole),
        );
        Ok(format!("{line}\n{row}"))
    }
}

/// Median and 99th percentile in milliseconds.
fn percentiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().max(1) - 1));
    match (at(50), at(99)) {
        (Some(half), Some(most)) => {
            format!("{:.2} / {:.2}", half.as_secs_f64() * 1e3, most.as_secs_f64() * 1e3)
        }
        _ => "-".to_owned(),
    }
}

fn lines() -> Vec<Line> {
    let mut lines = Vec::new();
    for (jobs, workers) in [
        (1_000, 100),
        (10_000, 1),
        (10_000, 10),
        (10_000, 100),
        (10_000, 1_000),
        (100_000, 1_000),
        (1_000_000, 1_000),
    ] {
        lines.push(Line { shape: Shape::Wave, jobs, workers });
    }
    lines.push(Line { shape: Shape::Flat, jobs: 100_000, workers: 1_000 });
    lines
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == coordinator::ROLE) {
        return coordinator::serve();
    }
    let wanted: Vec<&String> = arguments.iter().filter(|name| !name.starts_with('-')).collect();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:>5} {:>8} {:>7} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>17} {:>17} {:>17}",
        "graph",
        "jobs",
        "workers",
        "submit s",
        "µs/job",
        "jobs/s",
        "µs/run",
        "B/j wait",
        "B/j most",
        "idle ms 50/99",
        "beside ms 50/99",
        "2nd build 50/99"
    )?;
    for line in lines() {
        if wanted.is_empty() || wanted.iter().any(|name| **name == line.name()) {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(STUB_THREADS)
                .enable_all()
                .build()?;
            writeln!(out, "{}", runtime.block_on(line.measure())?)?;
            out.flush()?;
        }
    }
    Ok(())
}
