//! Source blobs: who may fetch them from the client, and how the bytes travel.

use bytes::Bytes;
use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::wire::from_worker::Body as FromWorker;
use distbuild_proto::wire::located::Place;
use distbuild_proto::{DigestFunction, wire};

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
    let lender =
        wire::BuildLender { build_id: build.build_id.clone(), secret: build.secret.clone() };
    let lend = |secret: Bytes| wire::LendRequest {
        lender: Some(wire::lend_request::Lender::Build(wire::BuildLender {
            secret,
            ..lender.clone()
        })),
    };
    let denied = blobs.lend(lend(Bytes::from_static(b"guess"))).await.unwrap_err();
    assert_eq!(denied.code(), tonic::Code::PermissionDenied);
    let mut orders = blobs.lend(lend(build.secret.clone())).await.unwrap().into_inner();
    let request = wire::ReadRequest {
        digests: vec![source.into()],
        place: Some(wire::read_request::Place::LenderBuild(build.build_id.clone())),
    };
    let mut answer = blobs.read(request).await.unwrap().into_inner();
    let order = soon("order", orders.message()).await.unwrap().unwrap();
    assert_eq!(order.digests, [source.into()]);
    let data = Bytes::from_static(b"source");
    let chunk = wire::BlobChunk { data, last: true, ..Default::default() };
    let delivery = wire::DeliverRequest { transfer: order.transfer, chunks: vec![chunk] };
    blobs.deliver(tokio_stream::once(delivery)).await.unwrap();
    let chunks = soon("blob", answer.message()).await.unwrap().unwrap().chunks;
    assert_eq!(&chunks[0].data[..], b"source");
}
