//! The `ByteStream` service: blobs of any size, and what commands print while they run.

mod incoming;
mod reading;
mod uploads;
mod writing;

use bazel_remote_apis::google::bytestream as wire;
use distbuild_cas::DiskStore;
use tonic::{Request, Response, Status, Streaming};

use self::uploads::Uploads;
use super::operations::Operations;
use super::pull::Answers;
use super::resource_name::{Compressor, ReadName, WriteName};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct ByteStreamService {
    store: DiskStore,
    uploads: Uploads,
    /// Largest blob that fits the store.
    max_blob_bytes: u64,
    /// Whose commands print.
    operations: Operations,
}

impl ByteStreamService {
    /// A service over a store whose largest blob has so many bytes.
    pub(crate) fn new(store: DiskStore, max_blob_bytes: u64, operations: Operations) -> Self {
        Self { uploads: Uploads::new(store.clone()), store, max_blob_bytes, operations }
    }
}

#[tonic::async_trait]
impl wire::byte_stream_server::ByteStream for ByteStreamService {
    type ReadStream = Answers<wire::ReadResponse>;

    async fn read(
        &self,
        request: Request<wire::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.get_ref();
        match ReadName::parse(&request.resource_name)? {
            ReadName::Blob { digest, compressor, .. } => {
                let range = reading::Range::parse(request, digest.size_bytes(), compressor)?;
                reading::read(&self.store, digest, compressor, range).await.map(Response::new)
            }
            ReadName::Log(name) => {
                let log = self.operations.log(&name);
                let log = log.ok_or_else(|| Status::not_found(format!("{name} is not known")))?;
                reading::read_log(log, request).map(Response::new)
            }
        }
    }

    async fn write(
        &self,
        request: Request<Streaming<wire::WriteRequest>>,
    ) -> Result<Response<wire::WriteResponse>, Status> {
        let committed_size = self.write_blob(request.into_inner()).await?;
        Ok(Response::new(wire::WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        request: Request<wire::QueryWriteStatusRequest>,
    ) -> Result<Response<wire::QueryWriteStatusResponse>, Status> {
        let name = WriteName::parse(&request.get_ref().resource_name)?;
        let complete = self.store.contains(&name.digest);
        // What nobody has begun is to be begun: clients take `NOT_FOUND` for the end of their upload.
        let committed = match complete {
            true => name.digest.size_bytes(),
            false => self.uploads.tell(&name).unwrap_or(0),
        };
        let committed_size = i64::try_from(committed).unwrap_or(i64::MAX);
        Ok(Response::new(wire::QueryWriteStatusResponse { committed_size, complete }))
    }
}
