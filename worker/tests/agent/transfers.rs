//! How contents get to a job, and what happens when they do not.

use std::time::Duration;

use distbuild_proto::wire::AttemptEnd;
use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::wire::located::Place;
use distbuild_proto::{Address, Digest, DigestFunction, wire};
use libtest_mimic::Trial;

use crate::fake::Table;
use crate::holder::Holder;
use crate::rig::{Job, Rig, dep, text, tree};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_source_comes_from_the_client_once", a_source_comes_once),
        trial("a_source_that_nobody_has_ends_the_attempt_as_lost", lost_source),
        trial("a_dependency_that_nobody_has_is_named", lost_dependency),
        trial("wrong_bytes_never_reach_a_command", wrong_bytes),
        trial("outputs_come_from_the_peer_of_the_assignment", outputs_from_peers),
        trial("instead_of_a_peer_that_is_gone_another_is_asked", another_peer),
        trial("waiting_for_contents_stops_the_clock", waiting_stops_the_clock),
        trial("a_small_source_comes_with_the_answer_to_where_it_is", contents_in_the_answer),
        trial("wrong_bytes_in_the_answer_never_reach_a_command", wrong_contents),
        trial("a_blob_that_another_worker_fetches_holds_up_no_other", waits_hold_up_nobody),
        trial("what_the_worker_holds_is_delivered_on_order", lending),
        trial("a_large_output_of_one_worker_is_read_by_a_job_of_another", large_output),
        trial("the_first_part_of_a_large_blob_is_read_while_the_rest_is_withheld", first_part),
    ]
}

fn held(before: &[Body]) -> Vec<Digest> {
    let held = before.iter().filter_map(|body| match body {
        Body::BlobsHeld(held) => Some(&held.digests),
        _ => None,
    });
    held.flatten().map(|digest| Digest::try_from(digest).unwrap()).collect()
}

async fn a_source_comes_once() {
    let mut rig = Rig::start().await;
    let (source, file) = rig.source("a b.txt", b"from the client");
    let job = || Job { source: Some(source), ..Job::new("cat 'a b.txt'") };
    rig.link.send(job().assign(1)).await;
    let (ended, before) = rig.link.end().await;
    assert_eq!(text(&ended.result.as_ref().unwrap().stdout), "from the client", "{ended:?}");
    assert_eq!(held(&before), [file]);
    assert_eq!(ended.opened, [file.into()]);
    let second = rig.run(2, job()).await;
    assert_eq!(second.opened, [file.into()]);
    assert_eq!(rig.fake.reads_of(&file), 1);
    let lenders: Vec<_> = rig.fake.coordinator.table.lock().reads.clone();
    assert!(lenders.contains(&(file, Some("b1".to_owned()))));
    rig.worker.shutdown().await;
}

async fn lost_source() {
    let mut rig = Rig::start().await;
    let nowhere = DigestFunction::Blake3.digest(b"nowhere");
    let source = rig.fake.store(&tree("f", nowhere));
    let ended = rig.run(1, Job { source: Some(source), ..Job::new("cat f; true") }).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptLostInputs, "{ended:?}");
    assert!(ended.lost_deps.is_empty());
    assert!(ended.reason.contains("nobody has it"), "{}", ended.reason);
    // What is not looked up is not missed.
    let ended = rig.run(2, Job { source: Some(source), ..Job::new("ls") }).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptSucceeded, "{ended:?}");
    rig.worker.shutdown().await;
}

async fn lost_dependency() {
    let mut rig = Rig::start().await;
    let here = rig.run(1, Job::new("echo x >/distbuild/out/f")).await.result.unwrap().output_root;
    let nowhere = DigestFunction::Blake3.digest(b"a directory that is nowhere").into();
    let mut job = Job::new("cat /distbuild/dep/0/f /distbuild/dep/1/f");
    job.deps = vec![dep(&here), dep(&Some(nowhere))];
    let ended = rig.run(2, job).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptLostInputs, "{ended:?}");
    assert_eq!(ended.lost_deps, [1]);
    rig.worker.shutdown().await;
}

async fn wrong_bytes() {
    let mut rig = Rig::start().await;
    let (source, file) = rig.source("f", b"right");
    rig.fake.coordinator.table.lock().blobs.insert(file, "wrong".into());
    let ended = rig.run(1, Job { source: Some(source), ..Job::new("cat f") }).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptInfraError, "{ended:?}");
    assert!(!rig.worker.store().contains(&file));
    rig.worker.shutdown().await;
}

