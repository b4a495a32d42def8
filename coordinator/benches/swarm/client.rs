//! A client that submits a graph and reads the events to the end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distbuild_proto::wire::build_event::Body as Event;
use distbuild_proto::wire::build_request::Body as Ask;
use distbuild_proto::wire::builds_client::BuildsClient;
use distbuild_proto::{Address, DigestFunction, transport, wire};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::Failure;
use crate::stub::TIMED;

/// Jobs in one message, as many as make about the size that the real client fills.
const JOBS_PER_MESSAGE: u32 = 4096;

/// Jobs of a wave that can run at the same time.
const WIDTH: u32 = 4096;

/// Every build is another, so that nothing is found in the cache.
static LAST_BUILD: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// Each job depends on three of the wave before it; the last wave is asked for.
    Wave,
    /// No dependencies; everything is asked for.
    Flat,
    /// One after the other, timed.
    Chain,
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wave => "wave",
            Self::Flat => "flat",
            Self::Chain => "chain",
        }
    }
}

pub(crate) struct Ran {
    /// From the first message to the start of the build.
    pub(crate) submitted: Duration,
    /// From there to the end.
    pub(crate) ran: Duration,
    pub(crate) executed: u32,
}

/// Submits a graph and waits until `enough` jobs, or all, have been executed; then it is cancelled. Tells
/// of the start.
pub(crate) async fn run(
    address: &Address,
    shape: Shape,
    jobs: u32,
    enough: u32,
    priority_class: u32,
    mut when_started: impl FnMut(),
) -> Result<Ran, Failure> {
    let begun = Instant::now();
    let build = LAST_BUILD.fetch_add(1, Ordering::Relaxed);
    let (requests, messages) = mpsc::channel(4);
    let asked = requests.clone();
    let submit = async move {
        let send = async |body| requests.send(wire::BuildRequest { body: Some(body) }).await;
        send(Ask::Header(header(priority_class))).await?;
        for first in (0..jobs).step_by(JOBS_PER_MESSAGE as usize) {
            let batch = first..jobs.min(first + JOBS_PER_MESSAGE);
            let jobs = batch.map(|index| job(shape, build, index, jobs)).collect();
            send(Ask::Jobs(wire::JobBatch { jobs })).await?;
            tokio::task::yield_now().await;
        }
        send(Ask::Run(wire::RunBuild {})).await
    };
    let mut client = BuildsClient::new(transport::connect(address).await?)
        .max_decoding_message_size(transport::MAX_MESSAGE_BYTES);
    let (events, submitted) = tokio::join!(client.build(ReceiverStream::new(messages)), submit);
    submitted.map_err(|_| "the coordinator stopped listening")?;
    let mut events = events?.into_inner();
    let mut started = None;
    let mut executed = 0;
    while executed < enough.min(jobs)
        && let Some(batch) = events.message().await?
    {
        for event in batch.events {
            match event.body {
                Some(Event::BuildStarted(_)) => {
                    started = Some(Instant::now());
                    when_started();
                }
                Some(Event::JobFinished(job)) => {
                    executed += u32::from(job.outcome() == wire::Outcome::Executed);
                }
                _ => {}
            }
        }
    }
    drop(asked);
    let started = started.ok_or("the build never started")?;
    if executed < enough.min(jobs) {
        return Err(format!("{executed} of {jobs} jobs were executed").into());
    }
    Ok(Ran { submitted: started - begun, ran: started.elapsed(), executed })
}

fn header(priority_class: u32) -> wire::BuildHeader {
    wire::BuildHeader {
        protocol: 1,
        user: format!("user of class {priority_class}"),
        digest_function: DigestFunction::Blake3 as i32,
        priority_class,
        ..Default::default()
    }
}

fn job(shape: Shape, build: u32, index: u32, count: u32) -> wire::SubmittedJob {
    let name = |index: u32| match shape {
        Shape::Chain => format!("{TIMED}{build} {index}"),
        Shape::Wave | Shape::Flat => format!("build {build} compile src/module-{index}.c"),
    };
    let deps: Vec<u32> = match shape {
        Shape::Flat => Vec::new(),
        Shape::Chain => index.checked_sub(1).into_iter().collect(),
        Shape::Wave if index < WIDTH => Vec::new(),
        Shape::Wave => {
            let wave = index / WIDTH * WIDTH - WIDTH;
            [0, 1, 64].map(|n| wave + (index + n) % WIDTH).into()
        }
    };
    let requested = match shape {
        Shape::Flat => true,
        Shape::Chain => index == count - 1,
        Shape::Wave => index + WIDTH >= count,
    };
    let name_of_it = name(index);
    let exec = ["/usr/bin/cc", "-O2", "-c", name_of_it.as_str(), "-o", "{{OUTPUT_DIR}}/object.o"];
    let job = wire::Job {
        deps: deps.into_iter().map(name).collect(),
        cmds: vec![wire::Command {
            exec: exec.map(|part| Bytes::copy_from_slice(part.as_bytes())).into(),
            ..Default::default()
        }],
        name: name_of_it,
        ..Default::default()
    };
    wire::SubmittedJob { job: Some(job), source_root: None, requested }
}
