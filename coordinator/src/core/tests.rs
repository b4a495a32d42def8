//! The core without its task: what it does in which round.

use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::graph::{Graph, JobId, RawGraph};
use distbuild_proto::wire::build_event::Body;
use distbuild_proto::wire::to_worker;
use distbuild_proto::{DigestFunction, wire};
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
    let directory = tempfile::tempdir().unwrap();
    let store = distbuild_cas::StoreConfig::new(directory.path().join("store"));
    let metadata = Metadata::new(1 << 20);
    let shared = Shared {
        state: State::open(&directory.path().join("state")).unwrap(),
        relay: Relay::default(),
        directories: KnownDirectories::new(metadata.clone()),
        metadata,
        store: distbuild_cas::DiskStore::open(store).unwrap(),
        limits: Arc::new(Limits::default()),
    };
    let (sender, messages) = mpsc::channel(WAITING_MESSAGES);
    let core = Core::new(shared, Pools::default(), sender.downgrade());
    Rig { core, _messages: messages, _sender: sender, _directory: directory }
}

fn properties() -> Properties {
    [("os", "linux")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

impl Rig {
    fn join(&mut self) -> mpsc::Receiver<wire::ToWorker> {
        let hello = wire::WorkerHello {
            name: "w".to_owned(),
            store_id: "s".to_owned(),
            properties: properties().into_iter().collect(),
            milli_cores: 2000,
            ..Default::default()
        };
        let (outbox, orders) = mpsc::channel(64);
        self.core.join(hello, outbox, oneshot::channel().0);
        orders
    }

    /// Independent jobs, of which the first is requested.
    fn submit(&mut self, name: &str, count: usize) -> EventLog {
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
        let submission = Submission {
            build_id: name.to_owned(),
            secret: Bytes::new(),
            header: wire::BuildHeader { no_cache: true, ..Default::default() },
            function: DigestFunction::Blake3,
            plan: Box::new(plan(&graph, &pool_of, &requested, &cached).unwrap()),
            graph: Arc::new(graph),
            submitted: (0..count as u32).collect(),
            positions: (0..count as u32).collect(),
            source_roots: vec![None; count],
            requested,
            ids: vec![JobId::try_from(&[0; 20][..]).unwrap(); count],
            id_bytes: Bytes::from(vec![0; 20 * count]),
            keys: vec![None; count],
            cached,
            pools: vec![properties()],
            pool_of,
            metadata: self.core.shared.metadata.build(DigestFunction::Blake3),
            declared: Default::default(),
        };
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
