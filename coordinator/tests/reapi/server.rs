//! A coordinator that serves from a temporary directory, and clients of it.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::google::bytestream as bytes;
use distbuild_coordinator::{Config, Coordinator, Limits, WritableInstances};
use distbuild_proto::{Address, Digest, DigestFunction, transport};
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(crate) type Cas =
    api::content_addressable_storage_client::ContentAddressableStorageClient<Channel>;
pub(crate) type ByteStream = bytes::byte_stream_client::ByteStreamClient<Channel>;
pub(crate) type ActionCache = api::action_cache_client::ActionCacheClient<Channel>;
pub(crate) type Capabilities = api::capabilities_client::CapabilitiesClient<Channel>;

/// What a client accepts if nobody says otherwise.
pub(crate) const CLIENT_MESSAGE_BYTES: usize = 4 << 20;

/// A running coordinator without workers.
pub(crate) struct Server {
    pub(crate) address: Address,
    channel: Channel,
    coordinator: Option<Coordinator>,
    directory: tempfile::TempDir,
    limits: Limits,
}

/// The instance whose results tests may write.
pub(crate) const WRITABLE: &str = "writable/here";

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Self {
        let directory = tempfile::Builder::new().prefix("distbuild-reapi-").tempdir().unwrap();
        let coordinator = start(&directory, limits.clone()).await;
        let address = coordinator.address().clone();
        let channel = transport::connect(&address).await.unwrap();
        Self { address, channel, coordinator: Some(coordinator), directory, limits }
    }

    /// Shuts the coordinator down and starts it again with what it wrote down.
    pub(crate) async fn restart(&mut self) {
        self.coordinator.take().unwrap().shutdown().await;
        let coordinator = start(&self.directory, self.limits.clone()).await;
        self.address = coordinator.address().clone();
        self.channel = transport::connect(&self.address).await.unwrap();
        self.coordinator = Some(coordinator);
    }

    pub(crate) fn cas(&self) -> Cas {
        Cas::new(self.channel.clone())
    }

    pub(crate) fn byte_stream(&self) -> ByteStream {
        ByteStream::new(self.channel.clone())
    }

    /// A client on a connection of its own.
    pub(crate) async fn another_byte_stream(&self) -> ByteStream {
        ByteStream::new(transport::connect(&self.address).await.unwrap())
    }

    pub(crate) fn action_cache(&self) -> ActionCache {
        ActionCache::new(self.channel.clone())
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.channel.clone())
    }

    /// Uploads a blob.
    pub(crate) async fn put(&self, function: DigestFunction, data: &[u8]) -> Digest {
        let digest = function.digest(data);
        let name = upload_name("", "u", &digest);
        let mut messages = Vec::new();
        for (at, bytes) in data.chunks(4 << 20).enumerate() {
            let last = (at + 1) * (4 << 20) >= data.len();
            messages.push(part(&name, at * (4 << 20), bytes, last));
        }
        if messages.is_empty() {
            messages.push(whole(&name, b""));
        }
        self.write(messages).await.unwrap();
        digest
    }

    /// Uploads a message, as actions, commands and directories are.
    pub(crate) async fn put_message(
        &self,
        function: DigestFunction,
        message: &impl Message,
    ) -> Digest {
        self.put(function, &message.encode_to_vec()).await
    }

    /// Which of these are missing.
    pub(crate) async fn missing(&self, digests: &[Digest]) -> Vec<api::Digest> {
        let function = digests.first().map_or(0, |digest| digest.function() as i32);
        let request = api::FindMissingBlobsRequest {
            instance_name: String::new(),
            blob_digests: digests.iter().map(to_api).collect(),
            digest_function: function,
        };
        self.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests
    }

    /// Reads a resource whole.
    pub(crate) async fn read(&self, name: &str, offset: i64, limit: i64) -> Result<Vec<u8>, Code> {
        let request = bytes::ReadRequest {
            resource_name: name.to_owned(),
            read_offset: offset,
            read_limit: limit,
        };
        let read = async {
            let mut stream = self.byte_stream().read(request).await?.into_inner();
            let mut data = Vec::new();
            while let Some(message) = stream.message().await? {
                data.extend(message.data);
            }
            Ok::<_, Status>(data)
        };
        read.await.map_err(|error| error.code())
    }

    /// Writes with these messages; gives the committed size.
    pub(crate) async fn write(&self, messages: Vec<bytes::WriteRequest>) -> Result<i64, Code> {
        let written = self.byte_stream().write(tokio_stream::iter(messages)).await;
        written.map(|written| written.into_inner().committed_size).map_err(|error| error.code())
    }

    /// What `QueryWriteStatus` says: the committed size, and whether the blob is whole.
    pub(crate) async fn query(&self, name: &str) -> Result<(i64, bool), Code> {
        let request = bytes::QueryWriteStatusRequest { resource_name: name.to_owned() };
        let status = self.byte_stream().query_write_status(request).await;
        let status = status.map_err(|error| error.code())?.into_inner();
        Ok((status.committed_size, status.complete))
    }
}

async fn start(directory: &tempfile::TempDir, limits: Limits) -> Coordinator {
    let config = Config {
        listen: Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 },
        state: directory.path().to_owned(),
        exclusive: true,
        writable_instances: WritableInstances::from_iter([WRITABLE.to_owned()]),
        limits,
    };
    Coordinator::start(config).await.unwrap()
}

pub(crate) fn to_api(digest: &Digest) -> api::Digest {
    api::Digest { hash: digest.hex(), size_bytes: digest.size_bytes() as i64 }
}

/// `{function/}{hash}/{size}`.
pub(crate) fn path(digest: &Digest) -> String {
    let function = match digest.function() {
        DigestFunction::Blake3 => "blake3/",
        DigestFunction::Sha1 | DigestFunction::Sha256 => "",
    };
    format!("{function}{}/{}", digest.hex(), digest.size_bytes())
}

pub(crate) fn read_name(digest: &Digest) -> String {
    format!("blobs/{}", path(digest))
}

/// `prefix` is the instance with its slash.
pub(crate) fn upload_name(prefix: &str, upload: &str, digest: &Digest) -> String {
    format!("{prefix}uploads/{upload}/blobs/{}", path(digest))
}

pub(crate) fn zstd_upload_name(upload: &str, digest: &Digest) -> String {
    format!("uploads/{upload}/compressed-blobs/zstd/{}", path(digest))
}

/// A blob in one message.
pub(crate) fn whole(name: &str, data: &[u8]) -> bytes::WriteRequest {
    part(name, 0, data, true)
}

pub(crate) fn part(name: &str, offset: usize, data: &[u8], finish: bool) -> bytes::WriteRequest {
    bytes::WriteRequest {
        resource_name: name.to_owned(),
        write_offset: offset as i64,
        finish_write: finish,
        data: data.to_vec(),
    }
}

/// Bytes that do not compress and are the same everywhere.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}
