//! `BatchUpdateBlobs` and `BatchReadBlobs`.

use api::batch_update_blobs_request::Request as Update;
use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_coordinator::Limits;
use distbuild_proto::DigestFunction;
use prost::Message;
use tonic::Code;

use crate::server::{CLIENT_MESSAGE_BYTES, Server, noise, to_api};

const SHA256: DigestFunction = DigestFunction::Sha256;
const ZSTD: i32 = api::compressor::Value::Zstd as i32;

fn item(data: &[u8]) -> Update {
    Update { digest: Some(to_api(&SHA256.digest(data))), data: data.to_vec(), compressor: 0 }
}

async fn update(server: &Server, requests: Vec<Update>) -> Result<Vec<i32>, Code> {
    let request = api::BatchUpdateBlobsRequest { requests, ..Default::default() };
    let answer = server.cas().batch_update_blobs(request).await.map_err(|error| error.code())?;
    let codes = answer.into_inner().responses.into_iter().map(|item| item.status.unwrap().code);
    Ok(codes.collect())
}

async fn read(
    server: &Server,
    digests: Vec<api::Digest>,
    compressors: &[i32],
) -> Result<api::BatchReadBlobsResponse, Code> {
    let request = api::BatchReadBlobsRequest {
        digests,
        acceptable_compressors: compressors.to_vec(),
        ..Default::default()
    };
    let answer = server.cas().batch_read_blobs(request).await;
    answer.map(|answer| answer.into_inner()).map_err(|error| error.code())
}

async fn announced_bytes(server: &Server) -> usize {
    let request = api::GetCapabilitiesRequest::default();
    let answer = server.capabilities().get_capabilities(request).await.unwrap().into_inner();
    answer.cache_capabilities.unwrap().max_batch_total_size_bytes as usize
}

#[tokio::test]
async fn each_item_has_a_status_of_its_own() {
    let server = Server::start().await;
    let good = item(b"good");
    let mut wrong_hash = item(b"one thing");
    wrong_hash.data = b"nothing".to_vec();
    let mut wrong_size = item(b"sized");
    wrong_size.digest.as_mut().unwrap().size_bytes += 1;
    let mut no_digest = item(b"none");
    no_digest.digest = None;
    let mut malformed = item(b"malformed");
    malformed.digest.as_mut().unwrap().hash = "XYZ".to_owned();
    let mut strange = item(b"strange");
    strange.compressor = 77;
    let items = vec![good.clone(), wrong_hash, wrong_size, no_digest, malformed, strange];
    let bad = Code::InvalidArgument as i32;
    assert_eq!(update(&server, items).await, Ok(vec![0, bad, bad, bad, bad, bad]));
    let absent = to_api(&SHA256.digest(b"absent"));
    let answer = read(&server, vec![good.digest.unwrap(), absent], &[]).await.unwrap();
    let statuses: Vec<_> = answer
        .responses
        .iter()
        .map(|item| (item.status.as_ref().unwrap().code, &item.data[..]))
        .collect();
    assert_eq!(statuses, [(0, &b"good"[..]), (Code::NotFound as i32, b"")]);
}

#[tokio::test]
async fn a_batch_of_the_announced_size_fits_both_ways_and_one_byte_more_does_not() {
    let server = Server::start().await;
    let total = announced_bytes(&server).await;
    let pieces: Vec<_> = (0..64).map(|n| noise(n, total / 64)).collect();
    let items: Vec<_> = pieces.iter().map(|data| item(data)).collect();
    let digests: Vec<_> = items.iter().map(|item| item.digest.clone().unwrap()).collect();
    let codes = update(&server, items.clone()).await.unwrap();
    assert!(codes.iter().all(|code| *code == 0));
    let answer = read(&server, digests.clone(), &[]).await.unwrap();
    assert!(answer.encoded_len() <= CLIENT_MESSAGE_BYTES);
    assert!(answer.responses.iter().zip(&pieces).all(|(item, data)| item.data == *data));
    let more = [items, vec![item(b"x")]].concat();
    assert_eq!(update(&server, more).await, Err(Code::InvalidArgument));
    let more = [digests, vec![to_api(&SHA256.digest(b"x"))]].concat();
    assert_eq!(read(&server, more, &[]).await, Err(Code::InvalidArgument));
}

