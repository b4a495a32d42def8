//! Operations: what clients watch, by name. Several may watch one execution.
//!
//! Every `Execute` makes an operation. Equal actions of one instance share an execution unless their results may not
//! be shared. An operation ends when its execution does, or when it is cancelled; an execution is cancelled with the
//! last of its operations, or when nobody has watched any of them for a while. Ended operations are kept for who asks
//! again, the newest of them within named limits.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_stage::Value as Stage;
use distbuild_proto::Digest;
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::inline::Inline;
use super::instance::Instance;
use super::logs::{Log, LogRoom};
use super::resource_name::{LogName, LogStream};
use super::status::to_rpc;

/// Operations that have not ended, over all executions; one more is refused.
const MAX_OPERATIONS: usize = 100_000;
/// Ended operations that are kept.
const MAX_ENDED: usize = 4096;
/// What the responses of ended operations may take together, in encoded bytes.
const MAX_ENDED_BYTES: usize = 64 << 20;

/// What equal executions have in common: the instance and the digest of the action.
pub(crate) type ExecutionKey = (Instance, Digest);

/// All operations; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operations {
    table: Arc<Mutex<Table>>,
    logs: LogRoom,
}

#[derive(Debug, Default)]
struct Table {
    by_name: BTreeMap<String, Arc<Operation>>,
    /// Executions that further requests may join.
    by_action: HashMap<ExecutionKey, Arc<Execution>>,
    running: usize,
    /// Oldest first, with the sizes of their responses.
    ended: VecDeque<(String, usize)>,
    ended_bytes: usize,
}

/// What one client asked for and watches.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) name: String,
    pub(crate) execution: Arc<Execution>,
    /// What the client wants inside the response.
    pub(crate) inline: Inline,
    cancelled: CancellationToken,
}

/// An action that is being looked up, queued or run, or has been.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) instance: Instance,
    pub(crate) action: Digest,
    pub(crate) stdout: Arc<Log>,
    pub(crate) stderr: Arc<Log>,
    progress: watch::Sender<Progress>,
    /// Somebody looks again.
    seen: Notify,
    cancelled: CancellationToken,
    /// Names of its operations that have not ended.
    operations: Mutex<Vec<String>>,
}

/// How far an execution is.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) stage: Stage,
    /// What is known of the run.
    pub(crate) metadata: Option<Arc<api::ExecutedActionMetadata>>,
    /// Once it is over.
    pub(crate) response: Option<Arc<api::ExecuteResponse>>,
}

/// An operation at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) operation: Arc<Operation>,
    pub(crate) progress: Progress,
}

