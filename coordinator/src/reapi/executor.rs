//! What the services of execution share.

use bazel_remote_apis::build::bazel::remote::execution::v2::execution_server::ExecutionServer;
use bazel_remote_apis::google::longrunning::operations_server::OperationsServer;

use super::MAX_API_MESSAGE_BYTES;
use super::operations::Operations;
use super::replication::Replication;
use super::results::Results;
use crate::core::{Handle, Shared};

/// The services of execution; clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Executor {
    pub(super) core: Handle,
    pub(super) shared: Shared,
    pub(super) operations: Operations,
    pub(super) replication: Replication,
    pub(super) results: Results,
}

impl Executor {
    pub(crate) fn new(core: &Handle, shared: &Shared, results: Results) -> Self {
        Self {
            core: core.clone(),
            shared: shared.clone(),
            operations: Operations::default(),
            replication: Replication::new(core.clone(), shared),
            results,
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
}
