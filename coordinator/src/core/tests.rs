//! The core without its task: what it does in which round.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distbuild_proto::action::{Action, ActionParts, Layout};
use distbuild_proto::graph::{Graph, JobId, Platform, RawGraph, Resources};
use distbuild_proto::wire::build_event::Body;
use distbuild_proto::wire::to_worker;
use distbuild_proto::{Digest, DigestFunction, wire};
use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::event_log::EventLog;
use crate::services::submission::plan;

struct Rig {
    core: Core,
    _messages: mpsc::Receiver<Message>,
    _sender: mpsc::Sender<Message>,
    _directory: tempfile::TempDir,
}

fn rig() -> Rig {
    rig_after(Earlier::default(), Limits::default())
}

fn rig_after(earlier: Earlier, limits: Limits) -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let store = distbuild_cas::StoreConfig::new(directory.path().join("store"));
    let metadata = Metadata::new(1 << 20);
    let shared = Shared {
        state: State::open(&directory.path().join("state")).unwrap(),
        relay: Relay::default(),
        directories: KnownDirectories::new(metadata.clone()),
        metadata,
        store: distbuild_cas::DiskStore::open(store).unwrap(),
        limits: Arc::new(limits),
        durable: false,
    };
    let (sender, messages) = mpsc::channel(WAITING_MESSAGES);
    let core = Core::new(shared, Pools::default(), earlier, sender.downgrade());
    Rig { core, _messages: messages, _sender: sender, _directory: directory }
}

