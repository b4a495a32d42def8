//! A client of the Remote Execution API, and a worker's end of what it gets from it.

use std::sync::Arc;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_client::ExecutionClient;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_stage::Value as Stage;
use bazel_remote_apis::google::longrunning::Operation;
use bazel_remote_apis::google::longrunning::operation::Result as Ended;
use bazel_remote_apis::google::longrunning::operations_client::OperationsClient;
use bytes::Bytes;
use distbuild_cas::chunks::error_chunk;
use distbuild_cas::lending::{Lends, lend};
use distbuild_cas::{BlobStore, DiskStore, MemoryStore, StoreConfig};
use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::wire::lend_request::Body;
use distbuild_proto::{Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name, wire};
use prost::Message;
use tokio::sync::Semaphore;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::fake::{FakeWorker, Farm, soon};

pub(crate) const FUNCTION: DigestFunction = DigestFunction::Sha256;

/// A client with what it has uploaded.
pub(crate) struct ApiClient {
    pub(crate) store: DiskStore,
    pub(crate) execution: ExecutionClient<Channel>,
    pub(crate) operations: OperationsClient<Channel>,
}

/// What one execution is asked with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    pub(crate) instance: String,
    pub(crate) skip_cache_lookup: bool,
    pub(crate) priority: i32,
    pub(crate) inline_stdout: bool,
}

/// An operation's stream.
pub(crate) struct Watched {
    stream: Streaming<Operation>,
    pub(crate) last: Operation,
}

pub(crate) fn to_api(digest: &Digest) -> api::Digest {
    api::Digest { hash: digest.hex(), size_bytes: digest.size_bytes() as i64 }
}

impl ApiClient {
    pub(crate) async fn new(farm: &Farm) -> Self {
        let store = DiskStore::open(StoreConfig::new(farm.store_path())).unwrap();
        let execution = ExecutionClient::new(farm.channel().await);
        let operations = OperationsClient::new(farm.channel().await);
        Self { store, execution, operations }
    }

    pub(crate) fn upload(&self, contents: &[u8]) -> Digest {
        let digest = FUNCTION.digest(contents);
        self.store.insert(&digest, contents, false).unwrap();
        digest
    }

    pub(crate) fn upload_message(&self, message: &impl Message) -> Digest {
        self.upload(&message.encode_to_vec())
    }

    /// An action that runs `true` with the file `in` and may make `out`, changed as the caller likes.
    pub(crate) fn action(
        &self,
        change: impl FnOnce(&mut api::Action, &mut api::Command),
    ) -> Digest {
        let input = self.upload(b"input");
        let node = FileNode { name: Name::new(b"in").unwrap(), digest: input, executable: false };
        let (root, blob) =
            Directory::new(vec![node], vec![], vec![]).unwrap().encode_with_digest(FUNCTION);
        self.upload(&blob);
        let mut command = api::Command {
            arguments: vec!["true".to_owned()],
            output_paths: vec!["out".to_owned()],
            ..Default::default()
        };
        let mut action =
            api::Action { input_root_digest: Some(to_api(&root)), ..Default::default() };
        change(&mut action, &mut command);
        if action.command_digest.is_none() {
            action.command_digest = Some(to_api(&self.upload_message(&command)));
        }
        self.upload_message(&action)
    }

    pub(crate) async fn try_execute(&self, action: &Digest, ask: Ask) -> Result<Watched, Status> {
        let request = api::ExecuteRequest {
            instance_name: ask.instance,
            skip_cache_lookup: ask.skip_cache_lookup,
            action_digest: Some(to_api(action)),
            execution_policy: Some(api::ExecutionPolicy { priority: ask.priority }),
            inline_stdout: ask.inline_stdout,
            ..Default::default()
        };
        let stream = soon("execution", self.execution.clone().execute(request)).await?;
        Watched::new(stream.into_inner()).await
    }

    pub(crate) async fn execute(&self, action: &Digest) -> Watched {
        self.execute_as(action, Ask::default()).await
    }

    pub(crate) async fn execute_as(&self, action: &Digest, ask: Ask) -> Watched {
        self.try_execute(action, ask).await.unwrap()
    }

    pub(crate) async fn wait(&self, name: &str) -> Result<Watched, Status> {
        let request = api::WaitExecutionRequest { name: name.to_owned() };
        let stream = soon("wait", self.execution.clone().wait_execution(request)).await?;
        Watched::new(stream.into_inner()).await
    }
}

impl Watched {
    async fn new(mut stream: Streaming<Operation>) -> Result<Self, Status> {
        let last = soon("first state", stream.message()).await?.expect("a first state");
        Ok(Self { stream, last })
    }

    pub(crate) fn name(&self) -> &str {
        &self.last.name
    }

    pub(crate) fn metadata(&self) -> api::ExecuteOperationMetadata {
        metadata(&self.last)
    }

    /// Waits until the operation has this stage.
    pub(crate) async fn reach(&mut self, stage: Stage) {
        while self.metadata().stage() != stage {
            let next = soon("next state", self.stream.message()).await.unwrap();
            self.last = next.unwrap_or_else(|| panic!("the stream ended before {stage:?}"));
            check(&self.last);
        }
    }

