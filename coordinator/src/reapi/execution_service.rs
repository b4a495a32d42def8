//! The services `Execution` and `google.longrunning.Operations`.

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_server::Execution;
use bazel_remote_apis::google::longrunning;
use bazel_remote_apis::google::longrunning::operations_server::Operations as OperationsApi;
use bazel_remote_apis::google::protobuf::Empty;
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::Executor;
use super::client::Client;
use super::digest::parse_one;
use super::execution;
use super::inline::Inline;
use super::instance::Instance;
use super::messages;
use super::operations::Operation;
use super::status::invalid;

/// The scheduler's class of a request that names no priority; native builds have the same.
const DEFAULT_CLASS: i32 = 100;
/// Priorities that the scheduler tells apart; 0 is the usual one and lower runs sooner.
pub(super) const PRIORITIES: RangeInclusive<i32> = -DEFAULT_CLASS..=u8::MAX as i32 - DEFAULT_CLASS;
/// Operations in one page of a listing, if the caller names no number, and at most.
const MAX_LISTED: usize = 1000;
/// How long `WaitOperation` waits at most.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Output files that one request may want inlined.
const MAX_INLINE_FILES: usize = 1024;

type OperationStream =
    Pin<Box<dyn Stream<Item = Result<longrunning::Operation, Status>> + Send + 'static>>;

impl Executor {
    async fn begin(
        &self,
        request: api::ExecuteRequest,
        client: Client,
    ) -> Result<Arc<Operation>, Status> {
        let instance = Instance::parse(&request.instance_name).map_err(invalid)?;
        let digest = parse_one(request.digest_function, request.action_digest.as_ref());
        let digest = digest.map_err(invalid)?;
        let priority = request.execution_policy.unwrap_or_default().priority;
        if request.inline_output_files.len() > MAX_INLINE_FILES {
            return Err(invalid(format!("more than {MAX_INLINE_FILES} output files to inline")));
        }
        let inline = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: request.inline_output_files.into_iter().collect(),
        };
        let action = self.read_action(digest).await;
        let may_join = action.as_ref().is_ok_and(|action| !action.do_not_cache);
        let (operation, is_new) = self.operations.begin((instance, digest), may_join, inline)?;
        if is_new {
            let (executor, running) = (self.clone(), operation.execution.clone());
            let skip_cache_lookup = request.skip_cache_lookup;
            let class = class(priority);
            tokio::spawn(async move {
                let response = match action {
                    Ok(action) => {
                        let request =
                            execution::Request { action, skip_cache_lookup, class, client };
                        execution::run(&executor, &running, request).await
                    }
                    Err(status) => execution::failed(&status, None),
                };
                executor.operations.finish(&running, response);
            });
        }
        Ok(operation)
    }

    fn watch(&self, operation: Arc<Operation>) -> OperationStream {
        let store = self.shared.store.clone();
        Box::pin(operation.watch().then(move |snapshot| {
            let store = store.clone();
            async move { Ok(messages::operation(&snapshot, &store).await) }
        }))
    }

    fn operation(&self, name: &str) -> Result<Arc<Operation>, Status> {
        self.operations.get(name).ok_or_else(|| unknown(name))
    }
}

fn unknown(name: &str) -> Status {
    Status::not_found(format!("no operation {name:?} is known; it may have ended long ago"))
}

/// The class of a priority; those beyond [`PRIORITIES`] count as the nearest.
fn class(priority: i32) -> u8 {
    let priority = priority.clamp(*PRIORITIES.start(), *PRIORITIES.end());
    u8::try_from(DEFAULT_CLASS + priority).unwrap_or(u8::MAX)
}

#[tonic::async_trait]
impl Execution for Executor {
    type ExecuteStream = OperationStream;
    type WaitExecutionStream = OperationStream;

    async fn execute(
        &self,
        request: Request<api::ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let client = Client::of(request.metadata());
        let operation = self.begin(request.into_inner(), client).await?;
        Ok(Response::new(self.watch(operation)))
    }

