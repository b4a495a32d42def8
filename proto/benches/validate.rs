//! Parses and validates a generated graph; prints seconds and the peak of memory.
//!
//! `cargo bench -p distbuild-proto --bench validate -- 1000000` sets the number of jobs.
//! The target for a million jobs is 5 s and 2 GB, the text of the graph included. A second pass parses
//! the same text into plain `serde_json::Value`s: what merely reading it costs.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fmt::Write as _;
use std::time::Instant;

use distbuild_proto::DigestFunction;
use distbuild_proto::graph::{Graph, JobId};

/// Jobs unless the command line says otherwise.
const JOBS: usize = 1_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(JOBS);
    let text = generate(count);
    println!("{count} jobs, {} MB of JSON, peak {} MB before", megabytes(text.len()), peak()?);

    let clock = Clock::start()?;
    let graph = Graph::from_json(text.as_bytes())?;
    clock.report("parse and validate")?;

    let clock = Clock::start()?;
    let function = DigestFunction::Blake3;
    let source = function.digest(b"source");
    let mut ids: Vec<JobId> = Vec::with_capacity(graph.jobs().len());
    for job in graph.jobs() {
        let deps: Vec<_> = job.deps().iter().map(|dep| ids[dep.get()]).collect();
        ids.push(JobId::of(&job.record(function, Some(&source)), &deps));
    }
    clock.report("records and ids")?;
    drop((graph, ids));

    let clock = Clock::start()?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    clock.report("baseline, a Value")?;
    drop(value);
    Ok(())
}

/// Measures time that passed and time that this thread had a processor.
struct Clock {
    started: Instant,
    cpu_ns: u64,
}

impl Clock {
    fn start() -> Result<Self, Box<dyn std::error::Error>> {
        Ok(Self { cpu_ns: cpu_ns()?, started: Instant::now() })
    }

    fn report(self, what: &str) -> Result<(), Box<dyn std::error::Error>> {
        let wall = self.started.elapsed().as_secs_f64();
        let cpu = (cpu_ns()? - self.cpu_ns) as f64 / 1e9;
        println!("{what:20} {wall:6.2} s, {cpu:6.2} s of processor, peak {} MB", peak()?);
        Ok(())
    }
}

/// Nanoseconds that this thread had a processor.
fn cpu_ns() -> Result<u64, Box<dyn std::error::Error>> {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(schedstat.split(' ').next().ok_or("empty schedstat")?.parse()?)
}

/// A graph like a large C program's: each job compiles a file and needs two jobs before it.
fn generate(count: usize) -> String {
    let mut text = String::from("{\"version\": 1, \"jobs\": [");
    for n in 0..count {
        let separator = if n == 0 { "" } else { "," };
        let (one, two) = (n / 2, n.saturating_sub(7));
        let deps = match n {
            0 => String::new(),
            _ if one == two => format!("\"compile {one}\""),
            _ => format!("\"compile {one}\", \"compile {two}\""),
        };
        let word = if n == 0 { String::new() } else { format!("\"-I{{{{DEP:compile {one}}}}}\",") };
        let _ = write!(
            text,
            "{separator}\n{{\"name\": \"compile {n}\", \"inputs\": [\"src/{n}.c\", \"include/**\"], \
             \"deps\": [{deps}], \"cmds\": [{{\"exec\": [\"cc\", \"-O2\", \"-c\", {word} \
             \"{{{{SOURCE_DIR}}}}/src/{n}.c\", \"-o\", \"{{{{OUTPUT_DIR}}}}/{n}.o\"], \
             \"environ\": [\"PATH=/usr/bin:/bin\"]}}], \"platform\": {{\"os\": \"linux\"}}, \
             \"timeout_ms\": 60000, \"resources\": {{\"cores\": 1}}}}"
        );
    }
    text.push_str("\n]}");
    text
}

/// The peak of resident memory of this process, in megabytes.
fn peak() -> Result<usize, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kilobytes: usize = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(megabytes(kilobytes * 1024))
}

fn megabytes(bytes: usize) -> usize {
    bytes / 1_000_000
}