async fn outputs_from_peers() {
    let sockets = tempfile::tempdir().unwrap();
    let listen = Address::Unix(sockets.path().join("w1.sock"));
    let mut first = Rig::start_with(|config| config.peer_listen = Some(listen)).await;
    let address = first.link.hello.peer_address.clone();
    let made = first
        .run(1, Job::new("head -c 1000000 /dev/zero >/distbuild/out/z; echo >/distbuild/out/e"))
        .await;
    let root = made.result.unwrap().output_root;
    let mut second = Rig::start().await;
    let mut job = Job::new("cat /distbuild/dep/0/z | wc -c");
    job.deps = vec![wire::TreeHint { root, peer_addresses: vec![address], local: false }];
    let ended = second.run(1, job).await;
    assert_eq!(text(&ended.result.as_ref().unwrap().stdout).trim(), "1000000", "{ended:?}");
    assert!(ended.bytes_from_peers >= 1_000_000);
    assert!(second.fake.coordinator.table.lock().located.is_empty());
    second.worker.shutdown().await;
    first.worker.shutdown().await;
}

async fn another_peer() {
    let sockets = tempfile::tempdir().unwrap();
    let listen = Address::Unix(sockets.path().join("w1.sock"));
    let mut first = Rig::start_with(|config| config.peer_listen = Some(listen)).await;
    let made = first.run(1, Job::new("echo hi >/distbuild/out/f")).await;
    let root = made.result.unwrap().output_root;
    let mut second = Rig::start().await;
    let peers = wire::Peers { addresses: vec![first.link.hello.peer_address.clone()] };
    let file = DigestFunction::Blake3.digest(b"hi\n");
    for digest in [Digest::try_from(root.clone()).unwrap(), file] {
        second.fake.place(digest, Place::Peers(peers.clone()));
    }
    let mut job = Job::new("cat /distbuild/dep/0/f");
    let peer_addresses = vec!["unix:/nonexistent/peer".to_owned()];
    job.deps = vec![wire::TreeHint { root, peer_addresses, local: false }];
    let ended = second.run(1, job).await;
    assert_eq!(text(&ended.result.as_ref().unwrap().stdout), "hi\n", "{ended:?}");
    second.worker.shutdown().await;
    first.worker.shutdown().await;
}

async fn contents_in_the_answer() {
    let mut rig = Rig::start().await;
    let (source, file) = rig.source("f", b"along");
    rig.fake.place(file, Place::Contents("along".into()));
    rig.link.send(Job { source: Some(source), ..Job::new("cat f") }.assign(1)).await;
    let (ended, before) = rig.link.end().await;
    assert_eq!(text(&ended.result.as_ref().unwrap().stdout), "along", "{ended:?}");
    assert_eq!(held(&before), [file], "others may have it from here");
    assert_eq!(rig.fake.reads_of(&file), 0);
    assert_eq!(ended.bytes_from_peers, 0);
    rig.worker.shutdown().await;
}

async fn wrong_contents() {
    let mut rig = Rig::start().await;
    let (source, file) = rig.source("f", b"right");
    rig.fake.place(file, Place::Contents("wrong".into()));
    let ended = rig.run(1, Job { source: Some(source), ..Job::new("cat f") }).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptInfraError, "{ended:?}");
    assert!(!rig.worker.store().contains(&file));
    rig.worker.shutdown().await;
}

/// The look-up of one blob is answered by "another worker fetches it" and by nothing else.
async fn waits_hold_up_nobody() {
    let mut rig = Rig::start_with(|config| {
        config.limits.filler.small_calls = 1;
        config.limits.filler.call_deadline = Duration::from_secs(3);
    })
    .await;
    let (stuck, stuck_file) = rig.source("stuck", b"stuck");
    rig.fake.place(stuck_file, Place::Waits(true));
    let (free, free_file) = rig.source("free", b"free");
    rig.link.send(Job { source: Some(stuck), ..Job::new("cat stuck") }.assign(1)).await;
    let is_located = |table: &mut Table| table.located.contains(&stuck_file).then_some(());
    rig.fake.coordinator.until(is_located).await;
    // The only call that may be under way waits for others, and is not counted.
    rig.link.send(Job { source: Some(free), ..Job::new("cat free") }.assign(2)).await;
    let (ended, _) = rig.link.end().await;
    assert_eq!((ended.attempt, rig.fake.reads_of(&free_file)), (2, 1), "{ended:?}");
    let (ended, _) = rig.link.end().await;
    assert_eq!(ended.attempt, 1);
    assert_eq!(ended.end(), AttemptEnd::AttemptInfraError, "{ended:?}");
    rig.worker.shutdown().await;
}

