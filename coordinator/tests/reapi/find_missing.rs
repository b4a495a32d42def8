//! `FindMissingBlobs`: what is missing, no more and no less.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_coordinator::Limits;
use distbuild_proto::{Digest, DigestFunction};

use crate::server::{Server, noise, read_name, to_api};

#[tokio::test]
async fn what_is_there_is_not_missing_under_its_own_function_and_size_only() {
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        let there = server.put(function, b"there").await;
        let absent = function.digest(b"absent");
        let larger = Digest::new(function, there.hash(), 6).unwrap();
        let missing = server.missing(&[there, absent, larger]).await;
        assert_eq!(missing, [to_api(&absent), to_api(&larger)], "{function}");
    }
    // SHA-256 and BLAKE3 have hashes of one length.
    let sha256 = server.put(DigestFunction::Sha256, b"one").await;
    let same_hash = Digest::new(DigestFunction::Blake3, sha256.hash(), 3).unwrap();
    assert_eq!(server.missing(&[same_hash]).await.len(), 1);
}

#[tokio::test]
async fn the_empty_blob_is_always_there() {
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        let empty = function.digest(b"");
        assert!(server.missing(&[empty]).await.is_empty());
        assert_eq!(server.read(&read_name(&empty), 0, 0).await, Ok(Vec::new()));
    }
}

#[tokio::test]
async fn a_digest_that_is_asked_for_twice_is_missing_once() {
    let server = Server::start().await;
    let absent = DigestFunction::Sha256.digest(b"absent");
    assert_eq!(server.missing(&[absent, absent]).await, [to_api(&absent)]);
}

#[tokio::test]
async fn an_unset_function_is_inferred_from_the_length_of_the_hash() {
    let server = Server::start().await;
    for function in [DigestFunction::Sha1, DigestFunction::Sha256] {
        let there = server.put(function, b"there").await;
        let request = api::FindMissingBlobsRequest {
            blob_digests: vec![to_api(&there)],
            ..Default::default()
        };
        let answer = server.cas().find_missing_blobs(request).await.unwrap().into_inner();
        assert!(answer.missing_blob_digests.is_empty(), "{function}");
    }
}

#[tokio::test]
async fn fifty_thousand_digests_are_one_question() {
    let server = Server::start().await;
    let there = server.put(DigestFunction::Sha256, b"there").await;
    let absent = (0..50_000_u32).map(|n| DigestFunction::Sha256.digest(&n.to_le_bytes()));
    let mut digests: Vec<_> = absent.collect();
    digests.insert(25_000, there);
    let missing = server.missing(&digests).await;
    digests.remove(25_000);
    assert_eq!(missing, digests.iter().map(to_api).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_was_looked_for_outlives_what_was_not() {
    let limits = Limits { max_store_bytes: 4 << 20, ..Limits::default() };
    let server = Server::with(limits).await;
    let blob = |n: u64| noise(n, 256 << 10);
    let function = DigestFunction::Sha256;
    let mut early = Vec::new();
    for n in 0..8 {
        early.push(server.put(function, &blob(n)).await);
    }
    // Looked for again and again while others come and go.
    let kept = early[0];
    for n in 8..40 {
        assert!(server.missing(&[kept]).await.is_empty(), "after {n} blobs");
        server.put(function, &blob(n)).await;
    }
    assert_eq!(server.read(&read_name(&kept), 0, 0).await, Ok(blob(0)));
    assert_eq!(server.missing(&early[1..]).await.len(), 7, "the others made room");
}

#[tokio::test]
async fn malformed_digests_are_refused_with_their_place() {
    let server = Server::start().await;
    let good = to_api(&DigestFunction::Sha256.digest(b"x"));
    let bad = |hash: &str, size_bytes| api::Digest { hash: hash.to_owned(), size_bytes };
    for (function, bad) in [
        (0, bad(&good.hash.to_uppercase(), 1)),
        (0, bad(&good.hash, -1)),
        (0, bad("", 0)),
        (0, bad("../../etc/passwd", 1)),
        (1, bad(&good.hash[..40], 1)),
        (2, good.clone()),
        (3, good.clone()),
        (-7, good.clone()),
    ] {
        let request = api::FindMissingBlobsRequest {
            blob_digests: vec![good.clone(), bad.clone()],
            digest_function: function,
            ..Default::default()
        };
        let error = server.cas().find_missing_blobs(request).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{bad:?}");
    }
}
