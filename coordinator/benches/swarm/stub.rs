//! Workers that report success at once, with an output tree that nobody will ever read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distbuild_proto::wire::from_worker::Body as FromWorker;
use distbuild_proto::wire::to_worker::Body as ToWorker;
use distbuild_proto::wire::workers_client::WorkersClient;
use distbuild_proto::{Address, DigestFunction, transport, wire};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Failure, client};

/// Jobs of this name are timed: when the one before ended, and when the next one came.
pub(crate) const TIMED: &str = "timed ";

/// When what the next timed job waits for was done, and how long assignments took.
#[derive(Default)]
pub(crate) struct Watch {
    since: HashMap<String, Instant>,
    took: Vec<Duration>,
}

pub(crate) struct Swarm {
    sessions: JoinSet<Result<(), Failure>>,
    watch: Arc<Mutex<Watch>>,
}

impl Swarm {
    /// So many workers of two cores each, one connection each.
    pub(crate) async fn join(address: &Address, workers: u32) -> Result<Self, Failure> {
        let watch = Arc::new(Mutex::new(Watch::default()));
        let mut sessions = JoinSet::new();
        let (joined, mut joins) = mpsc::channel(1);
        for number in 0..workers {
            let (address, watch, joined) = (address.clone(), watch.clone(), joined.clone());
            sessions.spawn(async move { session(&address, number, &watch, joined).await });
        }
        drop(joined);
        let mut count = 0;
        while joins.recv().await.is_some() {
            count += 1;
        }
        if count < workers {
            return Err(format!("only {count} of {workers} workers could join").into());
        }
        Ok(Self { sessions, watch })
    }

    /// A build of one job after the other, in a class before the others; the times from the end of
    /// one to the arrival of the next, without those of the first few.
    pub(crate) async fn chain(
        &self,
        address: &Address,
        jobs: u32,
        warm_up: usize,
    ) -> Result<Vec<Duration>, Failure> {
        client::run(address, client::Shape::Chain, jobs, jobs, 1, || {}).await?;
        let took = std::mem::take(&mut self.watch.lock().took);
        Ok(took.into_iter().skip(warm_up).collect())
    }

    pub(crate) async fn leave(mut self) {
        self.sessions.shutdown().await;
    }
}

async fn session(
    address: &Address,
    number: u32,
    watch: &Mutex<Watch>,
    joined: mpsc::Sender<()>,
) -> Result<(), Failure> {
    let channel = transport::connect(address).await?;
    let (to_coordinator, messages) = mpsc::channel(256);
    let hello = wire::WorkerHello {
        protocol: 1,
        name: format!("stub {number}"),
        store_id: format!("store {number}"),
        properties: [("os", "linux"), ("toolchain", "t1")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        milli_cores: 2000,
        memory_bytes: 4 << 30,
        peer_address: format!("stub-{number}:1"),
        ..Default::default()
    };
    let say = async |body| to_coordinator.send(wire::FromWorker { body: Some(body) }).await;
    say(FromWorker::Hello(hello)).await?;
    let mut client = WorkersClient::new(channel);
    let mut orders = client.session(ReceiverStream::new(messages)).await?.into_inner();
    let mut joined = Some(joined);
    let mut heartbeat = tokio::time::interval(Duration::from_secs(10));
    loop {
        let message = tokio::select! {
            message = orders.message() => message?,
            _ = heartbeat.tick() => {
                say(FromWorker::Heartbeat(wire::Heartbeat {})).await?;
                continue;
            }
        };
        let Some(message) = message else { return Ok(()) };
        match message.body {
            Some(ToWorker::Welcome(_)) => {
                if let Some(joined) = joined.take() {
                    joined.send(()).await?;
                }
            }
            Some(ToWorker::Assign(assign)) => {
                let now = Instant::now();
                let timed = assign.job_name.strip_prefix(TIMED);
                let line = timed.and_then(|rest| rest.split_once(' ')).map(|(line, _)| line);
                if let Some(line) = line {
                    let mut watch = watch.lock();
                    if let Some(since) = watch.since.remove(line) {
                        watch.took.push(now - since);
                    }
                    watch.since.insert(line.to_owned(), Instant::now());
                }
                let attempt = assign.attempt;
                say(FromWorker::AttemptBegun(wire::AttemptBegun { attempt })).await?;
                say(FromWorker::AttemptEnded(success(&assign))).await?;
            }
            _ => {}
        }
    }
}

/// Outputs with a digest of their own, as real ones have.
fn success(assign: &wire::Assign) -> wire::AttemptEnded {
    let root = DigestFunction::Blake3.digest(assign.job_name.as_bytes());
    let content = |text: &'static str| {
        Some(wire::Content { inline: Bytes::from_static(text.as_bytes()), blob: None })
    };
    let result = wire::JobResult {
        output_root: Some(root.into()),
        stdout: content(""),
        stderr: content(""),
        ..Default::default()
    };
    wire::AttemptEnded {
        attempt: assign.attempt,
        end: wire::AttemptEnd::AttemptSucceeded.into(),
        result: Some(result),
        ..Default::default()
    }
}
