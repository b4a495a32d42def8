//! A worker and a client that do what a test says, and nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use distbuild_coordinator::{Archive, Config, Coordinator, Limits, WritableInstances};
use distbuild_proto::wire::build_event::Body as Event;
use distbuild_proto::wire::build_request::Body as Ask;
use distbuild_proto::wire::builds_client::BuildsClient;
use distbuild_proto::wire::from_worker::Body as FromWorker;
use distbuild_proto::wire::to_worker::Body as ToWorker;
use distbuild_proto::wire::workers_client::WorkersClient;
use distbuild_proto::{
    Address, Digest, DigestFunction, Directory, FileNode, Name, transport, wire,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// How long anything in these tests may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something, for a while.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come in time"),
    }
}

/// A coordinator on a Unix socket in a directory that goes with it.
pub(crate) struct Farm {
    pub(crate) coordinator: Option<Coordinator>,
    pub(crate) address: Address,
    directory: tempfile::TempDir,
}

impl Farm {
    pub(crate) async fn start() -> Self {
        let mut limits = Limits { reconnect: Duration::from_millis(1), ..Limits::default() };
        limits.scheduler.retry_elsewhere_ms = 1;
        Self::with(limits).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::Unix(directory.path().join("grpc.sock"));
        let state = directory.path().join("state");
        let config = Config {
            listen: address.clone(),
            state,
            exclusive: true,
            writable_instances: WritableInstances::default(),
            limits,
        };
        let coordinator = Coordinator::start(config).await.unwrap();
        Self { coordinator: Some(coordinator), address, directory }
    }

    /// Shuts the coordinator down and starts one on the same state.
    pub(crate) async fn restart(&mut self) {
        if let Some(coordinator) = self.coordinator.take() {
            coordinator.shutdown().await;
        }
        let state = self.directory.path().join("state");
        let limits = Limits::default();
        let config = Config {
            listen: self.address.clone(),
            state,
            exclusive: true,
            writable_instances: WritableInstances::default(),
            limits,
        };
        self.coordinator = Some(Coordinator::start(config).await.unwrap());
    }

    /// The directory of the coordinator's own store, which several processes may use.
    pub(crate) fn store_path(&self) -> std::path::PathBuf {
        self.directory.path().join("state").join(Archive::STORE)
    }

    pub(crate) async fn channel(&self) -> Channel {
        transport::connect(&self.address).await.unwrap()
    }
}

/// A worker that is told what to answer.
pub(crate) struct FakeWorker {
    pub(crate) to_coordinator: mpsc::Sender<wire::FromWorker>,
    pub(crate) from_coordinator: tonic::Streaming<wire::ToWorker>,
    pub(crate) session: u64,
    pub(crate) secret: Bytes,
    pub(crate) channel: Channel,
    name: String,
}

