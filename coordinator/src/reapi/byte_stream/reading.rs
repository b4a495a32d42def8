//! Blobs on their way to a client.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use bazel_remote_apis::google::bytestream::{ReadRequest, ReadResponse};
use distbuild_cas::DiskStore;
use distbuild_proto::Digest;
use distbuild_proto::transport::BULK_MESSAGE_BYTES;
use futures::{StreamExt, stream};
use tonic::Status;

use super::Compressor;
use crate::reapi::logs::Log;
use crate::reapi::pull::{Answers, pull};
use crate::reapi::{compression, status};

/// Which bytes of a blob are wanted. Within the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    offset: u64,
    len: u64,
}

impl Range {
    /// Checks offset and limit of a request.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` for an offset below zero or beyond the end; `INVALID_ARGUMENT` for a limit below zero, or any
    /// where bytes come compressed.
    pub(super) fn parse(
        request: &ReadRequest,
        size_bytes: u64,
        compressor: Compressor,
    ) -> Result<Self, Status> {
        let limit = u64::try_from(request.read_limit)
            .map_err(|_| status::invalid(format!("a read_limit of {}", request.read_limit)))?;
        if limit > 0 && compressor != Compressor::Identity {
            return Err(status::invalid("read_limit is not for compressed blobs"));
        }
        let offset = u64::try_from(request.read_offset).ok().filter(|offset| *offset <= size_bytes);
        let offset = offset.ok_or_else(|| {
            let text = format!("offset {} of a blob of {size_bytes} bytes", request.read_offset);
            Status::out_of_range(text)
        })?;
        let rest = size_bytes - offset;
        Ok(Self { offset, len: if limit == 0 { rest } else { rest.min(limit) } })
    }
}

/// Answers with these bytes of a blob.
///
/// # Errors
/// `NOT_FOUND`; a disk that fails.
pub(super) async fn read(
    store: &DiskStore,
    digest: Digest,
    compressor: Compressor,
    range: Range,
) -> Result<Answers<ReadResponse>, Status> {
    let store = store.clone();
    let opened = tokio::task::spawn_blocking(move || open(&store, &digest, compressor, range));
    match opened.await.map_err(|error| status::of_thread(&error))?? {
        Opened::Small(data) => {
            let message = (!data.is_empty()).then(|| Ok(ReadResponse { data }));
            Ok(Box::pin(stream::iter(message)))
        }
        Opened::Large(source) => Ok(pull(source, move |source| {
            let mut data = Vec::with_capacity(BULK_MESSAGE_BYTES);
            source
                .take(BULK_MESSAGE_BYTES as u64)
                .read_to_end(&mut data)
                .map_err(|error| unreadable(&digest, &error))?;
            Ok((!data.is_empty()).then_some(ReadResponse { data }))
        })),
    }
}

/// Answers with what a command prints from an offset on, until it ends.
///
/// # Errors
/// An offset below zero; a limit, which nobody can keep of a text that grows.
pub(super) fn read_log(
    log: Arc<Log>,
    request: &ReadRequest,
) -> Result<Answers<ReadResponse>, Status> {
    if request.read_limit != 0 {
        return Err(status::invalid("read_limit is not for streams that grow"));
    }
    let offset = usize::try_from(request.read_offset)
        .map_err(|_| Status::out_of_range(format!("offset {}", request.read_offset)))?;
    Ok(Box::pin(log.read(offset).map(|piece| Ok(ReadResponse { data: piece.into() }))))
}

fn unreadable(digest: &Digest, error: &io::Error) -> Status {
    tracing::error!(blob.digest = %digest, %error, "failed to serve a blob");
    Status::internal(format!("failed to read {digest}: {error}"))
}

enum Opened {
    /// All that is wanted.
    Small(Vec<u8>),
    /// What is wanted, as it goes out. An open file stays readable, whatever happens to its name.
    Large(Box<dyn Read + Send>),
}

fn open(
    store: &DiskStore,
    digest: &Digest,
    compressor: Compressor,
    range: Range,
) -> Result<Opened, Status> {
    let of_store = |error| status::of_store(&error);
    if compressor == Compressor::Identity && digest.size_bytes() <= BULK_MESSAGE_BYTES as u64 {
        let mut data = Vec::from(store.read(digest).map_err(of_store)?);
        // Both within the blob, and so within memory.
        data.drain(..range.offset as usize);
        data.truncate(range.len as usize);
        return Ok(Opened::Small(data));
    }
    let mut file = store.open_bytes(digest).map_err(of_store)?;
    let failed = |error| unreadable(digest, &error);
    file.seek(SeekFrom::Start(range.offset)).map_err(failed)?;
    let wanted = Exact { file, left: range.len };
    Ok(Opened::Large(match compressor {
        Compressor::Identity => Box::new(wanted),
        Compressor::Zstd => Box::new(compression::compressed(wanted).map_err(failed)?),
    }))
}

/// So many bytes of a file: one that ends earlier is an error.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let read = self.file.read(&mut buffer[..len])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(offset: i64, limit: i64, compressor: Compressor) -> Result<(u64, u64), tonic::Code> {
        let request =
            ReadRequest { resource_name: String::new(), read_offset: offset, read_limit: limit };
        let range = Range::parse(&request, 10, compressor).map_err(|error| error.code())?;
        Ok((range.offset, range.len))
    }

    #[test]
    fn an_offset_lies_within_the_blob_or_at_its_end() {
        use Compressor::Identity;
        assert_eq!(range(0, 0, Identity), Ok((0, 10)));
        assert_eq!(range(10, 0, Identity), Ok((10, 0)));
        assert_eq!(range(11, 0, Identity), Err(tonic::Code::OutOfRange));
        assert_eq!(range(-1, 0, Identity), Err(tonic::Code::OutOfRange));
    }

    #[test]
    fn a_limit_holds_for_bytes_as_they_are_and_for_no_others() {
        use Compressor::{Identity, Zstd};
        assert_eq!(range(2, 3, Identity), Ok((2, 3)));
        assert_eq!(range(2, i64::MAX, Identity), Ok((2, 8)));
        assert_eq!(range(2, -1, Identity), Err(tonic::Code::InvalidArgument));
        assert_eq!(range(2, 0, Zstd), Ok((2, 8)));
        assert_eq!(range(2, 3, Zstd), Err(tonic::Code::InvalidArgument));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_stays_within_the_blob(
            offset in any::<i64>(),
            limit in any::<i64>(),
        ) {
            for compressor in [Compressor::Identity, Compressor::Zstd] {
                if let Ok((offset, len)) = range(offset, limit, compressor) {
                    prop_assert!(offset + len <= 10);
                }
            }
        }
    }
}
