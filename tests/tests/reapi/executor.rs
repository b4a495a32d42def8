//! A plain client of the API that has actions executed.

use std::collections::BTreeMap;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::remote::execution::v2::content_addressable_storage_client::ContentAddressableStorageClient;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_client::ExecutionClient;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_stage::Value as Stage;
use bazel_remote_apis::google::bytestream::ReadRequest;
use bazel_remote_apis::google::bytestream::byte_stream_client::ByteStreamClient;
use bazel_remote_apis::google::longrunning::Operation;
use bazel_remote_apis::google::longrunning::operation::Result as Ended;
use bazel_remote_apis::google::longrunning::operations_client::OperationsClient;
use distbuild_proto::{Digest, DigestFunction};
use distbuild_tests::{Farm, wait};
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// A client with one digest function.
#[derive(Clone)]
pub(crate) struct Executor {
    pub(crate) channel: Channel,
    pub(crate) function: DigestFunction,
}

/// What is in an input directory, by name.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    File(&'static str),
    Program(&'static str),
    Link(&'static str),
    Directory(BTreeMap<&'static str, Self>),
}

/// An operation that is watched.
pub(crate) struct Watched {
    stream: Streaming<Operation>,
    pub(crate) last: Operation,
}

pub(crate) fn to_api(digest: &Digest) -> api::Digest {
    api::Digest { hash: digest.hex(), size_bytes: digest.size_bytes() as i64 }
}

/// A command that a shell runs, with the outputs that it has.
pub(crate) fn shell(script: &str, outputs: &[&str]) -> api::Command {
    api::Command {
        arguments: ["sh", "-c", script].map(str::to_owned).into(),
        output_paths: outputs.iter().map(|path| (*path).to_owned()).collect(),
        ..Default::default()
    }
}

impl Executor {
    pub(crate) async fn new(farm: &Farm) -> Self {
        Self::with(farm, DigestFunction::Sha256).await
    }

    pub(crate) async fn with(farm: &Farm, function: DigestFunction) -> Self {
        let endpoint = Channel::from_shared(format!("http://{}", farm.address())).unwrap();
        Self { channel: endpoint.connect().await.unwrap(), function }
    }

    pub(crate) async fn upload(&self, data: &[u8]) -> api::Digest {
        let digest = to_api(&self.function.digest(data));
        let request = api::batch_update_blobs_request::Request {
            digest: Some(digest.clone()),
            data: data.to_vec(),
            ..Default::default()
        };
        let request = api::BatchUpdateBlobsRequest {
            requests: vec![request],
            digest_function: self.function as i32,
            ..Default::default()
        };
        let mut client = ContentAddressableStorageClient::new(self.channel.clone());
        let answer = client.batch_update_blobs(request).await.unwrap().into_inner();
        assert_eq!(answer.responses[0].status.clone().unwrap_or_default().code, 0);
        digest
    }

    /// Uploads a tree; the digest of its root.
    pub(crate) async fn upload_tree(&self, inputs: &BTreeMap<&'static str, Input>) -> api::Digest {
        let mut directory = api::Directory::default();
        for (name, input) in inputs {
            let name = (*name).to_owned();
            match input {
                Input::File(contents) | Input::Program(contents) => {
                    directory.files.push(api::FileNode {
                        name,
                        digest: Some(self.upload(contents.as_bytes()).await),
                        is_executable: matches!(input, Input::Program(_)),
                        ..Default::default()
                    });
                }
                Input::Link(target) => directory.symlinks.push(api::SymlinkNode {
                    name,
                    target: (*target).to_owned(),
                    ..Default::default()
                }),
                Input::Directory(inputs) => {
                    let digest = Some(Box::pin(self.upload_tree(inputs)).await);
                    directory.directories.push(api::DirectoryNode { name, digest });
                }
            }
        }
        self.upload(&directory.encode_to_vec()).await
    }

    /// Uploads an action.
    pub(crate) async fn action(
        &self,
        command: &api::Command,
        inputs: &[(&'static str, Input)],
        change: impl FnOnce(&mut api::Action),
    ) -> api::Digest {
        let command = self.upload(&command.encode_to_vec()).await;
        let root = self.upload_tree(&inputs.iter().cloned().collect()).await;
        let mut action = api::Action {
            command_digest: Some(command),
            input_root_digest: Some(root),
            ..Default::default()
        };
        change(&mut action);
        self.upload(&action.encode_to_vec()).await
    }

    pub(crate) fn request(&self, action: &api::Digest) -> api::ExecuteRequest {
        api::ExecuteRequest {
            action_digest: Some(action.clone()),
            digest_function: self.function as i32,
            ..Default::default()
        }
    }

    pub(crate) async fn start(&self, action: &api::Digest) -> Watched {
        let mut client = ExecutionClient::new(self.channel.clone());
        let stream = client.execute(self.request(action)).await.unwrap().into_inner();
        Watched::new(stream).await
    }

    /// Runs a command on inputs; the response.
    pub(crate) async fn run(
        &self,
        command: &api::Command,
        inputs: &[(&'static str, Input)],
    ) -> api::ExecuteResponse {
        let action = self.action(command, inputs, |_| {}).await;
        self.start(&action).await.response().await
    }

    /// Runs a command that succeeds.
    pub(crate) async fn result(
        &self,
        command: &api::Command,
        inputs: &[(&'static str, Input)],
    ) -> api::ActionResult {
        let response = self.run(command, inputs).await;
        assert_eq!(code(&response), Code::Ok, "{response:?}");
        let result = response.result.unwrap();
        if result.exit_code != 0 {
            let stderr = self.text(result.stderr_digest.as_ref()).await;
            panic!("exit code {}: {stderr}", result.exit_code);
        }
        result
    }

    pub(crate) async fn wait(&self, name: &str) -> Result<Watched, Status> {
        let mut client = ExecutionClient::new(self.channel.clone());
        let request = api::WaitExecutionRequest { name: name.to_owned() };
        Ok(Watched::new(client.wait_execution(request).await?.into_inner()).await)
    }

    pub(crate) fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel.clone())
    }

    /// A blob as text; nothing for no digest.
    pub(crate) async fn text(&self, digest: Option<&api::Digest>) -> String {
        let Some(digest) = digest else { return String::new() };
        String::from_utf8(self.read(digest).await).unwrap()
    }

    pub(crate) async fn read(&self, digest: &api::Digest) -> Vec<u8> {
        let function = match self.function {
            DigestFunction::Blake3 => "blake3/",
            DigestFunction::Sha1 | DigestFunction::Sha256 => "",
        };
        let name = format!("blobs/{function}{}/{}", digest.hash, digest.size_bytes);
        let mut stream = self.stream(&name).await;
        let mut data = Vec::new();
        while let Some(piece) = stream.message().await.unwrap() {
            data.extend(piece.data);
        }
        data
    }

    pub(crate) async fn stream(
        &self,
        name: &str,
    ) -> Streaming<bazel_remote_apis::google::bytestream::ReadResponse> {
        let mut client = ByteStreamClient::new(self.channel.clone());
        let request = ReadRequest { resource_name: name.to_owned(), ..Default::default() };
        client.read(request).await.unwrap().into_inner()
    }

    /// The contents of an output file.
    pub(crate) async fn output(&self, result: &api::ActionResult, path: &str) -> String {
        let file = result.output_files.iter().find(|file| file.path == path);
        let file = file.unwrap_or_else(|| panic!("no output {path:?} in {result:?}"));
        self.text(file.digest.as_ref()).await
    }

    /// The `Tree` of an output directory.
    pub(crate) async fn tree(&self, result: &api::ActionResult, path: &str) -> api::Tree {
        let directory = result.output_directories.iter().find(|it| it.path == path);
        let directory = directory.unwrap_or_else(|| panic!("no directory {path:?} in {result:?}"));
        let tree = self.read(directory.tree_digest.as_ref().unwrap()).await;
        api::Tree::decode(&tree[..]).unwrap()
    }
}

impl Watched {
    async fn new(mut stream: Streaming<Operation>) -> Self {
        let last = stream.message().await.unwrap().expect("a first state");
        Self { stream, last }
    }

    pub(crate) fn metadata(&self) -> api::ExecuteOperationMetadata {
        let any = self.last.metadata.as_ref().unwrap();
        api::ExecuteOperationMetadata::decode(&any.value[..]).unwrap()
    }

    pub(crate) async fn reach(&mut self, stage: Stage) {
        while self.metadata().stage() != stage {
            let next = tokio::time::timeout(wait::PATIENCE, self.stream.message()).await;
            let next = next.unwrap_or_else(|_| panic!("{stage:?} did not come in time"));
            self.last = next.unwrap().unwrap_or_else(|| panic!("no {stage:?} before the end"));
        }
    }

    pub(crate) async fn response(&mut self) -> api::ExecuteResponse {
        self.reach(Stage::Completed).await;
        let Some(Ended::Response(any)) = &self.last.result else { panic!("{:?}", self.last) };
        api::ExecuteResponse::decode(&any.value[..]).unwrap()
    }
}

pub(crate) fn code(response: &api::ExecuteResponse) -> Code {
    Code::from(response.status.as_ref().unwrap().code)
}