impl FakeWorker {
    pub(crate) fn hello(name: &str) -> wire::WorkerHello {
        wire::WorkerHello {
            protocol: 1,
            name: name.to_owned(),
            store_id: format!("store of {name}"),
            properties: [("os", "linux"), ("toolchain", "t1"), ("input-root", "/distbuild/root")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            milli_cores: 1000,
            memory_bytes: 1 << 30,
            peer_address: format!("{name}:1"),
            ..Default::default()
        }
    }

    pub(crate) async fn join(farm: &Farm, name: &str) -> Self {
        Self::join_with(farm, Self::hello(name)).await
    }

    pub(crate) async fn join_with(farm: &Farm, hello: wire::WorkerHello) -> Self {
        let channel = farm.channel().await;
        let (to_coordinator, messages) = mpsc::channel(64);
        let name = hello.name.clone();
        let hello = wire::FromWorker { body: Some(FromWorker::Hello(hello)) };
        to_coordinator.send(hello).await.unwrap();
        let mut client = WorkersClient::new(channel.clone());
        let session = client.session(ReceiverStream::new(messages));
        let mut from_coordinator = soon("session", session).await.unwrap().into_inner();
        let welcome = soon("welcome", from_coordinator.message()).await.unwrap().unwrap();
        let Some(ToWorker::Welcome(welcome)) = welcome.body else { panic!("no welcome") };
        let (session, secret) = (welcome.session, welcome.lend_secret);
        Self { to_coordinator, from_coordinator, session, secret, channel, name }
    }

    /// Says something; a session that has ended hears nothing.
    pub(crate) async fn send(&self, body: FromWorker) {
        let _ = self.to_coordinator.send(wire::FromWorker { body: Some(body) }).await;
    }

    /// The next message, whatever it says.
    pub(crate) async fn message(&mut self) -> wire::ToWorker {
        let message = soon("message to the worker", self.from_coordinator.message()).await;
        message.unwrap().unwrap()
    }

    /// The next message that is no heartbeat or release and not only an acknowledgement.
    pub(crate) async fn next(&mut self) -> ToWorker {
        loop {
            match self.message().await.body {
                None | Some(ToWorker::Heartbeat(_) | ToWorker::ReleaseBuild(_)) => {}
                Some(body) => return body,
            }
        }
    }

    pub(crate) async fn assigned(&mut self) -> wire::Assign {
        match self.next().await {
            ToWorker::Assign(assign) => assign,
            other => panic!("{} expected a job, not {other:?}", self.name),
        }
    }

    /// Answers a check: these trees are whole, or none is.
    pub(crate) async fn confirm(&mut self, whole: bool) -> usize {
        match self.next().await {
            ToWorker::CheckTrees(check) => {
                let complete = vec![u8::from(whole); check.claims.len()].into();
                let checked = wire::TreesChecked { request: check.request, complete };
                self.send(FromWorker::TreesChecked(checked)).await;
                check.claims.len()
            }
            other => panic!("{} expected a check, not {other:?}", self.name),
        }
    }

    /// Reports success with an output tree that holds one file with these contents.
    pub(crate) async fn succeed(&self, assign: &wire::Assign, contents: &str) -> Digest {
        let root = tree(contents).0;
        let result = wire::JobResult {
            output_root: Some(root.into()),
            stdout: Some(wire::Content {
                inline: Bytes::copy_from_slice(format!("made {contents}\n").as_bytes()),
                blob: None,
            }),
            ..Default::default()
        };
        self.end(assign, wire::AttemptEnd::AttemptSucceeded, Some(result)).await;
        root
    }

    pub(crate) async fn fail(&self, assign: &wire::Assign, exit_code: i32) {
        let result = wire::JobResult { exit_code, ..Default::default() };
        self.end(assign, wire::AttemptEnd::AttemptFailed, Some(result)).await;
    }

    pub(crate) async fn end(
        &self,
        assign: &wire::Assign,
        end: wire::AttemptEnd,
        result: Option<wire::JobResult>,
    ) {
        let ended = wire::AttemptEnded {
            attempt: assign.attempt,
            end: end.into(),
            result,
            reason: format!("{end:?}"),
            ..Default::default()
        };
        self.send(FromWorker::AttemptEnded(ended)).await;
    }

    /// Where a blob is, once that is known.
    pub(crate) async fn locate(&self, attempt: u64, digest: Digest) -> wire::located::Place {
        let mut answers = self.locate_all(attempt, &[digest]).await;
        loop {
            let answer = soon("location", answers.message()).await.unwrap().unwrap();
            match answer.located.into_iter().next().unwrap().place.unwrap() {
                wire::located::Place::Waits(_) => {}
                place => return place,
            }
        }
    }

    /// All that is said about where sources are.
    pub(crate) async fn locate_all(
        &self,
        attempt: u64,
        digests: &[Digest],
    ) -> Streaming<wire::LocateResponse> {
        let wanted = |digest: &Digest| wire::WantedBlob {
            digest: Some((*digest).into()),
            ..Default::default()
        };
        let blobs = digests.iter().map(wanted).collect();
        let request = wire::LocateRequest { session: self.session, attempt, blobs };
        WorkersClient::new(self.channel.clone()).locate(request).await.unwrap().into_inner()
    }
}

/// A directory with one file `f` of these contents: digest and blob.
pub(crate) fn tree(contents: &str) -> (Digest, Bytes) {
    let node = FileNode {
        name: Name::new(b"f").unwrap(),
        digest: DigestFunction::Blake3.digest(contents.as_bytes()),
        executable: false,
    };
    let directory = Directory::new(vec![node], vec![], vec![]).unwrap();
    directory.encode_with_digest(DigestFunction::Blake3)
}

/// A job that runs a program named after it, with what differs from that.
pub(crate) fn job(name: &str, deps: &[&str]) -> wire::SubmittedJob {
    let exec = vec![Bytes::copy_from_slice(name.as_bytes())];
    let job = wire::Job {
        name: name.to_owned(),
        deps: deps.iter().map(|dep| (*dep).to_owned()).collect(),
        cmds: vec![wire::Command { exec, ..Default::default() }],
        ..Default::default()
    };
    wire::SubmittedJob { job: Some(job), source_root: None, requested: true }
}

/// A client's end of a build.
pub(crate) struct FakeBuild {
    pub(crate) requests: mpsc::Sender<wire::BuildRequest>,
    events: tonic::Streaming<wire::BuildEvents>,
    pending: std::collections::VecDeque<Event>,
    pub(crate) build_id: String,
    pub(crate) secret: Bytes,
}

pub(crate) fn header() -> wire::BuildHeader {
    wire::BuildHeader {
        protocol: 1,
        user: "tester".to_owned(),
        digest_function: DigestFunction::Blake3 as i32,
        ..Default::default()
    }
}

impl FakeBuild {
    pub(crate) async fn submit(
        farm: &Farm,
        header: wire::BuildHeader,
        directories: Vec<Bytes>,
        jobs: Vec<wire::SubmittedJob>,
    ) -> Result<Self, tonic::Status> {
        let (requests, messages) = mpsc::channel(64);
        for body in [
            Ask::Header(header),
            Ask::Directories(wire::DirectoryBatch { blobs: directories }),
            Ask::Jobs(wire::JobBatch { jobs }),
            Ask::Run(wire::RunBuild {}),
        ] {
            requests.send(wire::BuildRequest { body: Some(body) }).await.unwrap();
        }
        let mut client = BuildsClient::new(farm.channel().await);
        let events = soon("start", client.build(ReceiverStream::new(messages))).await?;
        let mut build = Self {
            requests,
            events: events.into_inner(),
            pending: std::collections::VecDeque::new(),
            build_id: String::new(),
            secret: Bytes::new(),
        };
        let Some(Event::BuildStarted(started)) = build.next().await else { panic!("no start") };
        build.build_id = started.build_id;
        build.secret = started.lend_secret;
        Ok(build)
    }

