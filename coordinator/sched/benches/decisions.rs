//! Decisions a second and bytes a job: the curve over 1 000 to 1 000 000 jobs and 1 to 10 000 workers.
//!
//! `cargo bench -p distbuild-sched --bench decisions` takes about a minute; names of lines after `--`,
//! such as `flat/1000000/10000`, measure only those.
//!
//! A minimal driver answers every effect at once: look-ups miss, and an assigned attempt ends as
//! soon as the fleet is full, the oldest first. A *decision* is one assignment; its time includes
//! the job's share of everything else: submission, look-up, end, and the edges. Time is that of the
//! one thread on a processor, so that a busy machine does not count as a slow scheduler.
//! Bytes are what the allocator has handed out, above what the fleet alone takes: just after the
//! submission, at most (a sample every 64 ends), and after the build has ended.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use distbuild_sched::{
    ActionKey, Answer, AttemptEnd, BuildId, Config, Effect, Event, Graph, JobSpec, JobState,
    Resources, Scheduler, SelectorId, StoreId, Time, UserId, WorkerId,
};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const GIB: u64 = 1 << 30;

/// Jobs behind every line of the table, at least.
const ENOUGH_JOBS: u32 = 100_000;

/// Shapes of graphs: the usual one, and one where every job is ready at once.
#[derive(Clone, Copy)]
enum Form {
    /// Up to three dependencies among the hundred jobs before.
    Layered,
    /// No dependencies: everything queues.
    Flat,
}

struct Outcome {
    decisions: u64,
    seconds: f64,
    bytes_waiting: usize,
    bytes_most: usize,
    bytes_left: usize,
}

fn graph(jobs: u32, form: Form) -> Graph {
    let mut graph = Graph::new();
    for index in 0..jobs {
        let mut deps = Vec::new();
        if let Form::Layered = form {
            let mix = index.wrapping_mul(0x9e37_79b1);
            for n in 0..(mix >> 30).min(index) {
                deps.push(index - 1 - (mix >> (n * 7)) % index.min(100));
            }
        }
        let spec = JobSpec {
            resources: [Resources::new(1000, GIB), Resources::new(2000, 3 * GIB)]
                [usize::from(index % 8 == 0)],
            selector: SelectorId(index % 2),
            requested: true,
            state: JobState::Unknown,
        };
        if graph.push(&deps, spec).is_err() {
            break;
        }
    }
    graph
}

fn fleet(scheduler: &mut Scheduler, workers: u32) {
    let property = |value: &str| BTreeMap::from([("arch".to_owned(), value.to_owned())]);
    for selector in 0..2 {
        let properties = if selector == 0 { BTreeMap::new() } else { property("amd64") };
        let selector = SelectorId(selector);
        scheduler.handle(Time(0), Event::SelectorDefined { selector, properties });
    }
    for worker in 0..workers {
        let event = Event::WorkerJoined {
            worker: WorkerId(worker),
            store: StoreId(worker),
            properties: property("amd64"),
            capacity: Resources::new(16_000, 64 * GIB),
            draining: false,
        };
        scheduler.handle(Time(0), event);
    }
}

/// Time this thread has spent on a processor; the kernel counts it in nanoseconds.
fn cpu_seconds() -> std::io::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().and_then(|field| field.parse::<f64>().ok());
    let unreadable = || std::io::Error::other("schedstat holds no time");
    Ok(nanoseconds.ok_or_else(unreadable)? / 1e9)
}

