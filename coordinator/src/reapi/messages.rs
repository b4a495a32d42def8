//! Operations as `google.longrunning` tells them, with what each client wants inside.

use std::sync::Arc;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_stage::Value as Stage;
use bazel_remote_apis::google::longrunning;
use bazel_remote_apis::google::protobuf::Any;
use distbuild_cas::DiskStore;
use prost::Message;

use super::digest::{parse, to_api};
use super::operations::{Inline, Operation, Snapshot};
use super::resource_name::LogStream;

/// What one response holds of contents at most, in bytes; what does not fit is named by its digest alone.
const MAX_INLINE_BYTES: u64 = 1 << 20;

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
            fill(result, &operation, &store);
        }
        api_any("ExecuteResponse", &response)
    });
    inlining.await.unwrap_or_else(|_| api_any("ExecuteResponse", plain.as_ref()))
}

fn fill(result: &mut api::ActionResult, operation: &Operation, store: &DiskStore) {
    let function = operation.execution.action.function();
    let Inline { stdout, stderr, files } = &operation.inline;
    let mut room = MAX_INLINE_BYTES;
    let mut read = |digest: Option<&api::Digest>| -> Vec<u8> {
        let digest = digest.and_then(|digest| parse(function, digest).ok());
        let fitting = digest.filter(|it| it.size_bytes() > 0 && it.size_bytes() <= room);
        let contents = fitting.and_then(|digest| store.read(&digest).ok()).unwrap_or_default();
        room -= contents.len() as u64;
        contents.into()
    };
    if *stdout {
        result.stdout_raw = read(result.stdout_digest.as_ref());
    }
    if *stderr {
        result.stderr_raw = read(result.stderr_digest.as_ref());
    }
    for file in result.output_files.iter_mut().filter(|file| files.contains(&file.path)) {
        file.contents = read(file.digest.as_ref());
    }
}

impl Inline {
    fn is_any(&self) -> bool {
        self.stdout || self.stderr || !self.files.is_empty()
    }
}