impl Operations {
    /// Begins an operation for a request. True: nobody runs the action yet, and the caller has to.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn begin(
        &self,
        (instance, action): ExecutionKey,
        may_join: bool,
        inline: Inline,
    ) -> Result<(Arc<Operation>, bool), Status> {
        let key = (instance, action);
        let name = name(&key.0);
        let mut table = self.table.lock();
        if table.running >= MAX_OPERATIONS {
            let text = format!("{MAX_OPERATIONS} operations have not ended, the limit");
            return Err(Status::resource_exhausted(text));
        }
        let joined = table.by_action.get(&key).filter(|_| may_join).cloned();
        let is_new = joined.is_none();
        let execution = joined.unwrap_or_else(|| Arc::new(Execution::new(&key, &self.logs)));
        if is_new && may_join {
            table.by_action.insert(key, execution.clone());
        }
        execution.operations.lock().push(name.clone());
        let cancelled = CancellationToken::new();
        let operation = Arc::new(Operation { name: name.clone(), execution, inline, cancelled });
        table.by_name.insert(name, operation.clone());
        table.running += 1;
        Ok((operation, is_new))
    }

    /// The execution is over: all of its operations have ended.
    pub(crate) fn finish(&self, execution: &Arc<Execution>, response: api::ExecuteResponse) {
        let size = prost::Message::encoded_len(&response);
        let mut table = self.table.lock();
        table.forget_action(execution);
        for name in std::mem::take(&mut *execution.operations.lock()) {
            table.end(name, size);
        }
        drop(table);
        execution.stdout.end();
        execution.stderr.end();
        execution.progress.send_modify(|progress| {
            progress.stage = Stage::Completed;
            progress.response = Some(Arc::new(response));
        });
    }

    /// The operation of this name, which somebody wants to know about.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Operation>> {
        let operation = self.table.lock().by_name.get(name).cloned()?;
        operation.execution.seen.notify_one();
        Some(operation)
    }

    /// What an operation's command prints.
    pub(crate) fn log(&self, name: &LogName) -> Option<Arc<Log>> {
        let operation = self.get(&format!("{}{}", prefix(&name.instance), name.operation))?;
        let execution = &operation.execution;
        Some(match name.stream {
            LogStream::Stdout => execution.stdout.clone(),
            LogStream::Stderr => execution.stderr.clone(),
        })
    }

    /// Ends an operation; with the last of its operations the execution ends. False: there is none of this name.
    pub(crate) fn cancel(&self, name: &str) -> bool {
        let mut table = self.table.lock();
        let Some(operation) = table.by_name.get(name).cloned() else { return false };
        let execution = &operation.execution;
        let mut operations = execution.operations.lock();
        let Some(position) = operations.iter().position(|running| running == name) else {
            return true;
        };
        operations.swap_remove(position);
        let is_last = operations.is_empty();
        drop(operations);
        table.end(name.to_owned(), 0);
        operation.cancelled.cancel();
        if is_last {
            table.forget_action(execution);
            execution.cancelled.cancel();
        }
        true
    }

    /// Forgets an operation that has ended. False: it runs; none: there is none of this name.
    pub(crate) fn delete(&self, name: &str) -> Option<bool> {
        let mut table = self.table.lock();
        let operation = table.by_name.get(name)?;
        let runs = operation.execution.operations.lock().iter().any(|running| running == name);
        if !runs {
            table.by_name.remove(name);
        }
        Some(!runs)
    }

    /// Operations of an instance in the order of their names, the first `most` after one of them.
    pub(crate) fn list(
        &self,
        instance: &Instance,
        after: &str,
        most: usize,
    ) -> Vec<Arc<Operation>> {
        let prefix = prefix(instance);
        let table = self.table.lock();
        let from = if after > prefix.as_str() { after.to_owned() } else { prefix.clone() };
        let range = table.by_name.range(from..).take_while(|(name, _)| name.starts_with(&prefix));
        range.filter(|(name, _)| *name != after).take(most).map(|(_, it)| it.clone()).collect()
    }
}

impl Table {
    fn forget_action(&mut self, execution: &Arc<Execution>) {
        let key = (execution.instance.clone(), execution.action);
        if self.by_action.get(&key).is_some_and(|known| Arc::ptr_eq(known, execution)) {
            self.by_action.remove(&key);
        }
    }

    fn end(&mut self, name: String, size: usize) {
        self.running -= 1;
        self.ended_bytes += size;
        self.ended.push_back((name, size));
        while self.ended.len() > MAX_ENDED || self.ended_bytes > MAX_ENDED_BYTES {
            let Some((name, size)) = self.ended.pop_front() else { return };
            self.ended_bytes -= size;
            self.by_name.remove(&name);
        }
    }
}

impl Execution {
    fn new((instance, action): &ExecutionKey, logs: &LogRoom) -> Self {
        let progress = Progress { stage: Stage::CacheCheck, metadata: None, response: None };
        Self {
            instance: instance.clone(),
            action: *action,
            stdout: Arc::new(logs.log()),
            stderr: Arc::new(logs.log()),
            progress: watch::Sender::new(progress),
            seen: Notify::new(),
            cancelled: CancellationToken::new(),
            operations: Mutex::default(),
        }
    }

    /// Tells who watches how far it is.
    pub(crate) fn advance(&self, stage: Stage, metadata: Option<api::ExecutedActionMetadata>) {
        self.progress.send_modify(|progress| {
            progress.stage = stage;
            progress.metadata = metadata.map(Arc::new);
        });
    }