    /// The response; the stream ends with it.
    pub(crate) async fn response(&mut self) -> api::ExecuteResponse {
        self.reach(Stage::Completed).await;
        assert!(soon("end", self.stream.message()).await.unwrap().is_none());
        response(&self.last).unwrap()
    }
}

/// Done, if and only if completed, and never with an error of its own.
fn check(operation: &Operation) {
    assert_eq!(operation.done, metadata(operation).stage() == Stage::Completed);
    assert!(!matches!(operation.result, Some(Ended::Error(_))));
}

pub(crate) fn metadata(operation: &Operation) -> api::ExecuteOperationMetadata {
    let any = operation.metadata.as_ref().unwrap();
    let name = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata";
    assert_eq!(any.type_url, name);
    api::ExecuteOperationMetadata::decode(&any.value[..]).unwrap()
}

pub(crate) fn response(operation: &Operation) -> Option<api::ExecuteResponse> {
    check(operation);
    let Some(Ended::Response(any)) = &operation.result else { return None };
    let name = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse";
    assert_eq!(any.type_url, name);
    Some(api::ExecuteResponse::decode(&any.value[..]).unwrap())
}

pub(crate) fn code(response: &api::ExecuteResponse) -> tonic::Code {
    tonic::Code::from(response.status.as_ref().unwrap().code)
}

pub(crate) fn platform(name: &str, value: &str) -> Option<api::Platform> {
    let property = api::platform::Property { name: name.to_owned(), value: value.to_owned() };
    Some(api::Platform { properties: vec![property] })
}

/// The output of an action as a worker holds it.
pub(crate) struct Output {
    pub(crate) root: Digest,
    blobs: Lent,
}

/// Blobs that a fake worker lends.
#[derive(Clone, Default)]
pub(crate) struct Lent(Arc<MemoryStore>);

impl Lends for Lent {
    fn send_all(&self, digests: &[Digest], mut send: impl FnMut(Vec<wire::BlobChunk>) -> bool) {
        for (index, digest) in (0..).zip(digests) {
            let chunk = match self.0.read(digest) {
                Ok(data) => wire::BlobChunk { index, data, last: true, ..Default::default() },
                Err(error) => error_chunk(index, error.to_string(), true),
            };
            if !send(vec![chunk]) {
                return;
            }
        }
    }
}

impl Lent {
    pub(crate) fn add(&self, blob: &[u8]) -> Digest {
        let digest = FUNCTION.digest(blob);
        self.0.insert(&digest, blob, false).unwrap();
        digest
    }
}

/// An output tree with these files, of which those with a slash lie in a directory.
pub(crate) fn output(files: &[(&str, &str)]) -> Output {
    let blobs = Lent::default();
    let node = |name: &str, contents: &str| FileNode {
        name: Name::new(name.as_bytes()).unwrap(),
        digest: blobs.add(contents.as_bytes()),
        executable: false,
    };
    let mut top = Vec::new();
    let mut below = std::collections::BTreeMap::<&str, Vec<FileNode>>::new();
    for (path, contents) in files {
        match path.split_once('/') {
            Some((directory, name)) => {
                below.entry(directory).or_default().push(node(name, contents));
            }
            None => top.push(node(path, contents)),
        }
    }
    let mut directories = Vec::new();
    for (name, files) in below {
        let directory = Directory::new(files, vec![], vec![]).unwrap();
        let digest = blobs.add(&directory.encode());
        directories.push(DirectoryNode { name: Name::new(name.as_bytes()).unwrap(), digest });
    }
    let root = Directory::new(top, directories, vec![]).unwrap();
    Output { root: blobs.add(&root.encode()), blobs }
}

impl FakeWorker {
    /// Lends what an output consists of, and reports the end of an attempt with it.
    pub(crate) async fn end_with(
        &self,
        assign: &wire::Assign,
        end: wire::AttemptEnd,
        output: &Output,
        change: impl FnOnce(&mut wire::JobResult),
    ) {
        self.lend(&output.blobs).await;
        let mut result = wire::JobResult {
            output_root: Some(output.root.into()),
            timings: Some(wire::Timings { setup_ms: 1, run_ms: 2, ..Default::default() }),
            ..Default::default()
        };
        change(&mut result);
        self.end(assign, end, Some(result)).await;
    }

    /// Reports success with these files.
    pub(crate) async fn make(&self, assign: &wire::Assign, files: &[(&str, &str)]) {
        self.end_with(assign, wire::AttemptEnd::AttemptSucceeded, &output(files), |_| {}).await;
    }

    /// From now on lends these.
    pub(crate) async fn lend(&self, blobs: &Lent) {
        let body =
            Body::Worker(wire::WorkerLender { session: self.session, secret: self.secret.clone() });
        let (client, blobs) = (BlobsClient::new(self.channel.clone()), blobs.clone());
        tokio::spawn(async move {
            let _ = lend(client, body, blobs, Arc::new(Semaphore::new(4))).await;
        });
    }
}

/// The contents of a blob in the coordinator's store.
pub(crate) fn read(client: &ApiClient, digest: Option<&api::Digest>) -> Bytes {
    let digest = digest.unwrap();
    let digest = Digest::from_hex(FUNCTION, &digest.hash, digest.size_bytes as u64).unwrap();
    client.store.read(&digest).unwrap()
}
