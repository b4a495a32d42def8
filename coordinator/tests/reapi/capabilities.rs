//! What the server says of itself.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;

use crate::server::{Server, WRITABLE};

async fn of(server: &Server, instance: &str) -> Result<api::ServerCapabilities, tonic::Code> {
    let request = api::GetCapabilitiesRequest { instance_name: instance.to_owned() };
    let answer = server.capabilities().get_capabilities(request).await;
    answer.map(|answer| answer.into_inner()).map_err(|error| error.code())
}

#[tokio::test]
async fn cache_and_execution_are_announced_with_three_digest_functions() {
    let server = Server::start().await;
    let capabilities = of(&server, "").await.unwrap();
    let cache = capabilities.cache_capabilities.unwrap();
    let execution = capabilities.execution_capabilities.unwrap();
    let [sha256, sha1, blake3] = [1, 2, 9];
    for functions in [&cache.digest_functions, &execution.digest_functions] {
        let mut functions = functions.clone();
        functions.sort_unstable();
        assert_eq!(functions, [sha256, sha1, blake3]);
    }
    assert!(execution.digest_functions.contains(&execution.digest_function));
    assert!(execution.exec_enabled);
    assert_eq!(execution.supported_node_properties, ["mtime", "unix_mode"]);
}

#[tokio::test]
async fn a_client_that_knows_of_one_digest_function_is_told_the_one_that_its_instance_names() {
    let server = Server::start().await;
    for (instance, function) in [("", 1), ("sha1", 2), ("a/sha1", 2), ("blake3", 9), ("sha1/a", 1)]
    {
        let execution = of(&server, instance).await.unwrap().execution_capabilities.unwrap();
        assert_eq!(execution.digest_function, function, "{instance:?}");
        assert_eq!(execution.digest_functions.len(), 3);
    }
}

#[tokio::test]
async fn the_lowest_version_is_2_0_as_clients_of_2_0_refuse_any_higher() {
    let server = Server::start().await;
    let capabilities = of(&server, "").await.unwrap();
    let low = capabilities.low_api_version.unwrap();
    let high = capabilities.high_api_version.unwrap();
    assert_eq!((low.major, low.minor), (2, 0));
    assert_eq!(high.major, 2);
    assert!(high.minor >= 3);
}

#[tokio::test]
async fn only_writable_instances_say_that_results_may_be_written() {
    let server = Server::start().await;
    for (instance, expected) in [("", false), ("other", false), (WRITABLE, true)] {
        let cache = of(&server, instance).await.unwrap().cache_capabilities.unwrap();
        let update = cache.action_cache_update_capabilities.unwrap();
        assert_eq!(update.update_enabled, expected, "{instance:?}");
    }
}

#[tokio::test]
async fn streams_and_batches_announce_their_compressors_and_chunks_their_parameters() {
    let server = Server::start().await;
    let cache = of(&server, "").await.unwrap().cache_capabilities.unwrap();
    let zstd = api::compressor::Value::Zstd as i32;
    assert_eq!(cache.supported_compressors, [zstd]);
    assert_eq!(cache.supported_batch_update_compressors, [zstd]);
    assert!(cache.split_blob_support && cache.splice_blob_support);
    let chunks = cache.fast_cdc_2020_params.unwrap();
    assert_eq!((chunks.avg_chunk_size_bytes, chunks.seed), (512 << 10, 0));
    let allowed = api::symlink_absolute_path_strategy::Value::Allowed as i32;
    assert_eq!(cache.symlink_absolute_path_strategy, allowed);
}

#[tokio::test]
async fn no_instance_has_a_keyword_in_its_name() {
    let server = Server::start().await;
    assert!(of(&server, "a/b/c").await.is_ok());
    for bad in ["blobs", "a/operations", "a//b", "/a"] {
        assert_eq!(of(&server, bad).await.unwrap_err(), tonic::Code::InvalidArgument, "{bad}");
    }
}