    /// Waits until nobody wants it any more: its operations are cancelled, or have not been watched for `patience`.
    pub(crate) async fn unwanted(&self, patience: Duration) -> Status {
        tokio::select! {
            () = self.cancelled.cancelled() => {
                Status::cancelled("all of its operations were cancelled")
            }
            () = self.unwatched(patience) => {
                Status::cancelled(format!("nobody has watched it for {} s", patience.as_secs()))
            }
        }
    }

    async fn unwatched(&self, patience: Duration) {
        loop {
            self.progress.closed().await;
            let seen = tokio::time::timeout(patience, self.seen.notified()).await;
            if seen.is_err() && self.progress.receiver_count() == 0 {
                return;
            }
        }
    }
}

impl Operation {
    /// By which name `ByteStream` reads what its command prints.
    pub(crate) fn log_name(&self, stream: LogStream) -> LogName {
        let instance = self.execution.instance.clone();
        let operation = self.name.rsplit('/').next().unwrap_or_default().to_owned();
        LogName { instance, operation, stream }
    }

    /// The operation now.
    pub(crate) fn snapshot(self: &Arc<Self>) -> Snapshot {
        let mut progress = self.execution.progress.borrow().clone();
        if progress.response.is_none() && self.cancelled.is_cancelled() {
            progress = cancelled();
        }
        Snapshot { operation: self.clone(), progress }
    }

    /// The operation now and after every change, up to its end.
    pub(crate) fn watch(self: Arc<Self>) -> impl Stream<Item = Snapshot> + Send {
        let mut receiver = self.execution.progress.subscribe();
        receiver.mark_changed();
        self.execution.seen.notify_one();
        futures::stream::unfold(Some((self, receiver)), |state| async move {
            let (operation, mut receiver) = state?;
            tokio::select! {
                biased;
                changed = receiver.changed() => changed.ok()?,
                () = operation.cancelled.cancelled() => {}
            }
            let snapshot = operation.snapshot();
            let is_over = snapshot.progress.response.is_some();
            Some((snapshot, (!is_over).then_some((operation, receiver))))
        })
    }
}

fn cancelled() -> Progress {
    let status = to_rpc(&Status::cancelled("the operation was cancelled"));
    let response = api::ExecuteResponse { status: Some(status), ..Default::default() };
    Progress { stage: Stage::Completed, metadata: None, response: Some(Arc::new(response)) }
}

/// A name that nobody guesses.
fn name(instance: &Instance) -> String {
    format!("{}{:032x}", prefix(instance), rand::random::<u128>())
}

