//! The `ActionCache` service.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_cas::DiskStore;
use distbuild_proto::Digest;
use prost::Message;
use tonic::{Request, Response, Status};

use super::inline::Inline;
use super::instance::Instance;
use super::results::{MAX_RESULT_BYTES, Results, missing, take_out};
use super::{digest, status};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct ActionCacheService {
    pub(crate) results: Results,
    pub(crate) store: DiskStore,
}

#[tonic::async_trait]
impl api::action_cache_server::ActionCache for ActionCacheService {
    async fn get_action_result(
        &self,
        request: Request<api::GetActionResultRequest>,
    ) -> Result<Response<api::ActionResult>, Status> {
        let request = request.into_inner();
        let instance = Instance::parse(&request.instance_name)?;
        let action = digest::parse_one(request.digest_function, request.action_digest.as_ref())
            .map_err(status::invalid)?;
        let inline = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: request.inline_output_files.into_iter().collect(),
        };
        match self.results.find(&instance, action, &inline).await? {
            Some(result) => Ok(Response::new(result)),
            None => Err(Status::not_found(format!("no result of action {action} is known"))),
        }
    }

    async fn update_action_result(
        &self,
        request: Request<api::UpdateActionResultRequest>,
    ) -> Result<Response<api::ActionResult>, Status> {
        let request = request.into_inner();
        let instance = Instance::parse(&request.instance_name)?;
        let action = digest::parse_one(request.digest_function, request.action_digest.as_ref())
            .map_err(status::invalid)?;
        if !self.results.may_write(&instance) {
            let text = format!(
                "clients may not write results of instance \"{instance}\"; the coordinator allows \
                 it with --writable-instance"
            );
            return Err(Status::permission_denied(text));
        }
        let result = request.action_result.ok_or_else(|| status::invalid("no action_result"))?;
        if result.exit_code != 0 {
            let text = format!("exit code {}: only success is kept", result.exit_code);
            return Err(status::invalid(text));
        }
        let bytes = result.encoded_len();
        if bytes > MAX_RESULT_BYTES {
            let text = format!("a result of {bytes} bytes, kept are {MAX_RESULT_BYTES}");
            return Err(Status::resource_exhausted(text));
        }
        let store = self.store.clone();
        let checked = tokio::task::spawn_blocking(move || check(&store, &action, result));
        let result = checked.await.map_err(|error| status::of_thread(&error))??;
        self.results.record(&instance, action, &result).await?;
        Ok(Response::new(result))
    }
}

/// A result that a client gives, once all that it names is here: so are the action and its command.
fn check(
    store: &DiskStore,
    action: &Digest,
    mut result: api::ActionResult,
) -> Result<api::ActionResult, Status> {
    let blob = match store.read(action) {
        Ok(blob) => blob,
        Err(error) if error.is_missing() => return Err(status::missing_blobs([action])),
        Err(error) => return Err(status::of_store(&error)),
    };
    let message = api::Action::decode(blob)
        .map_err(|error| status::invalid(format!("{action} is no Action: {error}")))?;
    if message.do_not_cache {
        return Err(status::invalid(format!("action {action} says do_not_cache")));
    }
    let command = message.command_digest.as_ref();
    let command = command.ok_or_else(|| status::invalid("the action has no command_digest"))?;
    let command = digest::parse(action.function(), command).map_err(status::invalid)?;
    take_out(store, action.function(), &mut result)?;
    let mut absent = missing(store, action.function(), &result)?;
    if !store.contains(&command) {
        absent.push(command);
    }
    if absent.is_empty() { Ok(result) } else { Err(status::missing_blobs(&absent)) }
}
