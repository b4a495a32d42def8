//! Source blobs: who may fetch them from the client, and how the bytes travel.

use bytes::Bytes;
use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::wire::from_worker::Body as FromWorker;
use distbuild_proto::wire::lend_request::Body;
use distbuild_proto::wire::located::Place;
use distbuild_proto::{Digest, DigestFunction, wire};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::fake::{FakeBuild, FakeWorker, Farm, header, job, soon, tree};

fn with_source(name: &str, root: distbuild_proto::Digest) -> wire::SubmittedJob {
    wire::SubmittedJob { source_root: Some(root.into()), ..job(name, &[]) }
}

#[tokio::test]
async fn the_first_worker_fetches_from_the_client_and_the_second_from_the_first() {
    let farm = Farm::start().await;
    let mut one = FakeWorker::join(&farm, "one").await;
    let mut two = FakeWorker::join(&farm, "two").await;
    let (root, directory) = tree("source");
    let source = DigestFunction::Blake3.digest(b"source");
    let jobs = vec![with_source("a", root), with_source("b", root)];
    let build = FakeBuild::submit(&farm, header(), vec![directory], jobs).await.unwrap();
    let (first, second) = (one.assigned().await, two.assigned().await);
    match one.locate(first.attempt, source).await {
        Place::LenderBuild(build_id) => assert_eq!(build_id, build.build_id),
        other => panic!("{other:?}"),
    }
    let held = async {
        one.send(FromWorker::BlobsHeld(wire::BlobsHeld { digests: vec![source.into()] })).await;
    };
    let (place, ()) = tokio::join!(two.locate(second.attempt, source), held);
    match place {
        Place::Peers(peers) => assert_eq!(peers.addresses, ["one:1"]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn source_directories_come_from_the_coordinator_and_unknown_blobs_from_nobody() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let (root, directory) = tree("source");
    let _build =
        FakeBuild::submit(&farm, header(), vec![directory.clone()], vec![with_source("a", root)])
            .await
            .unwrap();
    let assign = worker.assigned().await;
    assert!(matches!(worker.locate(assign.attempt, root).await, Place::Coordinator(true)));
    let mut blobs = BlobsClient::new(farm.channel().await);
    let request = wire::ReadRequest { digests: vec![root.into()], place: None };
    let mut answer = blobs.read(request).await.unwrap().into_inner();
    let chunks = soon("directory", answer.message()).await.unwrap().unwrap().chunks;
    assert_eq!(chunks[0].data, directory);
    let unknown = DigestFunction::Blake3.digest(b"never declared");
    assert!(matches!(worker.locate(assign.attempt, unknown).await, Place::Lost(_)));
}

#[tokio::test]
async fn a_client_lends_through_the_coordinator() {
    let farm = Farm::start().await;
    let _worker = FakeWorker::join(&farm, "w").await;
    let (root, directory) = tree("source");
    let source = DigestFunction::Blake3.digest(b"source");
    let build = FakeBuild::submit(&farm, header(), vec![directory], vec![with_source("a", root)])
        .await
        .unwrap();
    let mut blobs = BlobsClient::new(farm.channel().await);
    let denied = lend(&mut blobs, &build, Bytes::from_static(b"guess")).await.unwrap_err();
    assert_eq!(denied.code(), tonic::Code::PermissionDenied);
    let (deliveries, mut orders) = lend(&mut blobs, &build, build.secret.clone()).await.unwrap();
    let request = wire::ReadRequest {
        digests: vec![source.into()],
        place: Some(wire::read_request::Place::LenderBuild(build.build_id.clone())),
    };
    let mut answer = blobs.read(request).await.unwrap().into_inner();
    let order = soon("order", orders.message()).await.unwrap().unwrap();
    assert_eq!(order.digests, [source.into()]);
    assert!(!order.own_call);
    deliveries.send(delivery(order.transfer, &[b"source"])).await.unwrap();
    let chunks = soon("blob", answer.message()).await.unwrap().unwrap().chunks;
    assert_eq!(&chunks[0].data[..], b"source");
}

/// The blob is larger than what is answered on the stream.
#[tokio::test]
async fn a_large_blob_is_delivered_by_a_call_of_its_own() {
    let farm = Farm::start().await;
    let _worker = FakeWorker::join(&farm, "w").await;
    let build = FakeBuild::submit(&farm, header(), vec![], vec![job("a", &[])]).await.unwrap();
    let mut blobs = BlobsClient::new(farm.channel().await);
    let (_deliveries, mut orders) = lend(&mut blobs, &build, build.secret.clone()).await.unwrap();
    let large = vec![7; 2 << 20];
    let request = wire::ReadRequest {
        digests: vec![DigestFunction::Blake3.digest(&large).into()],
        place: Some(wire::read_request::Place::LenderBuild(build.build_id.clone())),
    };
    let mut answer = blobs.read(request).await.unwrap().into_inner();
    let order = soon("order", orders.message()).await.unwrap().unwrap();
    assert!(order.own_call);
    let chunk = wire::BlobChunk { data: large.clone().into(), last: true, ..Default::default() };
    let delivery = wire::DeliverRequest { transfer: order.transfer, chunks: vec![chunk] };
    blobs.deliver(tokio_stream::once(delivery)).await.unwrap();
    let chunks = soon("blob", answer.message()).await.unwrap().unwrap().chunks;
    assert_eq!(chunks[0].data, large);
}

/// What a worker asks for, what the client is asked for, and what the worker gets: one message each.
#[tokio::test]
async fn small_sources_that_are_asked_for_together_are_ordered_together_and_come_in_the_answer() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let names = ["one", "two", "three"];
    let files: Vec<_> =
        names.iter().map(|name| DigestFunction::Blake3.digest(name.as_bytes())).collect();
    let (trees, jobs): (Vec<_>, Vec<_>) = names
        .iter()
        .map(|name| {
            let (root, directory) = tree(name);
            (directory, with_source(name, root))
        })
        .unzip();
    let build = FakeBuild::submit(&farm, header(), trees, jobs).await.unwrap();
    let attempt = worker.assigned().await.attempt;
    let mut blobs = BlobsClient::new(farm.channel().await);
    let (deliveries, mut orders) = lend(&mut blobs, &build, build.secret.clone()).await.unwrap();
    let mut answers = worker.locate_all(attempt, &files).await;
    let order = soon("order", orders.message()).await.unwrap().unwrap();
    let ordered: Vec<_> =
        order.digests.iter().map(|digest| Digest::try_from(digest).unwrap()).collect();
    assert_eq!(ordered, files);
    let contents = names.map(str::as_bytes);
    deliveries.send(delivery(order.transfer, &contents)).await.unwrap();
    let answer = soon("answer", answers.message()).await.unwrap().unwrap();
    let places: Vec<_> = answer.located.into_iter().filter_map(|located| located.place).collect();
    assert_eq!(places, names.map(|name| Place::Contents(Bytes::from_static(name.as_bytes()))));
    assert!(soon("end", answers.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn what_the_client_does_not_deliver_the_worker_is_sent_to_read() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let (root, directory) = tree("source");
    let source = DigestFunction::Blake3.digest(b"source");
    let build = FakeBuild::submit(&farm, header(), vec![directory], vec![with_source("a", root)])
        .await
        .unwrap();
    let attempt = worker.assigned().await.attempt;
    let mut blobs = BlobsClient::new(farm.channel().await);
    let (deliveries, mut orders) = lend(&mut blobs, &build, build.secret.clone()).await.unwrap();
    for chunk in [
        wire::BlobChunk { error: "it has changed".to_owned(), last: true, ..Default::default() },
        wire::BlobChunk { data: Bytes::from_static(b"short"), last: true, ..Default::default() },
    ] {
        let deliver = async {
            let order = soon("order", orders.message()).await.unwrap().unwrap();
            let delivery =
                wire::Delivery { transfer: order.transfer, chunks: vec![chunk], last: true };
            deliveries.send(said(Body::Delivery(delivery))).await.unwrap();
        };
        let (place, ()) = tokio::join!(worker.locate(attempt, source), deliver);
        assert_eq!(place, Place::LenderBuild(build.build_id.clone()));
    }
}

#[tokio::test]
async fn who_has_to_wait_for_another_worker_learns_that_at_once() {
    let farm = Farm::start().await;
    let mut one = FakeWorker::join(&farm, "one").await;
    let mut two = FakeWorker::join(&farm, "two").await;
    let (root, directory) = tree("source");
    let source = DigestFunction::Blake3.digest(b"source");
    let jobs = vec![with_source("a", root), with_source("b", root)];
    let _build = FakeBuild::submit(&farm, header(), vec![directory], jobs).await.unwrap();
    let (first, second) = (one.assigned().await, two.assigned().await);
    assert!(matches!(one.locate(first.attempt, source).await, Place::LenderBuild(_)));
    let mut answers = two.locate_all(second.attempt, &[source, root]).await;
    let mut places = Vec::new();
    while places.len() < 2 {
        let answer = soon("answer", answers.message()).await.unwrap().unwrap();
        places.extend(answer.located.into_iter().map(|located| (located.index, located.place)));
    }
    assert_eq!(places, [(0, Some(Place::Waits(true))), (1, Some(Place::Coordinator(true)))]);
    one.send(FromWorker::BlobsHeld(wire::BlobsHeld { digests: vec![source.into()] })).await;
    let answer = soon("place", answers.message()).await.unwrap().unwrap();
    assert!(matches!(answer.located[0].place, Some(Place::Peers(_))), "{answer:?}");
}

fn said(body: Body) -> wire::LendRequest {
    wire::LendRequest { body: Some(body) }
}

/// Whole blobs, in the order of the order.
fn delivery(transfer: u64, blobs: &[&'static [u8]]) -> wire::LendRequest {
    let chunk = |(index, data): (u32, &&'static [u8])| wire::BlobChunk {
        index,
        data: Bytes::from_static(data),
        last: true,
        ..Default::default()
    };
    let chunks = (0..).zip(blobs).map(chunk).collect();
    said(Body::Delivery(wire::Delivery { transfer, chunks, last: true }))
}

/// Opens a stream on which the client of a build lends.
async fn lend(
    blobs: &mut BlobsClient<Channel>,
    build: &FakeBuild,
    secret: Bytes,
) -> Result<(mpsc::Sender<wire::LendRequest>, Streaming<wire::LendOrder>), Status> {
    let (deliveries, messages) = mpsc::channel(4);
    let lender = wire::BuildLender { build_id: build.build_id.clone(), secret };
    deliveries.send(said(Body::Build(lender))).await.unwrap();
    let orders = blobs.lend(ReceiverStream::new(messages)).await?.into_inner();
    Ok((deliveries, orders))
}
