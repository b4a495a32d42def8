//! The `Capabilities` service: what a client may rely on, the same for every instance but for who may write
//! results, and for the digest function that clients see which know of one only.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::semver::SemVer;
use distbuild_proto::DigestFunction;
use tonic::{Request, Response, Status};

use super::MAX_BATCH_BYTES;
use super::chunking::AVERAGE_CHUNK_BYTES;
use super::execution_service::PRIORITIES;
use super::instance::Instance;
use super::results::Results;

/// The first minor version of the API that is served, and the last: the chunk mappings of 2.13 and what they
/// replace, the blob splitting of 2.12, are both there.
const MINOR_VERSIONS: (i32, i32) = (0, 13);

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct CapabilitiesService {
    pub(crate) results: Results,
    /// Largest blob that fits the store.
    pub(crate) max_blob_bytes: u64,
}

#[tonic::async_trait]
impl api::capabilities_server::Capabilities for CapabilitiesService {
    async fn get_capabilities(
        &self,
        request: Request<api::GetCapabilitiesRequest>,
    ) -> Result<Response<api::ServerCapabilities>, Status> {
        let instance = Instance::parse(&request.get_ref().instance_name)?;
        let version = |minor| Some(SemVer { major: 2, minor, ..SemVer::default() });
        Ok(Response::new(api::ServerCapabilities {
            cache_capabilities: Some(self.cache(&instance)),
            execution_capabilities: Some(execution(&instance)),
            deprecated_api_version: None,
            low_api_version: version(MINOR_VERSIONS.0),
            high_api_version: version(MINOR_VERSIONS.1),
        }))
    }
}

impl CapabilitiesService {
    fn cache(&self, instance: &Instance) -> api::CacheCapabilities {
        let zstd = vec![api::compressor::Value::Zstd as i32];
        api::CacheCapabilities {
            digest_functions: functions(),
            action_cache_update_capabilities: Some(api::ActionCacheUpdateCapabilities {
                update_enabled: self.results.may_write(instance),
            }),
            // Everything is kept by its last use: a priority changes nothing.
            cache_priority_capabilities: Some(priorities(0, 0)),
            max_batch_total_size_bytes: MAX_BATCH_BYTES as i64,
            symlink_absolute_path_strategy: api::symlink_absolute_path_strategy::Value::Allowed
                as i32,
            supported_compressors: zstd.clone(),
            supported_batch_update_compressors: zstd,
            max_cas_blob_size_bytes: i64::try_from(self.max_blob_bytes).unwrap_or(i64::MAX),
            split_blob_support: true,
            splice_blob_support: true,
            fast_cdc_2020_params: Some(api::FastCdc2020Params {
                avg_chunk_size_bytes: AVERAGE_CHUNK_BYTES as u64,
                seed: 0,
            }),
            rep_max_cdc_params: None,
        }
    }
}

fn execution(instance: &Instance) -> api::ExecutionCapabilities {
    api::ExecutionCapabilities {
        digest_function: instance.digest_function() as i32,
        exec_enabled: true,
        execution_priority_capabilities: Some(priorities(*PRIORITIES.start(), *PRIORITIES.end())),
        supported_node_properties: ["mtime", "unix_mode"].map(str::to_owned).to_vec(),
        digest_functions: functions(),
    }
}

fn functions() -> Vec<i32> {
    DigestFunction::ALL.map(|function| function as i32).to_vec()
}

fn priorities(min_priority: i32, max_priority: i32) -> api::PriorityCapabilities {
    let range = api::priority_capabilities::PriorityRange { min_priority, max_priority };
    api::PriorityCapabilities { priorities: vec![range] }
}
