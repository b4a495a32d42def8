//! `BatchUpdateBlobs` and `BatchReadBlobs`: many small blobs in one call, each with a status of its own.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::google::rpc;
use distbuild_cas::DiskStore;
use distbuild_proto::{Digest, DigestFunction};
use tonic::Status;

use super::{MAX_BATCH_BYTES, compression, digest, status};

const IDENTITY: i32 = api::compressor::Value::Identity as i32;
const ZSTD: i32 = api::compressor::Value::Zstd as i32;

/// Stores the blobs of a request. Blocks.
///
/// # Errors
/// More bytes than [`MAX_BATCH_BYTES`] in all; a digest function that is not served.
pub(crate) fn update(
    store: &DiskStore,
    request: api::BatchUpdateBlobsRequest,
) -> Result<api::BatchUpdateBlobsResponse, Status> {
    let sizes = request.requests.iter().map(|item| match (item.compressor, &item.digest) {
        // What it will take here.
        (ZSTD, Some(digest)) => u64::try_from(digest.size_bytes).unwrap_or(0),
        _ => item.data.len() as u64,
    });
    check_total(sizes)?;
    let digests = request.requests.iter().filter_map(|item| item.digest.as_ref());
    let function = function(request.digest_function, digests)?;
    let responses = request.requests.into_iter().map(|item| {
        let digest = item.digest.clone();
        let status = answer(update_one(store, function, item));
        api::batch_update_blobs_response::Response { digest, status: Some(status) }
    });
    Ok(api::BatchUpdateBlobsResponse { responses: responses.collect() })
}

fn update_one(
    store: &DiskStore,
    function: Option<DigestFunction>,
    item: api::batch_update_blobs_request::Request,
) -> Result<(), Status> {
    let digest = parse(function, item.digest.as_ref())?;
    let data = match item.compressor {
        IDENTITY => item.data,
        ZSTD => compression::decompress(&item.data, digest.size_bytes() as usize)
            .map_err(|error| status::invalid(format!("{digest}: {error}")))?,
        other => {
            let text = format!("compressor {other} is not served, served is ZSTD ({ZSTD})");
            return Err(status::invalid(text));
        }
    };
    store.insert(&digest, &data, false).map_err(|error| status::of_store(&error))
}

/// Reads the blobs of a request. Blocks.
///
/// # Errors
/// Blobs of more than [`MAX_BATCH_BYTES`] in all; a digest function that is not served.
pub(crate) fn read(
    store: &DiskStore,
    request: api::BatchReadBlobsRequest,
) -> Result<api::BatchReadBlobsResponse, Status> {
    check_total(
        request.digests.iter().map(|digest| u64::try_from(digest.size_bytes).unwrap_or(0)),
    )?;
    let function = function(request.digest_function, &request.digests)?;
    let may_compress = request.acceptable_compressors.contains(&ZSTD);
    let responses = request.digests.into_iter().map(|named| {
        let mut response = api::batch_read_blobs_response::Response::default();
        let blob = parse(function, Some(&named))
            .and_then(|digest| store.read(&digest).map_err(|error| status::of_store(&error)));
        response.digest = Some(named);
        response.status = Some(answer(blob.map(|blob| {
            let compressed = may_compress.then(|| compression::compress(&blob)).flatten();
            response.compressor = if compressed.is_some() { ZSTD } else { IDENTITY };
            response.data = compressed.unwrap_or_else(|| blob.into());
        })));
        response
    });
    Ok(api::BatchReadBlobsResponse { responses: responses.collect() })
}

/// None if a digest function is neither named nor implied: then no digest is a good one.
fn function<'a>(
    number: i32,
    digests: impl IntoIterator<Item = &'a api::Digest>,
) -> Result<Option<DigestFunction>, Status> {
    match (number, digest::function(number, digests)) {
        (_, Ok(function)) => Ok(Some(function)),
        (0, Err(_)) => Ok(None),
        (_, Err(error)) => Err(status::invalid(error)),
    }
}

fn parse(function: Option<DigestFunction>, named: Option<&api::Digest>) -> Result<Digest, Status> {
    let parsed = match (function, named) {
        (Some(function), Some(named)) => digest::parse(function, named),
        (_, named) => digest::parse_one(0, named),
    };
    parsed.map_err(status::invalid)
}

fn check_total(sizes: impl Iterator<Item = u64>) -> Result<(), Status> {
    let total = sizes.fold(0_u64, u64::saturating_add);
    if total > MAX_BATCH_BYTES as u64 {
        let text = format!(
            "the blobs have {total} bytes, a batch {MAX_BATCH_BYTES} at most; use ByteStream"
        );
        return Err(status::invalid(text));
    }
    Ok(())
}

fn answer(result: Result<(), Status>) -> rpc::Status {
    result.map_or_else(|error| status::to_rpc(&error), |()| status::ok())
}
