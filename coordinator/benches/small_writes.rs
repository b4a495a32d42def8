//! What a small `ByteStream.Write` costs, since Bazel makes about seven for an action: beside a call that does
//! nothing, a batch, and the store alone, interleaved and in one process.
//!
//! `cargo bench -p distbuild-coordinator --bench small_writes`

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::google::bytestream::WriteRequest;
use bazel_remote_apis::google::bytestream::byte_stream_client::ByteStreamClient;
use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_coordinator::{Config, Coordinator, Limits, WritableInstances};
use distbuild_proto::{Address, Digest, DigestFunction, transport};
use futures::stream::{self, StreamExt};
use tonic::transport::Channel;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Cas = api::content_addressable_storage_client::ContentAddressableStorageClient<Channel>;

const ROUNDS: usize = 7;
const BLOBS: usize = 2000;
const BLOB_BYTES: usize = 4 << 10;
const PER_BATCH: usize = 100;
/// Calls at a time, besides one.
const CALLS: usize = 16;

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure())
}

async fn measure() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let config = Config {
        listen: Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 },
        state: directory.path().join("coordinator"),
        exclusive: true,
        writable_instances: WritableInstances::default(),
        limits: Limits::default(),
    };
    let coordinator = Coordinator::start(config).await?;
    let channel = transport::connect(coordinator.address()).await?;
    let store = DiskStore::open(StoreConfig::new(directory.path().join("store")))?;
    let (bytes, cas) = (ByteStreamClient::new(channel.clone()), Cas::new(channel));

    let mut samples: Vec<(String, Vec<Duration>)> = Vec::new();
    for _ in 0..ROUNDS {
        let mut sample = Vec::new();
        let blobs = fresh();
        let begun = Instant::now();
        for (digest, data) in &blobs {
            store.insert(digest, data, false)?;
        }
        sample.push(("store alone, 1 thread".to_owned(), begun.elapsed()));
        let batched = fresh();
        let begun = Instant::now();
        for part in batched.chunks(PER_BATCH) {
            batch(&cas, part).await?;
        }
        sample.push((format!("BatchUpdateBlobs, {PER_BATCH} a call, 1 call"), begun.elapsed()));
        for calls in [1, CALLS] {
            let begun = Instant::now();
            each(&blobs, calls, |_| find(&cas)).await?;
            sample.push((format!("FindMissingBlobs of none, {calls} calls"), begun.elapsed()));
            let blobs = fresh();
            for what in ["Write", "Write of what is there"] {
                let begun = Instant::now();
                each(&blobs, calls, |blob| write(&bytes, blob)).await?;
                sample.push((format!("{what}, {calls} calls"), begun.elapsed()));
            }
        }
        for (at, (what, took)) in sample.into_iter().enumerate() {
            match samples.get_mut(at) {
                Some((_, all)) => all.push(took),
                None => samples.push((what, vec![took])),
            }
        }
    }
    println!("{BLOBS} blobs of {BLOB_BYTES} bytes, median of {ROUNDS} interleaved rounds");
    for (what, mut all) in samples {
        all.sort_unstable();
        let per_blob = all[ROUNDS / 2].as_secs_f64() * 1e6 / BLOBS as f64;
        println!("{what:<40} {per_blob:8.1} us a blob");
    }
    coordinator.shutdown().await;
    Ok(())
}

/// Blobs that nobody has seen.
fn fresh() -> Vec<(Digest, Vec<u8>)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let blob = |_| {
        let mut data = vec![7; BLOB_BYTES];
        data[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        (DigestFunction::Sha256.digest(&data), data)
    };
    (0..BLOBS).map(blob).collect()
}

async fn each<'a, F: Future<Output = Result<(), Failure>>>(
    blobs: &'a [(Digest, Vec<u8>)],
    calls: usize,
    call: impl Fn(&'a (Digest, Vec<u8>)) -> F,
) -> Result<(), Failure> {
    let mut ended = stream::iter(blobs).map(call).buffer_unordered(calls);
    while let Some(result) = ended.next().await {
        result?;
    }
    Ok(())
}

async fn write(
    client: &ByteStreamClient<Channel>,
    (digest, data): &(Digest, Vec<u8>),
) -> Result<(), Failure> {
    let request = WriteRequest {
        resource_name: format!("uploads/u/blobs/{}/{}", digest.hex(), digest.size_bytes()),
        write_offset: 0,
        finish_write: true,
        data: data.clone(),
    };
    client.clone().write(stream::iter([request])).await?;
    Ok(())
}

async fn find(client: &Cas) -> Result<(), Failure> {
    client.clone().find_missing_blobs(api::FindMissingBlobsRequest::default()).await?;
    Ok(())
}

async fn batch(client: &Cas, blobs: &[(Digest, Vec<u8>)]) -> Result<(), Failure> {
    let item = |(digest, data): &(Digest, Vec<u8>)| api::batch_update_blobs_request::Request {
        digest: Some(api::Digest {
            hash: digest.hex(),
            size_bytes: i64::try_from(digest.size_bytes()).unwrap_or(i64::MAX),
        }),
        data: data.clone(),
        compressor: 0,
    };
    let requests = blobs.iter().map(item).collect();
    let request = api::BatchUpdateBlobsRequest { requests, ..Default::default() };
    client.clone().batch_update_blobs(request).await?;
    Ok(())
}
