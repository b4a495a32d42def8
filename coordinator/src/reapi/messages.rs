//! Operations as `google.longrunning` tells them, with what each client wants inside.

use std::sync::Arc;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_stage::Value as Stage;
use bazel_remote_apis::google::longrunning;
use bazel_remote_apis::google::protobuf::Any;
use distbuild_cas::DiskStore;
use prost::Message;

use super::digest::to_api;
use super::operations::{Operation, Snapshot};
use super::resource_name::LogStream;

/// A message under the name of its type.
pub(crate) fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

/// A message of the API under the name of its type.
fn api_any(name: &str, message: &impl Message) -> Any {
    any(&format!("build.bazel.remote.execution.v2.{name}"), message)
}

/// Says how an operation stands. Done, if and only if it is completed; what went wrong is in the response.
pub(crate) async fn operation(snapshot: &Snapshot, store: &DiskStore) -> longrunning::Operation {
    let Snapshot { operation, progress } = snapshot;
    let response = match &progress.response {
        Some(response) if operation.inline.is_any() => {
            Some(inlined(operation.clone(), response.clone(), store.clone()).await)
        }
        Some(response) => Some(api_any("ExecuteResponse", response.as_ref())),
        None => None,
    };
    longrunning::Operation {
        name: operation.name.clone(),
        metadata: Some(api_any("ExecuteOperationMetadata", &metadata(snapshot))),
        done: response.is_some(),
        result: response.map(longrunning::operation::Result::Response),
    }
}

fn metadata(Snapshot { operation, progress }: &Snapshot) -> api::ExecuteOperationMetadata {
    let execution = &operation.execution;
    let stage = match progress.response {
        Some(_) => Stage::Completed,
        None => progress.stage,
    };
    api::ExecuteOperationMetadata {
        stage: stage.into(),
        action_digest: Some(to_api(&execution.action)),
        stdout_stream_name: operation.log_name(LogStream::Stdout).to_string(),
        stderr_stream_name: operation.log_name(LogStream::Stderr).to_string(),
        partial_execution_metadata: progress.metadata.as_deref().cloned(),
        digest_function: execution.action.function() as i32,
    }
}

/// The response with the contents that the client asked for.
async fn inlined(
    operation: Arc<Operation>,
    response: Arc<api::ExecuteResponse>,
    store: DiskStore,
) -> Any {
    let plain = response.clone();
    let inlining = tokio::task::spawn_blocking(move || {
        let mut response = (*response).clone();
        if let Some(result) = &mut response.result {
            let function = operation.execution.action.function();
            operation.inline.fill(&store, function, result);
        }
        api_any("ExecuteResponse", &response)
    });
    inlining.await.unwrap_or_else(|_| api_any("ExecuteResponse", plain.as_ref()))
}
