//! Requests that nobody would send: whatever comes, the answer is one that the API documents, and the server goes on.

use std::time::Duration;

use api::batch_update_blobs_request::Request as Update;
use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::google::bytestream::{ReadRequest, WriteRequest};
use distbuild_proto::DigestFunction;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tonic::Code;

use crate::server::{Server, WRITABLE, read_name};

/// Runs a check on generated values against one server, and sees that it still serves.
fn check<T: std::fmt::Debug>(
    values: impl Strategy<Value = T>,
    check: impl AsyncFn(&Server, T) -> Vec<Code>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Server::start());
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    let documented = [
        Code::Ok,
        Code::InvalidArgument,
        Code::NotFound,
        Code::OutOfRange,
        Code::PermissionDenied,
        Code::FailedPrecondition,
        Code::ResourceExhausted,
    ];
    let run = |value| {
        let answered = async { tokio::time::timeout(PATIENCE, check(&server, value)).await };
        let codes = runtime.block_on(answered);
        let codes = codes.map_err(|_| TestCaseError::fail("no answer"))?;
        prop_assert!(codes.iter().all(|code| documented.contains(code)), "{:?}", codes);
        Ok(())
    };
    TestRunner::new(config).run(&values, run).unwrap();
    runtime.block_on(async {
        let digest = server.put(DigestFunction::Sha256, b"still here").await;
        assert_eq!(server.read(&read_name(&digest), 0, 0).await, Ok(b"still here".to_vec()));
    });
}

const PATIENCE: Duration = Duration::from_secs(20);

fn code<T>(result: Result<T, tonic::Status>) -> Code {
    result.map_or_else(|error| error.code(), |_| Code::Ok)
}

fn instance() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just(WRITABLE.to_owned()), "[a-c/]{0,8}", "\\PC{0,20}"]
}

fn hash() -> impl Strategy<Value = String> {
    let good = vec(any::<u8>(), 0..4).prop_flat_map(|data| {
        proptest::sample::select(DigestFunction::ALL.to_vec())
            .prop_map(move |f| f.digest(&data).hex())
    });
    prop_oneof![good, "[0-9a-fA-F]{0,65}", "\\PC{0,64}"]
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![0..100_i64, any::<i64>(), Just(i64::MAX), Just(i64::MIN)]
}

fn digest() -> impl Strategy<Value = api::Digest> {
    (hash(), number()).prop_map(|(hash, size_bytes)| api::Digest { hash, size_bytes })
}

fn function() -> impl Strategy<Value = i32> {
    prop_oneof![Just(0), -2..12_i32, any::<i32>()]
}

fn resource_name() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        Just("blobs".to_owned()),
        Just("uploads".to_owned()),
        Just("compressed-blobs".to_owned()),
        Just("zstd".to_owned()),
        Just("blake3".to_owned()),
        Just("logstreams".to_owned()),
        hash(),
        number().prop_map(|number| number.to_string()),
        "\\PC{0,6}",
    ];
    let near = (hash(), number(), proptest::sample::select(vec!["", "uploads/u/", "a/uploads/u/"]))
        .prop_flat_map(|(hash, size, prefix)| {
            let blobs = proptest::sample::select(vec!["blobs", "compressed-blobs/zstd"]);
            blobs.prop_map(move |blobs| format!("{prefix}{blobs}/{hash}/{size}"))
        });
    prop_oneof![vec(segment, 0..8).prop_map(|segments| segments.join("/")), near]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..200)
}

#[test]
fn any_question_about_blobs_is_answered() {
    let values = (instance(), vec(digest(), 0..6), function(), vec(any::<i32>(), 0..3));
    check(values, async |server, (instance_name, digests, digest_function, compressors)| {
        let mut cas = server.cas();
        let find = api::FindMissingBlobsRequest {
            instance_name: instance_name.clone(),
            blob_digests: digests.clone(),
            digest_function,
        };
        let read = api::BatchReadBlobsRequest {
            instance_name,
            digests,
            acceptable_compressors: compressors,
            digest_function,
        };
        vec![code(cas.find_missing_blobs(find).await), code(cas.batch_read_blobs(read).await)]
    });
}