    async fn wait_execution(
        &self,
        request: Request<api::WaitExecutionRequest>,
    ) -> Result<Response<Self::WaitExecutionStream>, Status> {
        let operation = self.operation(&request.into_inner().name)?;
        Ok(Response::new(self.watch(operation)))
    }
}

#[tonic::async_trait]
impl OperationsApi for Executor {
    async fn list_operations(
        &self,
        request: Request<longrunning::ListOperationsRequest>,
    ) -> Result<Response<longrunning::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        if !request.filter.is_empty() {
            return Err(invalid("operations cannot be filtered"));
        }
        let collection = request.name.trim_end_matches('/');
        let instance = match collection.strip_suffix("operations") {
            Some(instance) => instance.trim_end_matches('/'),
            None => collection,
        };
        let instance = Instance::parse(instance).map_err(invalid)?;
        let most = match usize::try_from(request.page_size) {
            Ok(0) => MAX_LISTED,
            Ok(size) => size.min(MAX_LISTED),
            Err(_) => return Err(invalid("the page size is negative")),
        };
        let listed = self.operations.list(&instance, &request.page_token, most);
        let full = listed.len() == most;
        let last = listed.last().filter(|_| full).map(|last| last.name.clone());
        let mut operations = Vec::with_capacity(listed.len());
        for operation in listed {
            operations.push(messages::operation(&operation.snapshot(), &self.shared.store).await);
        }
        let next_page_token = last.unwrap_or_default();
        let unreachable = Vec::new();
        let response =
            longrunning::ListOperationsResponse { operations, next_page_token, unreachable };
        Ok(Response::new(response))
    }

    async fn get_operation(
        &self,
        request: Request<longrunning::GetOperationRequest>,
    ) -> Result<Response<longrunning::Operation>, Status> {
        let operation = self.operation(&request.into_inner().name)?;
        let message = messages::operation(&operation.snapshot(), &self.shared.store).await;
        Ok(Response::new(message))
    }

    async fn delete_operation(
        &self,
        request: Request<longrunning::DeleteOperationRequest>,
    ) -> Result<Response<Empty>, Status> {
        let name = request.into_inner().name;
        match self.operations.delete(&name) {
            Some(true) => Ok(Response::new(Empty {})),
            Some(false) => Err(Status::failed_precondition(format!(
                "operation {name:?} has not ended; cancel it first"
            ))),
            None => Err(unknown(&name)),
        }
    }

    async fn cancel_operation(
        &self,
        request: Request<longrunning::CancelOperationRequest>,
    ) -> Result<Response<Empty>, Status> {
        let name = request.into_inner().name;
        if self.operations.cancel(&name) {
            Ok(Response::new(Empty {}))
        } else {
            Err(unknown(&name))
        }
    }

    async fn wait_operation(
        &self,
        request: Request<longrunning::WaitOperationRequest>,
    ) -> Result<Response<longrunning::Operation>, Status> {
        let longrunning::WaitOperationRequest { name, timeout } = request.into_inner();
        let operation = self.operation(&name)?;
        let asked = timeout.and_then(|timeout| {
            let seconds = u64::try_from(timeout.seconds).ok()?;
            Some(Duration::new(seconds, u32::try_from(timeout.nanos).ok()?.min(999_999_999)))
        });
        let patience = asked.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
        let mut watching = Box::pin(operation.clone().watch());
        let end = async { while watching.next().await.is_some() {} };
        let _ = tokio::time::timeout(patience, end).await;
        let message = messages::operation(&operation.snapshot(), &self.shared.store).await;
        Ok(Response::new(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_become_classes_in_their_order() {
        assert_eq!(class(0), 100);
        assert!(class(-1) < class(0) && class(0) < class(1));
        assert_eq!((class(i32::MIN), class(i32::MAX)), (0, 255));
    }
}
