//! One connection to a server of the API, and the calls that a build tool makes.

use std::time::Duration;

use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use bazel_remote_apis::google::longrunning::operation;
use prost::Message as _;
use reapi::action_cache_client::ActionCacheClient;
use reapi::capabilities_client::CapabilitiesClient;
use reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use reapi::execution_client::ExecutionClient;
use sha2::{Digest as _, Sha256};
use tonic::transport::{Channel, Endpoint};

/// How long dialling may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a request spends on a blob beside its contents, at most: digest, tags and lengths.
const ENTRY_BYTES: usize = 128;
/// Size of a batch if the server names no limit: gRPC's own for a message is 4 MiB.
const DEFAULT_BATCH_BYTES: usize = 4_000_000;
/// Digests in one question of what is missing.
const MAX_ASKED: usize = 10_000;

/// A client of one instance. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    instance: String,
    max_batch_bytes: usize,
    cache: ActionCacheClient<Channel>,
    storage: ContentAddressableStorageClient<Channel>,
    execution: ExecutionClient<Channel>,
}

/// Why a call gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves there.
    #[error("failed to reach {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The server refused a call.
    #[error("{call} failed: {source}")]
    Refused {
        /// The call.
        call: &'static str,
        /// The server's answer.
        source: Box<tonic::Status>,
    },
    /// The server ended an execution with a status, in the operation's response.
    #[error("an action was not executed: {message} (code {code})")]
    NotExecuted {
        /// Code of `google.rpc.Status`.
        code: i32,
        /// Its text.
        message: String,
    },
    /// One blob of a batch was refused.
    #[error("blob {hash} was not stored: {message} (code {code})")]
    NotStored {
        /// Hash of the blob.
        hash: String,
        /// Code of `google.rpc.Status`.
        code: i32,
        /// Its text.
        message: String,
    },
    /// The answer is not what the API asks of servers.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
}

/// The digest of bytes.
pub fn digest(data: &[u8]) -> reapi::Digest {
    use std::fmt::Write as _;
    let hash = Sha256::digest(data).iter().fold(String::with_capacity(64), |mut hash, byte| {
        let _ = write!(hash, "{byte:02x}");
        hash
    });
    reapi::Digest { hash, size_bytes: data.len() as i64 }
}

impl Client {
    /// Dials `host:port` and asks what the server can do.
    ///
    /// # Errors
    /// Nobody serves there, or not this API.
    pub async fn connect(address: &str, instance: &str) -> Result<Self, ClientError> {
        let connected = async {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
            endpoint.tcp_nodelay(true).connect_timeout(CONNECT_TIMEOUT).connect().await
        };
        let channel = connected
            .await
            .map_err(|source| ClientError::Connect { address: address.to_owned(), source })?;
        let asked = reapi::GetCapabilitiesRequest { instance_name: instance.to_owned() };
        let capabilities = CapabilitiesClient::new(channel.clone()).get_capabilities(asked).await;
        let capabilities = capabilities.map_err(refused("GetCapabilities"))?.into_inner();
        let limit = capabilities.cache_capabilities.map_or(0, |c| c.max_batch_total_size_bytes);
        let max_batch_bytes = match usize::try_from(limit) {
            Ok(limit @ 1..) => limit.min(DEFAULT_BATCH_BYTES),
            _ => DEFAULT_BATCH_BYTES,
        };
        Ok(Self {
            instance: instance.to_owned(),
            max_batch_bytes,
            cache: ActionCacheClient::new(channel.clone()),
            storage: ContentAddressableStorageClient::new(channel.clone()),
            execution: ExecutionClient::new(channel),
        })
    }

    /// Which of these the server lacks.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn find_missing(
        &self,
        digests: &[reapi::Digest],
    ) -> Result<Vec<reapi::Digest>, ClientError> {
        let mut missing = Vec::new();
        for digests in digests.chunks(MAX_ASKED) {
            let asked = reapi::FindMissingBlobsRequest {
                instance_name: self.instance.clone(),
                blob_digests: digests.to_vec(),
                ..Default::default()
            };
            let answer = self.storage.clone().find_missing_blobs(asked).await;
            let answer = answer.map_err(refused("FindMissingBlobs"))?.into_inner();
            missing.extend(answer.missing_blob_digests);
        }
        Ok(missing)
    }

    /// Stores blobs, in batches of the size that the server allows.
    ///
    /// # Errors
    /// The server refuses one.
    pub async fn upload(
        &self,
        blobs: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<(), ClientError> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for data in blobs {
            let more = data.len() + ENTRY_BYTES;
            if bytes + more > self.max_batch_bytes && !batch.is_empty() {
                self.upload_batch(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            bytes += more;
            batch.push(data);
        }
        if batch.is_empty() { Ok(()) } else { self.upload_batch(batch).await }
    }

    async fn upload_batch(&self, blobs: Vec<Vec<u8>>) -> Result<(), ClientError> {
        let entry = |data: Vec<u8>| reapi::batch_update_blobs_request::Request {
            digest: Some(digest(&data)),
            data,
            ..Default::default()
        };
        let asked = reapi::BatchUpdateBlobsRequest {
            instance_name: self.instance.clone(),
            requests: blobs.into_iter().map(entry).collect(),
            ..Default::default()
        };
        let answer = self.storage.clone().batch_update_blobs(asked).await;
        for one in answer.map_err(refused("BatchUpdateBlobs"))?.into_inner().responses {
            let status = one.status.unwrap_or_default();
            if status.code != 0 {
                let hash = one.digest.unwrap_or_default().hash;
                return Err(ClientError::NotStored {
                    hash,
                    code: status.code,
                    message: status.message,
                });
            }
        }
        Ok(())
    }

    /// What the cache has for an action.
    ///
    /// # Errors
    /// The server refuses, other than by not having it.
    pub async fn cached(
        &self,
        action: &reapi::Digest,
    ) -> Result<Option<reapi::ActionResult>, ClientError> {
        let asked = reapi::GetActionResultRequest {
            instance_name: self.instance.clone(),
            action_digest: Some(action.clone()),
            ..Default::default()
        };
        match self.cache.clone().get_action_result(asked).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(refused("GetActionResult")(status)),
        }
    }

    /// Executes an action whose blobs are stored, and waits for its end.
    ///
    /// # Errors
    /// The server refuses, or ends it with a status other than OK. A command that fails is no error.
    pub async fn execute(
        &self,
        action: &reapi::Digest,
    ) -> Result<reapi::ExecuteResponse, ClientError> {
        let asked = reapi::ExecuteRequest {
            instance_name: self.instance.clone(),
            action_digest: Some(action.clone()),
            ..Default::default()
        };
        let operations = self.execution.clone().execute(asked).await;
        let mut operations = operations.map_err(refused("Execute"))?.into_inner();
        while let Some(operation) = operations.message().await.map_err(refused("Execute"))? {
            if !operation.done {
                continue;
            }
            let Some(operation::Result::Response(response)) = operation.result else {
                return Err(ClientError::Protocol("an operation that is done has no response"));
            };
            let response = reapi::ExecuteResponse::decode(response.value.as_slice())
                .map_err(|_| ClientError::Protocol("the response is no ExecuteResponse"))?;
            return match &response.status {
                Some(status) if status.code != 0 => Err(ClientError::NotExecuted {
                    code: status.code,
                    message: status.message.clone(),
                }),
                _ => Ok(response),
            };
        }
        Err(ClientError::Protocol("the stream of an operation ended before it was done"))
    }
}

fn refused(call: &'static str) -> impl Fn(tonic::Status) -> ClientError {
    move |status| ClientError::Refused { call, source: Box::new(status) }
}