async fn lending() {
    let mut rig = Rig::start().await;
    let made = rig.run(1, Job::new("echo hi >/distbuild/out/f")).await;
    let root = Digest::try_from(made.result.unwrap().output_root).unwrap();
    let file = DigestFunction::Blake3.digest(b"hi\n");
    let unknown = DigestFunction::Blake3.digest(b"unknown");
    for (transfer, own_call) in [(7, true), (8, false)] {
        let chunks = rig.fake.order(transfer, &[unknown, file, root], own_call).await;
        assert!(chunks[0].not_found);
        assert_eq!((chunks[1].index, &chunks[1].data[..]), (1, &b"hi\n"[..]));
        assert_eq!(DigestFunction::Blake3.digest(&chunks[2].data), root);
    }
    rig.worker.shutdown().await;
}

/// The look-up is answered only after the job's whole time limit has passed.
async fn waiting_stops_the_clock() {
    let mut rig = Rig::start().await;
    let (source, file) = rig.source("f", b"late");
    let lender = rig.fake.coordinator.table.lock().places.remove(&file).unwrap();
    // Located with a peer that is not there: asked again, with pauses, until the client is named.
    let nobody = wire::Peers { addresses: vec!["unix:/nonexistent/peer".to_owned()] };
    rig.fake.place(file, Place::Peers(nobody));
    let mut job = Job { source: Some(source), ..Job::new("cat f") };
    job.timeout = Duration::from_millis(150);
    rig.link.send(job.assign(1)).await;
    rig.fake.coordinator.until(|table| (table.located.len() >= 3).then_some(())).await;
    rig.fake.place(file, lender);
    let (ended, _) = rig.link.end().await;
    assert_eq!(ended.end(), AttemptEnd::AttemptSucceeded, "{ended:?}");
    let timings = ended.result.unwrap().timings.unwrap();
    assert!(timings.fetch_wait_ms >= 150, "{timings:?}");
    rig.worker.shutdown().await;
}

async fn large_output() {
    let sockets = tempfile::tempdir().unwrap();
    let listen = Address::Unix(sockets.path().join("w1.sock"));
    let mut first = Rig::start_with(|config| config.peer_listen = Some(listen)).await;
    let address = first.link.hello.peer_address.clone();
    let make = "yes distbuild | head -c 9000001 >/distbuild/out/big; chmod +x /distbuild/out/big";
    let made = first.run(1, Job::new(make)).await;
    let root = made.result.unwrap().output_root;
    let mut second = Rig::start().await;
    let read = "cd /distbuild/dep/0; tail -c +5000000 big | cksum; cksum <big; test -x big";
    let mut job = Job::new(read);
    job.deps = vec![wire::TreeHint { root, peer_addresses: vec![address], local: false }];
    let ended = second.run(1, job).await;
    let expected =
        "yes distbuild | head -c 9000001 >/tmp/b; cd /tmp; tail -c +5000000 b | cksum; cksum <b";
    let expected = second.run(2, Job::new(expected)).await.result.unwrap();
    assert_eq!(text(&ended.result.as_ref().unwrap().stdout), text(&expected.stdout), "{ended:?}");
    assert!(ended.bytes_from_peers >= 9_000_001);
    second.worker.shutdown().await;
    first.worker.shutdown().await;
}

/// The rest never comes, and the fetch ends with the job.
async fn first_part() {
    let mut rig = Rig::start().await;
    let data = b"0123456789abcdef".repeat((12 << 20) / 16);
    let mut holder = Holder::start(rig.directory.path(), data);
    let root = rig.fake.store(&tree("big", holder.digest));
    rig.fake.place(root, Place::Coordinator(true));
    let peers = wire::Peers { addresses: vec![holder.address.to_string()] };
    rig.fake.place(holder.digest, Place::Peers(peers));
    holder.permit(3);
    let mut job = Job::new("head -c 1000016 /distbuild/dep/0/big | tail -c 16");
    job.deps = vec![wire::TreeHint { root: Some(root.into()), ..Default::default() }];
    let ended = rig.run(1, job).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptSucceeded, "{ended:?}");
    assert_eq!(text(&ended.result.unwrap().stdout), "0123456789abcdef");
    assert_eq!(holder.ended().await, 3);
    assert!(!rig.worker.store().contains(&holder.digest));
    rig.worker.shutdown().await;
}