    pub(crate) async fn run(farm: &Farm, jobs: Vec<wire::SubmittedJob>) -> Self {
        Self::submit(farm, header(), vec![], jobs).await.unwrap()
    }

    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            let events = soon("event", self.events.message()).await.unwrap()?;
            self.pending.extend(events.events.into_iter().filter_map(|event| event.body));
        }
    }

    pub(crate) async fn ask(&self, body: Ask) {
        self.requests.send(wire::BuildRequest { body: Some(body) }).await.unwrap();
    }

    /// Waits for the event that `pick` picks.
    pub(crate) async fn wait<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            let event = self.next().await.expect("the build ended before the event");
            if let Some(picked) = pick(event) {
                return picked;
            }
        }
    }

    /// Everything to the end: how each job ended, by its place, and the finish.
    pub(crate) async fn finish(&mut self) -> Finished {
        let mut finished = Finished::default();
        while let Some(event) = self.next().await {
            match event {
                Event::JobFinished(job) => {
                    let earlier = finished.jobs.insert(job.job, job);
                    assert!(earlier.is_none(), "a job ended twice");
                }
                Event::AttemptFinished(attempt) => finished.attempts.push(attempt),
                Event::BuildFinished(build) => finished.build = Some(build),
                _ => {}
            }
        }
        finished
    }
}

#[derive(Debug, Default)]
pub(crate) struct Finished {
    pub(crate) jobs: BTreeMap<u32, wire::JobFinished>,
    pub(crate) attempts: Vec<wire::AttemptFinished>,
    pub(crate) build: Option<wire::BuildFinished>,
}

impl Finished {
    pub(crate) fn outcomes(&self) -> Vec<wire::Outcome> {
        self.jobs.values().map(wire::JobFinished::outcome).collect()
    }
}
