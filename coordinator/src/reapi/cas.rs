//! The `ContentAddressableStorage` service.

use std::collections::HashSet;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_cas::DiskStore;
use distbuild_proto::Digest;
use futures::stream;
use tonic::{Request, Response, Status, Streaming};

use super::instance::Instance;
use super::pull::Answers;
use super::trees::TreeRequest;
use super::{batch, chunking, digest, status};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct CasService {
    pub(crate) store: DiskStore,
    /// Largest blob that fits the store.
    pub(crate) max_blob_bytes: u64,
}

impl CasService {
    /// Does work that waits for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DiskStore) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|error| status::of_thread(&error))?
    }

    async fn split(
        &self,
        instance: &str,
        function: i32,
        blob: Option<&api::Digest>,
    ) -> Result<Vec<api::Digest>, Status> {
        Instance::parse(instance)?;
        let blob = digest::parse_one(function, blob).map_err(status::invalid)?;
        let chunks = self.blocking(move |store| chunking::split(store, &blob)).await?;
        Ok(chunks.iter().map(digest::to_api).collect())
    }

    async fn splice(&self, blob: Digest, chunks: Vec<Digest>) -> Result<api::Digest, Status> {
        if blob.size_bytes() > self.max_blob_bytes {
            return Err(too_large(&blob, self.max_blob_bytes));
        }
        self.blocking(move |store| chunking::splice(store, &blob, &chunks)).await?;
        Ok(digest::to_api(&blob))
    }
}

/// A blob that could never be stored.
pub(crate) fn too_large(blob: &Digest, max_bytes: u64) -> Status {
    let size_bytes = blob.size_bytes();
    status::invalid(format!(
        "a blob of {size_bytes} bytes, the largest that is taken has {max_bytes}"
    ))
}

#[tonic::async_trait]
impl api::content_addressable_storage_server::ContentAddressableStorage for CasService {
    type GetTreeStream = Answers<api::GetTreeResponse>;
    type GetChunkMappingStream = Answers<api::GetChunkMappingResponse>;

    async fn find_missing_blobs(
        &self,
        request: Request<api::FindMissingBlobsRequest>,
    ) -> Result<Response<api::FindMissingBlobsResponse>, Status> {
        let request = request.into_inner();
        Instance::parse(&request.instance_name)?;
        if request.blob_digests.is_empty() {
            return Ok(Response::new(api::FindMissingBlobsResponse::default()));
        }
        let function = digest::function(request.digest_function, &request.blob_digests);
        let function = function.map_err(status::invalid)?;
        let parse = |(at, named): (usize, &api::Digest)| {
            digest::parse(function, named)
                .map_err(|error| status::invalid(format!("blob_digests[{at}]: {error}")))
        };
        let digests: Vec<_> =
            request.blob_digests.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        let missing_blob_digests = self
            .blocking(move |store| {
                let mut asked = HashSet::with_capacity(digests.len());
                let mut missing = Vec::new();
                for digest in digests {
                    // To look is to use: what is there is evicted after all that is not asked for.
                    if asked.insert(digest) && !store.contains(&digest) {
                        missing.push(digest::to_api(&digest));
                    }
                }
                Ok(missing)
            })
            .await?;
        Ok(Response::new(api::FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<api::BatchUpdateBlobsRequest>,
    ) -> Result<Response<api::BatchUpdateBlobsResponse>, Status> {
        let request = request.into_inner();
        Instance::parse(&request.instance_name)?;
        self.blocking(move |store| batch::update(store, request)).await.map(Response::new)
    }

    async fn batch_read_blobs(
        &self,
        request: Request<api::BatchReadBlobsRequest>,
    ) -> Result<Response<api::BatchReadBlobsResponse>, Status> {
        let request = request.into_inner();
        Instance::parse(&request.instance_name)?;
        self.blocking(move |store| batch::read(store, request)).await.map(Response::new)
    }

    async fn get_tree(
        &self,
        request: Request<api::GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        let request = request.get_ref();
        Instance::parse(&request.instance_name)?;
        let request = TreeRequest::parse(request)?;
        Ok(Response::new(request.answer(self.store.clone())))
    }

    async fn split_blob(
        &self,
        request: Request<api::SplitBlobRequest>,
    ) -> Result<Response<api::SplitBlobResponse>, Status> {
        let request = request.get_ref();
        let function = request.digest_function;
        let chunk_digests =
            self.split(&request.instance_name, function, request.blob_digest.as_ref()).await?;
        let chunking_function = chunking::FUNCTION as i32;
        Ok(Response::new(api::SplitBlobResponse { chunk_digests, chunking_function }))
    }

    async fn get_chunk_mapping(
        &self,
        request: Request<api::GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        let request = request.get_ref();
        let function = request.digest_function;
        let chunks =
            self.split(&request.instance_name, function, request.blob_digest.as_ref()).await?;
        let mut messages: Vec<_> = chunks
            .chunks(chunking::CHUNKS_PER_MESSAGE)
            .map(|part| api::GetChunkMappingResponse {
                chunk_digests: part.to_vec(),
                chunking_function: 0,
            })
            .collect();
        if messages.is_empty() {
            messages.push(api::GetChunkMappingResponse::default());
        }
        messages[0].chunking_function = chunking::FUNCTION as i32;
        Ok(Response::new(Box::pin(stream::iter(messages.into_iter().map(Ok)))))
    }

    async fn splice_blob(
        &self,
        request: Request<api::SpliceBlobRequest>,
    ) -> Result<Response<api::SpliceBlobResponse>, Status> {
        let request = request.get_ref();
        Instance::parse(&request.instance_name)?;
        let blob = digest::parse_one(request.digest_function, request.blob_digest.as_ref())
            .map_err(status::invalid)?;
        let chunks = chunking::parse(blob.function(), &request.chunk_digests)?;
        let blob_digest = Some(self.splice(blob, chunks).await?);
        Ok(Response::new(api::SpliceBlobResponse { blob_digest }))
    }

    async fn register_chunk_mapping(
        &self,
        request: Request<Streaming<api::RegisterChunkMappingRequest>>,
    ) -> Result<Response<api::RegisterChunkMappingResponse>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?;
        let first = first.ok_or_else(|| status::invalid("the stream has no request"))?;
        Instance::parse(&first.instance_name)?;
        let blob = digest::parse_one(first.digest_function, first.blob_digest.as_ref())
            .map_err(status::invalid)?;
        let mut chunks = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            chunks.extend(chunking::parse(blob.function(), &message.chunk_digests)?);
            if chunks.len() > chunking::MAX_CHUNKS {
                let text = format!("a blob has at most {} chunks", chunking::MAX_CHUNKS);
                return Err(status::invalid(text));
            }
            next = messages.message().await?;
        }
        let blob_digest = Some(self.splice(blob, chunks).await?);
        Ok(Response::new(api::RegisterChunkMappingResponse { blob_digest }))
    }
}
