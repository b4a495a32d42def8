//! What the services of execution share.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_server::ExecutionServer;
use bazel_remote_apis::google::longrunning::operations_server::OperationsServer;
use distbuild_proto::Digest;
use prost::Message;
use tonic::Status;

use super::MAX_API_MESSAGE_BYTES;
use super::instance::Instance;
use super::operations::Operations;
use super::replication::Replication;
use super::status::of_state;
use crate::core::{Handle, Shared};
use crate::event_log::unix_ms;
use crate::state::ApiResultKey;

/// The services of execution; clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Executor {
    pub(super) core: Handle,
    pub(super) shared: Shared,
    pub(super) operations: Operations,
    pub(super) replication: Replication,
}

impl Executor {
    pub(crate) fn new(core: &Handle, shared: &Shared) -> Self {
        Self {
            core: core.clone(),
            shared: shared.clone(),
            operations: Operations::default(),
            replication: Replication::new(core.clone(), shared),
        }
    }

    /// The services of execution.
    pub(crate) fn add_to(self, routes: &mut tonic::service::RoutesBuilder) {
        routes.add_service(
            ExecutionServer::new(self.clone()).max_decoding_message_size(MAX_API_MESSAGE_BYTES),
        );
        routes.add_service(
            OperationsServer::new(self).max_decoding_message_size(MAX_API_MESSAGE_BYTES),
        );
    }

    /// Keeps a result for who asks for the same action.
    pub(super) async fn remember(
        &self,
        instance: &Instance,
        action: &Digest,
        result: &api::ActionResult,
    ) -> Result<(), Status> {
        let key = ApiResultKey { instance: instance.as_str().into(), action: *action };
        let recorded = self.shared.state.record_api_result(key, result.encode_to_vec(), unix_ms());
        recorded.await.map_err(|error| of_state(&error))
    }

    /// A result that is kept and whole.
    pub(super) async fn cached(
        &self,
        instance: &Instance,
        action: &Digest,
    ) -> Result<Option<api::ActionResult>, Status> {
        let key = ApiResultKey { instance: instance.as_str().into(), action: *action };
        let found = self.shared.state.api_result(key, unix_ms()).await;
        let Some(found) = found.map_err(|error| of_state(&error))? else { return Ok(None) };
        Ok(api::ActionResult::decode(&found.result[..]).ok())
    }
}