#[tokio::test]
async fn sizes_that_add_up_to_more_than_there_is_are_refused() {
    let server = Server::start().await;
    let huge = api::Digest { size_bytes: i64::MAX, ..to_api(&SHA256.digest(b"x")) };
    let answer = read(&server, vec![huge.clone(), huge.clone(), huge.clone()], &[]).await;
    assert_eq!(answer, Err(Code::InvalidArgument));
    let bomb = Update { digest: Some(huge), data: Vec::new(), compressor: ZSTD };
    assert_eq!(update(&server, vec![bomb]).await, Err(Code::InvalidArgument));
}

#[tokio::test]
async fn items_may_come_compressed_and_are_verified_as_they_are() {
    let server = Server::start().await;
    let data = b"so much of the same ".repeat(100);
    let compressed = zstd::bulk::compress(&data, 3).unwrap();
    let good = Update { data: compressed.clone(), compressor: ZSTD, ..item(&data) };
    let other = Update { data: compressed.clone(), compressor: ZSTD, ..item(b"other") };
    let cut = Update { data: compressed[..9].to_vec(), compressor: ZSTD, ..item(&data) };
    let bad = Code::InvalidArgument as i32;
    let digest = good.digest.clone().unwrap();
    assert_eq!(update(&server, vec![other, cut, good]).await, Ok(vec![bad, bad, 0]));
    let answer = read(&server, vec![digest], &[]).await.unwrap();
    assert_eq!((&answer.responses[0].data, answer.responses[0].compressor), (&data, 0));
}

#[tokio::test]
async fn only_who_accepts_a_compressor_is_sent_compressed_bytes() {
    let server = Server::start().await;
    let data = b"so much of the same ".repeat(100);
    let digest = to_api(&server.put(SHA256, &data).await);
    for (accepted, expected) in [(vec![], 0), (vec![2, 3, 99], 0), (vec![0, ZSTD], ZSTD)] {
        let answer = read(&server, vec![digest.clone()], &accepted).await.unwrap();
        let found = &answer.responses[0];
        assert_eq!(found.compressor, expected, "{accepted:?}");
        let bytes = match found.compressor {
            ZSTD => zstd::bulk::decompress(&found.data, data.len()).unwrap(),
            _ => found.data.clone(),
        };
        assert_eq!(bytes, data);
    }
}

#[tokio::test]
async fn the_function_is_named_once_for_all_items() {
    let server = Server::start().await;
    let digest = DigestFunction::Blake3.digest(b"x");
    let blake3 = DigestFunction::Blake3 as i32;
    let request = |digest_function| api::BatchUpdateBlobsRequest {
        requests: vec![Update {
            digest: Some(to_api(&digest)),
            data: b"x".to_vec(),
            compressor: 0,
        }],
        digest_function,
        ..Default::default()
    };
    let code = async |function| {
        let answer = server.cas().batch_update_blobs(request(function)).await;
        answer.map(|answer| answer.into_inner().responses[0].status.as_ref().unwrap().code)
    };
    assert_eq!(code(0).await.unwrap(), Code::InvalidArgument as i32, "taken for SHA-256");
    assert_eq!(code(5).await.unwrap_err().code(), Code::InvalidArgument, "not served");
    assert_eq!(code(blake3).await.unwrap(), 0);
}

#[tokio::test]
async fn a_full_store_is_resource_exhausted_for_the_item_and_the_server_lives() {
    let limits = Limits { max_store_bytes: 64 << 10, ..Limits::default() };
    let server = Server::with(limits).await;
    let items = vec![item(&noise(1, 128 << 10)), item(b"small")];
    let full = Code::ResourceExhausted as i32;
    assert_eq!(update(&server, items).await, Ok(vec![full, 0]));
}

#[tokio::test]
async fn an_empty_batch_is_answered() {
    let server = Server::start().await;
    assert_eq!(update(&server, Vec::new()).await, Ok(Vec::new()));
    assert_eq!(read(&server, Vec::new(), &[]).await, Ok(api::BatchReadBlobsResponse::default()));
}
