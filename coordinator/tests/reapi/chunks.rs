//! `SplitBlob`, `SpliceBlob`, and the streams that replace them.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_proto::{Digest, DigestFunction};
use tonic::Code;

use crate::server::{Server, noise, read_name, to_api};

const BLAKE3: DigestFunction = DigestFunction::Blake3;
const FAST_CDC: i32 = api::chunking_function::Value::FastCdc2020 as i32;

async fn split(server: &Server, blob: &Digest, chunking: i32) -> Result<Vec<api::Digest>, Code> {
    let request = api::SplitBlobRequest {
        blob_digest: Some(to_api(blob)),
        digest_function: blob.function() as i32,
        chunking_function: chunking,
        ..Default::default()
    };
    let answer = server.cas().split_blob(request).await.map_err(|error| error.code())?;
    let answer = answer.into_inner();
    assert_eq!(answer.chunking_function, FAST_CDC);
    Ok(answer.chunk_digests)
}

async fn splice(
    server: &Server,
    blob: &Digest,
    chunk_digests: Vec<api::Digest>,
    chunking_function: i32,
) -> Result<Option<api::Digest>, Code> {
    let request = api::SpliceBlobRequest {
        blob_digest: Some(to_api(blob)),
        chunk_digests,
        digest_function: blob.function() as i32,
        chunking_function,
        ..Default::default()
    };
    let answer = server.cas().splice_blob(request).await.map_err(|error| error.code())?;
    Ok(answer.into_inner().blob_digest)
}

fn parse(digest: &api::Digest) -> Digest {
    Digest::from_hex(BLAKE3, &digest.hash, digest.size_bytes as u64).unwrap()
}

#[tokio::test]
async fn a_blob_is_split_into_chunks_that_are_blobs_and_make_it_up() {
    let server = Server::start().await;
    let data = noise(1, 9_000_000);
    let blob = server.put(BLAKE3, &data).await;
    // Also where the client would like another function, or one that nobody knows.
    for chunking in [0, FAST_CDC, 2, 77, -1] {
        let chunks = split(&server, &blob, chunking).await.unwrap();
        assert!(chunks.len() > 4, "{} chunks", chunks.len());
        let mut joined = Vec::new();
        for chunk in &chunks {
            assert!(chunk.size_bytes <= 4 * (512 << 10));
            joined.extend(server.read(&read_name(&parse(chunk)), 0, 0).await.unwrap());
        }
        assert!(joined == data);
    }
}

#[tokio::test]
async fn a_mapping_that_comes_as_a_stream_is_the_same() {
    let server = Server::start().await;
    let blob = server.put(BLAKE3, &noise(1, 9_000_000)).await;
    let request = api::GetChunkMappingRequest {
        blob_digest: Some(to_api(&blob)),
        digest_function: BLAKE3 as i32,
        ..Default::default()
    };
    let mut stream = server.cas().get_chunk_mapping(request).await.unwrap().into_inner();
    let (mut chunks, mut functions) = (Vec::new(), Vec::new());
    while let Some(message) = stream.message().await.unwrap() {
        chunks.extend(message.chunk_digests);
        functions.push(message.chunking_function);
    }
    assert_eq!(functions[0], FAST_CDC);
    assert_eq!(chunks, split(&server, &blob, 0).await.unwrap());
}

#[tokio::test]
async fn only_a_blob_that_is_there_is_split() {
    let server = Server::start().await;
    assert_eq!(split(&server, &BLAKE3.digest(b"absent"), 0).await, Err(Code::NotFound));
    let small = server.put(BLAKE3, b"small").await;
    assert_eq!(split(&server, &small, 0).await, Ok(vec![to_api(&small)]));
    assert_eq!(split(&server, &BLAKE3.digest(b""), 0).await, Ok(Vec::new()));
}

#[tokio::test]
async fn chunks_are_spliced_to_a_blob_whatever_cut_them() {
    let server = Server::start().await;
    let data = noise(2, 2_000_000);
    let blob = BLAKE3.digest(&data);
    let mut chunks = Vec::new();
    for chunk in data.chunks(300_000) {
        chunks.push(to_api(&server.put(BLAKE3, chunk).await));
    }
    for chunking in [77, FAST_CDC, 0] {
        let spliced = splice(&server, &blob, chunks.clone(), chunking).await;
        assert_eq!(spliced, Ok(Some(to_api(&blob))));
    }
    assert!(server.read(&read_name(&blob), 0, 0).await == Ok(data));
}

#[tokio::test]
async fn a_registered_mapping_may_come_in_many_messages() {
    let server = Server::start().await;
    let data = noise(3, 1_000_000);
    let blob = BLAKE3.digest(&data);
    let mut messages = Vec::new();
    for chunk in data.chunks(100_000) {
        let chunk_digests = vec![to_api(&server.put(BLAKE3, chunk).await)];
        messages.push(api::RegisterChunkMappingRequest { chunk_digests, ..Default::default() });
    }
    messages[0].blob_digest = Some(to_api(&blob));
    messages[0].digest_function = BLAKE3 as i32;
    messages.insert(3, api::RegisterChunkMappingRequest::default());
    let answer = server.cas().register_chunk_mapping(tokio_stream::iter(messages)).await.unwrap();
    assert_eq!(answer.into_inner().blob_digest, Some(to_api(&blob)));
    assert!(server.read(&read_name(&blob), 0, 0).await == Ok(data));
    let nothing = server.cas().register_chunk_mapping(tokio_stream::iter([])).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_missing_chunk_is_not_found_and_chunks_that_do_not_make_the_blob_are_invalid() {
    let server = Server::start().await;
    let [one, two] = [b"one", b"two"];
    let one = to_api(&server.put(BLAKE3, one).await);
    let two = to_api(&server.put(BLAKE3, two).await);
    let absent = to_api(&BLAKE3.digest(b"six"));
    let blob = BLAKE3.digest(b"onetwo");
    let splice = async |chunks: &[&api::Digest]| {
        splice(&server, &blob, chunks.iter().map(|chunk| (*chunk).clone()).collect(), 0).await
    };
    let huge = api::Digest { size_bytes: i64::MAX, ..one.clone() };
    assert_eq!(splice(&[&one, &absent]).await, Err(Code::NotFound));
    for wrong in [&[&two, &one][..], &[&one], &[], &[&one, &two, &two], &[&huge, &huge, &huge]] {
        assert_eq!(splice(wrong).await, Err(Code::InvalidArgument));
    }
    assert_eq!(server.missing(&[blob]).await.len(), 1, "nothing of it was kept");
    assert_eq!(splice(&[&one, &two]).await, Ok(Some(to_api(&blob))));
}