fn properties() -> Properties {
    [("os", "linux"), ("input-root", "/distbuild/root")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

impl Rig {
    fn join(&mut self) -> mpsc::Receiver<wire::ToWorker> {
        self.join_with(wire::WorkerHello::default())
    }

    fn join_with(&mut self, hello: wire::WorkerHello) -> mpsc::Receiver<wire::ToWorker> {
        let hello = wire::WorkerHello {
            name: "w".to_owned(),
            store_id: "s".to_owned(),
            properties: properties().into_iter().collect(),
            milli_cores: 2000,
            ..hello
        };
        let (outbox, orders) = mpsc::channel(64);
        self.core.join(hello, outbox, oneshot::channel().0);
        orders
    }

    fn execute(&mut self, id: &str) -> Accepted {
        let action = Action::new(ActionParts {
            layout: Layout::Root,
            steps: Vec::new(),
            input_root: DigestFunction::Sha256.digest(b"root"),
            output_paths: Vec::new(),
            platform: Platform::default(),
            timeout: None,
            resources: Resources { milli_cores: 1000, memory_bytes: 0 },
            network: false,
            toolchain: String::new(),
            salt: String::new(),
            declared_id: None,
        });
        let execution = Box::new(Execution {
            id: id.to_owned(),
            name: "compile".to_owned(),
            user: String::new(),
            class: 100,
            function: DigestFunction::Sha256,
            action: action.unwrap(),
            selector: properties(),
        });
        let (reply, mut answer) = oneshot::channel();
        self.core.handle_message(Message::Execute { execution, reply });
        self.rounds();
        answer.try_recv().unwrap().unwrap()
    }

    fn rounds(&mut self) {
        while self.core.round() {}
    }

    /// The only worker ends an attempt.
    fn end(&mut self, attempt: u64, end: wire::AttemptEnd, root: Option<Digest>) {
        let result = wire::JobResult { output_root: root.map(Into::into), ..Default::default() };
        let ended = wire::AttemptEnded {
            attempt,
            end: end.into(),
            result: Some(result),
            ..Default::default()
        };
        self.core.attempt_ended(1, ended);
        self.rounds();
    }

    /// Independent jobs, of which the first is requested.
    fn submit(&mut self, name: &str, count: usize) -> EventLog {
        self.submit_as(name, count, |_| {})
    }

    /// The same, by a client that comes back.
    fn submit_resumable(&mut self, name: &str, count: usize) -> EventLog {
        self.submit_as(name, count, |submission| submission.header.resumable = true)
    }

    fn submit_as(
        &mut self,
        name: &str,
        count: usize,
        change: impl FnOnce(&mut Submission),
    ) -> EventLog {
        let mut raw = RawGraph::new("");
        for index in 0..count {
            let name = format!("{name} {index}");
            let exec = vec![Bytes::from_static(b"echo"), Bytes::from(name.clone())];
            raw.push(wire::Job {
                name,
                cmds: vec![wire::Command { exec, ..Default::default() }],
                ..Default::default()
            });
        }
        let graph = Graph::validate(raw).unwrap();
        let requested: Vec<bool> = (0..count).map(|index| index == 0).collect();
        let (pool_of, cached) = (vec![0; count], vec![None; count]);
        let mut submission = Submission {
            build_id: name.to_owned(),
            secret: Bytes::new(),
            header: wire::BuildHeader { no_cache: true, ..Default::default() },
            function: DigestFunction::Blake3,
            plan: Box::new(plan(&graph, &pool_of, &requested, &cached).unwrap()),
            work: Work::Graph(Box::new(GraphWork {
                graph: Arc::new(graph),
                submitted: (0..count as u32).collect(),
                positions: (0..count as u32).collect(),
                source_roots: vec![None; count],
                ids: vec![JobId::try_from(&[0; 20][..]).unwrap(); count],
                keys: vec![None; count],
            })),
            requested,
            id_bytes: Bytes::from(vec![0; 20 * count]),
            cached,
            pools: vec![properties()],
            pool_of,
            metadata: self.core.shared.metadata.build(DigestFunction::Blake3),
            declared: Default::default(),
            resumed: None,
        };
        change(&mut submission);
        self.core.submit(submission).unwrap().events
    }
}

/// Jobs whose end the log tells so far.
fn finished(log: &EventLog) -> usize {
    let mut count = 0;
    while let Some(Some(events)) = log.next().now_or_never() {
        let ends = |event: &&wire::BuildEvent| matches!(event.body, Some(Body::JobFinished(_)));
        count += events.events.iter().filter(ends).count();
    }
    count
}

#[tokio::test]
async fn a_small_build_does_not_wait_for_the_ends_of_a_large_ones_jobs() {
    let mut rig = rig();
    let mut orders = rig.join();
    let count = 5 * EFFECTS_PER_ROUND;
    // All but one of them are not needed: they end as soon as they are submitted.
    let large = rig.submit("large", count);
    assert!(rig.core.round());
    rig.submit("small", 1);
    assert!(rig.core.round());
    let mut assigned = Vec::new();
    while let Ok(order) = orders.try_recv() {
        if let Some(to_worker::Body::Assign(assign)) = order.body {
            assigned.push(assign.job_name);
        }
    }
    assert_eq!(assigned, ["large 0", "small 0"]);
    let told = finished(&large);
    assert!(told <= 2 * EFFECTS_PER_ROUND, "{told} of {count} in two rounds");
    while rig.core.round() {}
    assert_eq!(told + finished(&large), count - 1);
}

#[tokio::test]
async fn an_ended_build_is_forgotten_a_part_at_a_time() {
    let mut rig = rig();
    let count = 5 * EFFECTS_PER_ROUND;
    let large = rig.submit("large", count);
    rig.core.client_report(BuildId(1), ClientReport::Cancel);
    let mut rounds = 1;
    while rig.core.round() {
        rounds += 1;
    }
    assert!(rounds > 5, "{rounds} rounds");
    assert_eq!(finished(&large), count);
    assert!(rig.core.builds.is_empty() && rig.core.forgotten.is_empty());
}

/// What a worker is told, but for the welcome and acknowledgements.
fn told(orders: &mut mpsc::Receiver<wire::ToWorker>) -> Vec<to_worker::Body> {
    let orders = std::iter::from_fn(|| orders.try_recv().ok()).filter_map(|order| order.body);
    orders.filter(|body| !matches!(body, to_worker::Body::Welcome(_))).collect()
}

#[tokio::test]
async fn an_execution_is_assigned_as_it_stands_and_is_no_build_that_people_see() {
    let mut rig = rig();
    let mut orders = rig.join();
    rig.execute("e");
    let told = told(&mut orders);
    let [to_worker::Body::Assign(assign)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(
        (assign.job_name.as_str(), &assign.build_ids[..]),
        ("compile", &["e".to_owned()][..])
    );
    assert_eq!(assign.digest_function, DigestFunction::Sha256 as i32);
    assert!(rig.core.status().builds.is_empty());
}

#[tokio::test]
async fn the_outputs_of_a_failed_execution_have_holders_until_the_edge_lets_go() {
    let mut rig = rig();
    let mut orders = rig.join();
    let Accepted { build, .. } = rig.execute("e");
    let root = DigestFunction::Sha256.digest(b"outputs");
    rig.end(1, wire::AttemptEnd::AttemptFailed, Some(root));
    assert_eq!(rig.core.sessions_with(&root), [1]);
    told(&mut orders);
    rig.core.handle_message(Message::LetGo { build });
    rig.rounds();
    assert!(rig.core.sessions_with(&root).is_empty());
    let told = told(&mut orders);
    let released = matches!(&told[..], [to_worker::Body::ReleaseBuild(it)] if it.build_id == "e");
    assert!(released, "{told:?}");
}

#[tokio::test]
async fn an_execution_that_the_edge_lets_go_of_is_cancelled() {
    let mut rig = rig();
    let mut orders = rig.join();
    let Accepted { build, events } = rig.execute("e");
    told(&mut orders);
    rig.core.handle_message(Message::LetGo { build });
    rig.rounds();
    let told = told(&mut orders);
    let cancelled =
        matches!(&told[..], [to_worker::Body::CancelAttempt(_), to_worker::Body::ReleaseBuild(_)]);
    assert!(cancelled, "{told:?}");
    rig.end(1, wire::AttemptEnd::AttemptCancelled, None);
    assert_eq!(finished(&events), 1);
    assert!(rig.core.builds.is_empty());
}

#[tokio::test]
async fn outputs_that_are_lost_before_the_edge_has_them_are_made_again() {
    let mut rig = rig();
    let mut orders = rig.join();
    let Accepted { build, .. } = rig.execute("e");
    let root = DigestFunction::Sha256.digest(b"outputs");
    rig.end(1, wire::AttemptEnd::AttemptSucceeded, Some(root));
    told(&mut orders);
    rig.core.client_report(build, ClientReport::OutputsMissing(0));
    rig.rounds();
    let told = told(&mut orders);
    assert!(matches!(&told[..], [to_worker::Body::Assign(_)]), "{told:?}");
    rig.end(2, wire::AttemptEnd::AttemptSucceeded, Some(root));
    rig.core.client_report(build, ClientReport::Delivered(vec![0]));
    rig.rounds();
    assert!(rig.core.builds.is_empty());
}

#[tokio::test]
async fn a_job_that_waits_although_a_worker_has_room_is_shown_and_gets_it() {
    let mut rig = rig();
    rig.core.scheduler.plant(sched::Planted::LostWakeUp);
    let mut orders = rig.join();
    for name in ["a", "b", "c"] {
        rig.submit(name, 1);
        rig.rounds();
    }
    assert_eq!(told(&mut orders).len(), 2);
    rig.end(1, wire::AttemptEnd::AttemptFailed, None);
    let assigned = |body: &to_worker::Body| matches!(body, to_worker::Body::Assign(_));
    assert!(!told(&mut orders).iter().any(assigned));
    assert_eq!(rig.core.status().stalls, 0);
    tokio::time::pause();
    let stall_after = Duration::from_millis(rig.core.shared.limits.scheduler.stall_after_ms);
    for _ in 0..2 {
        tokio::time::advance(stall_after).await;
        rig.rounds();
    }
    assert!(told(&mut orders).iter().any(assigned));
    let status = rig.core.status();
    let text = "job \"c 0\" of build c was queued for 10 s although a worker had room for it";
    assert_eq!((status.stalls, status.last_stall.as_str()), (1, text));
}

/// What a worker brings that ran an attempt of this build before the coordinator was started.
fn bringing(build_id: &str) -> wire::WorkerHello {
    let origin = wire::AttemptOrigin {
        build_id: build_id.to_owned(),
        number: 1,
        action_key: Bytes::from(vec![1; 32]),
        ..Default::default()
    };
    let resources = Some(wire::Resources { milli_cores: 2000, memory_bytes: 0 });
    wire::WorkerHello {
        resume_session: 5,
        resume_secret: Bytes::from_static(b"secret"),
        held_attempts: vec![wire::HeldAttempt { attempt: 7, origin: Some(origin), resources }],
        ..Default::default()
    }
}

fn earlier(build_id: &str) -> Earlier {
    let session = crate::state::KnownSession {
        store_name: "s".to_owned(),
        id: 5,
        secret: Bytes::from_static(b"secret"),
    };
    Earlier { start: 1, sessions: vec![session], builds: vec![build_id.to_owned()] }
}

fn bodies(orders: &mut mpsc::Receiver<wire::ToWorker>) -> Vec<to_worker::Body> {
    std::iter::from_fn(|| orders.try_recv().ok()).filter_map(|message| message.body).collect()
}

#[tokio::test]
async fn a_session_goes_on_and_what_runs_for_a_build_that_is_awaited_goes_on_with_it() {
    let mut rig = rig_after(earlier("b"), Limits::default());
    let (reply, mut recovered) = oneshot::channel();
    rig.core.handle_message(Message::Recovered { reply });
    assert!(recovered.try_recv().is_err(), "submissions wait for the worker");
    let mut orders = rig.join_with(bringing("b"));
    assert!(recovered.try_recv().is_ok());
    rig.rounds();
    let told = bodies(&mut orders);
    let went_on =
        matches!(&told[..], [to_worker::Body::Welcome(it)] if it.resumed && it.session == 5);
    assert!(went_on, "{told:?}");
    rig.submit("other", 1);
    rig.rounds();
    assert_eq!(bodies(&mut orders).len(), 0, "the worker is full");
}

#[tokio::test]
async fn what_runs_for_a_build_that_nobody_awaits_is_cancelled() {
    let mut rig = rig_after(earlier("b"), Limits::default());
    let mut orders = rig.join_with(bringing("another"));
    rig.rounds();
    let told = bodies(&mut orders);
    assert!(matches!(&told[..], [_, to_worker::Body::CancelAttempt(it)] if it.attempt == 7));
    rig.core.attempt_ended(
        5,
        wire::AttemptEnded {
            attempt: 7,
            end: wire::AttemptEnd::AttemptCancelled.into(),
            ..Default::default()
        },
    );
    rig.submit("other", 1);
    rig.rounds();
    let told = bodies(&mut orders);
    assert!(told.iter().any(|it| matches!(it, to_worker::Body::Assign(_))), "{told:?}");
}

#[tokio::test]
async fn who_does_not_know_the_secret_of_a_session_begins_anew() {
    let mut rig = rig_after(earlier("b"), Limits::default());
    let hello = wire::WorkerHello { resume_secret: Bytes::from_static(b"guess"), ..bringing("b") };
    let told = bodies(&mut rig.join_with(hello));
    assert!(matches!(&told[..], [to_worker::Body::Welcome(it)] if !it.resumed && it.session == 6));
}

#[tokio::test]
async fn a_build_whose_client_does_not_come_back_in_time_is_cancelled() {
    let limits = Limits { client_reconnect: std::time::Duration::ZERO, ..Limits::default() };
    let mut rig = rig_after(Earlier::default(), limits);
    let _orders = rig.join();
    let log = rig.submit_resumable("b", 1);
    rig.rounds();
    let build = rig.core.build_by_name("b").unwrap();
    let reader = crate::event_log::Reader::default();
    rig.core.handle_message(Message::ClientGone { build, reader, closed: false });
    assert!(rig.core.builds[&build].stopped.is_none());
    let resume = wire::ResumeBuild { build_id: "b".to_owned(), ..Default::default() };
    let attached = rig.core.attach(&resume).unwrap();
    rig.core.handle_message(Message::ClientGone { build, reader, closed: true });
    rig.core.expire_recovery();
    assert!(rig.core.builds[&build].stopped.is_none(), "the stream that ended is an old one");
    let reader = attached.reader;
    rig.core.handle_message(Message::ClientGone { build, reader, closed: false });
    rig.core.expire_recovery();
    rig.rounds();
    assert!(log.next_for(reader).await.unwrap().unwrap().events.iter().any(|event| {
        matches!(&event.body, Some(Body::BuildFinished(it)) if it.outcome() == wire::Outcome::Cancelled)
    }));
}

#[tokio::test]
async fn an_end_that_was_written_down_and_not_heard_of_is_told_once_to_client_and_worker() {
    let mut rig = rig_after(earlier("b"), Limits::default());
    let mut orders = rig.join_with(bringing("b"));
    bodies(&mut orders);
    let finished = wire::AttemptFinished {
        number: 1,
        outcome: wire::Outcome::Failed.into(),
        exit_code: 7,
        ..Default::default()
    };
    let end = crate::state::AttemptEnd {
        build_id: "b".to_owned(),
        finished,
        action_key: [1; 32],
        result: Some(wire::JobResult { exit_code: 7, ..Default::default() }),
        holders: Vec::new(),
    };
    let heard = wire::HeardAttempt { number: 1, running: true, ..Default::default() };
    let log = rig.submit_as("b", 1, |submission| {
        submission.header.resumable = true;
        let (ends, attempts) = ([(0, end)].into(), [(0, heard)].into());
        let resumed = Resumed { seq: 5, ends, attempts, ..Default::default() };
        submission.resumed = Some(Box::new(resumed));
    });
    rig.rounds();
    let told = log.next().await.unwrap().events;
    let seqs: Vec<u64> = told.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [6, 7, 8]);
    let told: Vec<Body> = told.into_iter().filter_map(|event| event.body).collect();
    assert!(
        matches!(
            &told[..],
            [Body::AttemptFinished(attempt), Body::JobFinished(job), Body::BuildFinished(_)]
                if attempt.exit_code == 7 && job.outcome() == wire::Outcome::Failed
        ),
        "{told:?}"
    );
    let asked = bodies(&mut orders);
    assert!(
        matches!(&asked[0], to_worker::Body::CancelAttempt(it) if it.attempt == 7),
        "{asked:?}"
    );
    let ended = wire::AttemptEnded { attempt: 7, ..Default::default() };
    rig.core.attempt_ended(5, ended);
    rig.rounds();
    let acknowledged = orders.try_recv().unwrap().acknowledged;
    assert_eq!(acknowledged, [7]);
}