#[test]
fn any_batch_of_blobs_is_answered() {
    let compressor = prop_oneof![0..2_i32, any::<i32>()];
    let item = (proptest::option::of(digest()), data(), compressor)
        .prop_map(|(digest, data, compressor)| Update { digest, data, compressor });
    let values = (instance(), vec(item, 0..4), function());
    check(values, async |server, (instance_name, requests, digest_function)| {
        let request = api::BatchUpdateBlobsRequest { instance_name, requests, digest_function };
        vec![code(server.cas().batch_update_blobs(request).await)]
    });
}

#[test]
fn any_tree_and_any_chunks_are_answered() {
    let values = (instance(), digest(), vec(digest(), 0..4), function(), any::<i32>(), "\\PC{0,4}");
    check(values, async |server, (instance, digest, chunks, function, number, token)| {
        let mut cas = server.cas();
        let tree = api::GetTreeRequest {
            instance_name: instance.clone(),
            root_digest: Some(digest.clone()),
            page_size: number,
            page_token: token,
            digest_function: function,
        };
        let tree = match cas.get_tree(tree).await {
            Ok(pages) => code(pages.into_inner().message().await),
            Err(error) => error.code(),
        };
        let split = api::SplitBlobRequest {
            instance_name: instance.clone(),
            blob_digest: Some(digest.clone()),
            digest_function: function,
            chunking_function: number,
        };
        let splice = api::SpliceBlobRequest {
            instance_name: instance,
            blob_digest: Some(digest),
            chunk_digests: chunks,
            digest_function: function,
            chunking_function: number,
        };
        vec![tree, code(cas.split_blob(split).await), code(cas.splice_blob(splice).await)]
    });
}

#[test]
fn any_read_and_any_write_are_answered() {
    let message = (proptest::option::of(resource_name()), number(), any::<bool>(), data());
    let values = (resource_name(), number(), number(), vec(message, 0..4));
    check(values, async |server, (name, read_offset, read_limit, messages)| {
        let mut client = server.byte_stream();
        let read = ReadRequest { resource_name: name.clone(), read_offset, read_limit };
        let read = match client.read(read).await {
            Ok(stream) => code(stream.into_inner().message().await),
            Err(error) => error.code(),
        };
        let query = server.query(&name).await.err().unwrap_or(Code::Ok);
        let messages: Vec<_> = messages
            .into_iter()
            .enumerate()
            .map(|(at, (other, write_offset, finish_write, data))| WriteRequest {
                resource_name: other
                    .unwrap_or_else(|| if at == 0 { name.clone() } else { String::new() }),
                write_offset,
                finish_write,
                data,
            })
            .collect();
        let written = server.write(messages).await.err().unwrap_or(Code::Ok);
        vec![read, query, written]
    });
}

#[test]
fn any_question_about_results_and_any_result_is_answered() {
    let outputs = vec((proptest::option::of(digest()), "\\PC{0,9}"), 0..3);
    let values = (instance(), digest(), function(), outputs, data());
    check(values, async |server, (instance_name, action, digest_function, outputs, raw)| {
        let mut cache = server.action_cache();
        let get = api::GetActionResultRequest {
            instance_name: instance_name.clone(),
            action_digest: Some(action.clone()),
            digest_function,
            ..Default::default()
        };
        let file = |(digest, path): &(Option<api::Digest>, String)| api::OutputFile {
            path: path.clone(),
            digest: digest.clone(),
            contents: raw.clone(),
            ..Default::default()
        };
        let directory = |(digest, path): &(Option<api::Digest>, String)| api::OutputDirectory {
            path: path.clone(),
            tree_digest: digest.clone(),
            root_directory_digest: digest.clone(),
            ..Default::default()
        };
        let result = api::ActionResult {
            output_files: outputs.iter().map(file).collect(),
            output_directories: outputs.iter().map(directory).collect(),
            stdout_raw: raw.clone(),
            ..Default::default()
        };
        let update = api::UpdateActionResultRequest {
            instance_name,
            action_digest: Some(action),
            action_result: Some(result),
            digest_function,
            ..Default::default()
        };
        vec![
            code(cache.get_action_result(get).await),
            code(cache.update_action_result(update).await),
        ]
    });
}