/// How the names of an instance's operations begin.
fn prefix(instance: &Instance) -> String {
    format!("{}operations/", instance.prefix())
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;
    use futures::{FutureExt, StreamExt};
    use tonic::Code;

    use super::*;

    fn key(instance: &str) -> ExecutionKey {
        (Instance::parse(instance).unwrap(), DigestFunction::Sha256.digest(b"action"))
    }

    fn list(
        operations: &Operations,
        instance: &str,
        after: &str,
        most: usize,
    ) -> Vec<Arc<Operation>> {
        operations.list(&Instance::parse(instance).unwrap(), after, most)
    }

    fn begin(operations: &Operations, may_join: bool) -> (Arc<Operation>, bool) {
        operations.begin(key(""), may_join, Inline::default()).unwrap()
    }

    fn code(snapshot: &Snapshot) -> Option<i32> {
        let response = snapshot.progress.response.as_ref()?;
        Some(response.status.as_ref().map_or(0, |status| status.code))
    }

    #[test]
    fn equal_actions_of_one_instance_share_an_execution_and_no_others_do() {
        let operations = Operations::default();
        let (first, is_new) = begin(&operations, true);
        assert!(is_new && first.name.starts_with("operations/"));
        let (second, is_new) = begin(&operations, true);
        assert!(!is_new && second.name != first.name);
        assert!(Arc::ptr_eq(&first.execution, &second.execution));
        assert!(begin(&operations, false).1, "who may not share");
        assert!(operations.begin(key("other"), true, Inline::default()).unwrap().1);
        operations.finish(&first.execution, api::ExecuteResponse::default());
        assert!(begin(&operations, true).1, "it is over");
    }

    #[tokio::test]
    async fn who_watches_hears_at_once_how_far_it_is_and_then_of_every_change_up_to_the_end() {
        let operations = Operations::default();
        let (operation, _) = begin(&operations, true);
        let execution = operation.execution.clone();
        let mut watching = std::pin::pin!(operation.watch());
        assert_eq!(watching.next().await.unwrap().progress.stage, Stage::CacheCheck);
        assert!(watching.next().now_or_never().is_none());
        execution.advance(Stage::Queued, None);
        assert_eq!(watching.next().await.unwrap().progress.stage, Stage::Queued);
        operations.finish(&execution, api::ExecuteResponse::default());
        let last = watching.next().await.unwrap();
        assert_eq!((last.progress.stage, code(&last)), (Stage::Completed, Some(0)));
        assert!(watching.next().await.is_none());
    }

    #[tokio::test]
    async fn an_execution_is_cancelled_with_the_last_of_its_operations() {
        let operations = Operations::default();
        let (first, _) = begin(&operations, true);
        let (second, _) = begin(&operations, true);
        assert!(operations.cancel(&first.name) && operations.cancel(&first.name));
        assert!(!operations.cancel("operations/none"));
        assert_eq!(code(&first.snapshot()), Some(Code::Cancelled as i32));
        assert_eq!(code(&second.snapshot()), None);
        let execution = first.execution.clone();
        assert!(execution.cancelled.cancelled().now_or_never().is_none());
        operations.cancel(&second.name);
        execution.cancelled.cancelled().await;
        assert!(begin(&operations, true).1, "nobody joins what is being cancelled");
    }

    #[tokio::test(start_paused = true)]
    async fn an_execution_that_nobody_watches_for_a_while_is_unwanted() {
        let operations = Operations::default();
        let patience = Duration::from_secs(60);
        let (operation, _) = begin(&operations, true);
        let execution = operation.execution.clone();
        let name = operation.name.clone();
        let watching = operation.watch();
        let unwanted = tokio::spawn(async move { execution.unwanted(patience).await });
        tokio::time::sleep(3 * patience).await;
        assert!(!unwanted.is_finished(), "somebody watches");
        drop(watching);
        tokio::time::sleep(patience / 2).await;
        assert!(operations.get(&name).is_some());
        tokio::time::sleep(patience * 3 / 4).await;
        assert!(!unwanted.is_finished(), "somebody has asked");
        tokio::time::sleep(patience).await;
        assert!(unwanted.is_finished());
    }

    #[test]
    fn ended_operations_are_kept_within_limits_and_may_be_deleted() {
        let operations = Operations::default();
        let (first, _) = begin(&operations, false);
        assert_eq!(operations.delete(&first.name), Some(false));
        operations.finish(&first.execution, api::ExecuteResponse::default());
        for _ in 0..MAX_ENDED {
            let (operation, _) = begin(&operations, false);
            operations.finish(&operation.execution, api::ExecuteResponse::default());
        }
        assert!(operations.get(&first.name).is_none());
        let left = list(&operations, "", "", usize::MAX);
        assert_eq!(left.len(), MAX_ENDED);
        assert_eq!(operations.delete(&left[0].name), Some(true));
        assert_eq!(operations.delete(&left[0].name), None);
    }

    #[test]
    fn operations_are_listed_by_instance_and_page() {
        let operations = Operations::default();
        for instance in ["", "", "", "a", "a/b"] {
            operations.begin(key(instance), false, Inline::default()).unwrap();
        }
        let first = list(&operations, "", "", 2);
        let rest = list(&operations, "", &first[1].name, 2);
        assert_eq!((first.len(), rest.len()), (2, 1));
        assert!(first.iter().all(|operation| operation.name != rest[0].name));
        assert_eq!(list(&operations, "a", "", 9).len(), 1);
        assert_eq!(list(&operations, "a/b", "", 9).len(), 1);
    }
}