fn measure(jobs: u32, workers: u32, form: Form) -> std::io::Result<Outcome> {
    let mut scheduler = Scheduler::new(Config::default());
    fleet(&mut scheduler, workers);
    let before = LIVE.load(Ordering::Relaxed);
    let graph = graph(jobs, form);
    let mut running = VecDeque::new();
    let (mut decisions, mut ends, mut now, mut key) = (0, 0u64, 0, 0u64);
    let start = cpu_seconds()?;
    let build = BuildId(1);
    let user = UserId(1);
    scheduler.handle(
        Time(0),
        Event::Submitted { build, user, class: 1, keep_going: true, graph: Box::new(graph) },
    );
    let bytes_waiting = LIVE.load(Ordering::Relaxed) - before;
    let mut bytes_most = bytes_waiting;
    loop {
        while let Some(effect) = scheduler.poll_effect() {
            match effect {
                Effect::LookUp { job } => {
                    key += 1;
                    let mut bytes = [0; 32];
                    bytes[..8]
                        .copy_from_slice(&key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
                    let answer = Answer::Miss { key: Some(ActionKey(bytes)) };
                    scheduler.handle(Time(now), Event::LookedUp { job, answer });
                }
                Effect::Assign { attempt, .. } => {
                    decisions += 1;
                    running.push_back(attempt);
                }
                Effect::JobEnded { job, .. } => {
                    scheduler.handle(Time(now), Event::Delivered { job })
                }
                _ => {}
            }
        }
        let Some(attempt) = running.pop_front() else {
            break;
        };
        ends += 1;
        if ends % 64 == 1 {
            now += 1;
            bytes_most = bytes_most.max(LIVE.load(Ordering::Relaxed) - before);
        }
        scheduler.handle(Time(now), Event::AttemptEnded { attempt, end: AttemptEnd::Succeeded });
        if running.is_empty()
            && let Some(at) = scheduler.poll_timeout()
        {
            now = now.max(at.0);
            scheduler.handle(Time(now), Event::Tick);
        }
    }
    let seconds = cpu_seconds()? - start;
    drop(running);
    let bytes_left = LIVE.load(Ordering::Relaxed).saturating_sub(before);
    Ok(Outcome { decisions, seconds, bytes_waiting, bytes_most, bytes_left })
}

/// One cell of the table. Small graphs are run again and again: the kernel's clock of a thread moves
/// with its ticks.
fn repeated(jobs: u32, workers: u32, form: Form) -> std::io::Result<Outcome> {
    let mut outcome = measure(jobs, workers, form)?;
    for _ in 1..ENOUGH_JOBS / jobs {
        let again = measure(jobs, workers, form)?;
        outcome.decisions += again.decisions;
        outcome.seconds += again.seconds;
    }
    Ok(outcome)
}

/// What `cargo bench -p distbuild-tests` takes over into its summary.
fn rows(out: &mut impl Write, graph: &str, outcome: &Outcome) -> std::io::Result<()> {
    let what = format!("{graph} graph, 1 000 000 jobs, 10 000 workers");
    let met = |met: bool| if met { "met" } else { "missed" };
    let rate = outcome.decisions as f64 / outcome.seconds;
    let verdict = met(rate >= 200_000.0);
    writeln!(out, "row: scheduler decisions, {what} | {rate:.0} /s | ≥ 200000 /s | {verdict}")?;
    let bytes = outcome.bytes_most / 1_000_000;
    let verdict = met(bytes <= 1_000);
    writeln!(out, "row: scheduler memory a job at most, {what} | {bytes} B | ≤ 1000 B | {verdict}")
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    writeln!(
        out,
        "{:>8} {:>9} {:>8} {:>12} {:>13} {:>12} {:>11} {:>10}",
        "graph",
        "jobs",
        "workers",
        "decisions/s",
        "µs/decision",
        "B/job start",
        "B/job most",
        "B left"
    )?;
    for (form, name) in [(Form::Layered, "layered"), (Form::Flat, "flat")] {
        for jobs in [1_000, 10_000, 100_000, 1_000_000] {
            for workers in [1, 10, 100, 1_000, 10_000] {
                let line = format!("{name}/{jobs}/{workers}");
                if !wanted.is_empty() && !wanted.contains(&line) {
                    continue;
                }
                let outcome = repeated(jobs, workers, form)?;
                let runs = u64::from((ENOUGH_JOBS / jobs).max(1));
                assert_eq!(outcome.decisions, u64::from(jobs) * runs, "every job runs once");
                writeln!(
                    out,
                    "{name:>8} {jobs:>9} {workers:>8} {:>12.0} {:>13.2} {:>12} {:>11} {:>10}",
                    outcome.decisions as f64 / outcome.seconds,
                    outcome.seconds * 1e6 / outcome.decisions as f64,
                    outcome.bytes_waiting / jobs as usize,
                    outcome.bytes_most / jobs as usize,
                    outcome.bytes_left,
                )?;
                if (jobs, workers) == (1_000_000, 10_000) {
                    rows(&mut out, name, &outcome)?;
                }
            }
        }
    }
    Ok(())
}
