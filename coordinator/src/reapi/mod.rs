//! The Remote Execution API, version 2, beside the native services on the same port.
//!
//! Messages of the API are turned into domain types here, once, and do not leave this folder. Blobs are those of
//! the coordinator's own store: one that only a client or a worker could lend is missing. What a client may rely on
//! stands in `docs/REAPI.md`.

mod action_cache;
mod batch;
mod byte_stream;
mod capabilities;
mod cas;
mod chunking;
mod client;
mod command;
mod compression;
pub mod digest;
mod execution;
mod execution_service;
mod executor;
mod inline;
pub mod instance;
mod logs;
mod messages;
mod metadata;
mod operations;
mod pull;
mod replication;
pub mod resource_name;
mod result;
mod results;
pub(crate) mod status;
mod trees;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::google::bytestream::byte_stream_server::ByteStreamServer;
use tonic::service::{Routes, RoutesBuilder};

use self::action_cache::ActionCacheService;
use self::byte_stream::ByteStreamService;
use self::capabilities::CapabilitiesService;
use self::cas::CasService;
use self::executor::Executor;
use self::results::Results;
use crate::config::WritableInstances;
use crate::core::{Handle, Shared};

/// Largest message that is accepted; clients are told to send batches far below it.
pub(crate) const MAX_API_MESSAGE_BYTES: usize = 16 << 20;
/// Largest message of a `Write` call: what clients send that know no more than gRPC's own limit. Whoever has a larger
/// blob sends more messages.
pub(crate) const MAX_WRITE_MESSAGE_BYTES: usize = (4 << 20) + (64 << 10);
/// Blobs in one batch, in bytes. With digests and statuses an answer stays below the 4 MiB that clients accept.
pub(crate) const MAX_BATCH_BYTES: usize = (4 << 20) - (256 << 10);

/// The services.
pub(crate) fn routes(core: &Handle, shared: &Shared, writable: WritableInstances) -> Routes {
    use api::action_cache_server::ActionCacheServer;
    use api::capabilities_server::CapabilitiesServer;
    use api::content_addressable_storage_server::ContentAddressableStorageServer;

    let (store, max_blob_bytes) = (shared.store.clone(), shared.limits.max_store_bytes);
    let results = Results::new(shared, writable);
    let executor = Executor::new(core, shared, results.clone());
    let capabilities = CapabilitiesService { results: results.clone(), max_blob_bytes };
    let cas = CasService { store: store.clone(), max_blob_bytes };
    let operations = executor.operations.clone();
    let byte_stream = ByteStreamService::new(store.clone(), max_blob_bytes, operations);
    let action_cache = ActionCacheService { results, store };
    let most = MAX_API_MESSAGE_BYTES;
    let mut routes = RoutesBuilder::default();
    routes.add_service(CapabilitiesServer::new(capabilities).max_decoding_message_size(most));
    routes.add_service(ContentAddressableStorageServer::new(cas).max_decoding_message_size(most));
    routes.add_service(
        ByteStreamServer::new(byte_stream).max_decoding_message_size(MAX_WRITE_MESSAGE_BYTES),
    );
    routes.add_service(ActionCacheServer::new(action_cache).max_decoding_message_size(most));
    executor.add_to(&mut routes);
    routes.routes()
}
