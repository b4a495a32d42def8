//! One blob of 1 GiB from worker to worker over loopback, verified, from one holder and from two:
//! `cargo bench -p distbuild-worker --bench large`. Takes under a minute and 4 GiB of disk.
//!
//! The baselines run in turns with it: the same bytes over one TCP connection into a file without looking
//! at them (`sendfile`, `recv`, `pwrite`), hashing the file alone, and the gRPC stream that small blobs
//! take. Besides the wall, each line has the CPU time of both sides: on a busy machine, that is what to compare.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and fails loudly"
)]

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use distbuild_cas::chunks::ChunkReceiver;
use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_proto::transport::{Listener, MAX_MESSAGE_BYTES, endpoint};
use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::{Address, Digest, DigestFunction, wire};
use distbuild_worker::large::{Wanted, fetch};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::sendfile::sendfile64;
use nix::sys::time::TimeValLike as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const BLOB_BYTES: u64 = 1 << 30;
/// Rounds of everything; medians are shown.
const ROUNDS: usize = 3;
/// Bytes that the plain copy moves at once.
const COPY_BYTES: usize = 1 << 20;
const SILENCE: Duration = Duration::from_secs(30);

/// What one run took.
#[derive(Clone, Copy, Default)]
struct Took {
    wall: f64,
    cpu: f64,
}

struct Bench {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    digest: Digest,
    holders: Vec<(DiskStore, Address)>,
    /// The blob, outside the stores.
    source: File,
    stop: CancellationToken,
}

fn main() {
    let bench = Bench::new();
    let names = [
        "baseline: TCP copy into a file, not verified",
        "baseline: hashing the file, one thread",
        "baseline: gRPC stream, verified as a whole",
        "pieces from one holder, its hashes not known yet",
        "pieces from one holder",
        "pieces from two holders",
    ];
    let mut runs = vec![Vec::new(); names.len()];
    for _ in 0..ROUNDS {
        let round = [
            bench.plain_copy(),
            bench.hash(),
            bench.grpc(),
            bench.first_fetch(),
            bench.fetch(1),
            bench.fetch(2),
        ];
        runs.iter_mut().zip(round).for_each(|(runs, took)| runs.push(took));
    }
    let copies = median(&runs[0]);
    println!(
        "{:<50} {:>6} {:>8} {:>12} {:>11}",
        "1 GiB", "GB/s", "CPU s", "wall ÷ copy", "CPU ÷ copy"
    );
    for (name, runs) in names.iter().zip(&runs) {
        let took = median(runs);
        println!(
            "{name:<50} {:>6.2} {:>8.2} {:>12.2} {:>11.2}",
            BLOB_BYTES as f64 / 1e9 / took.wall,
            took.cpu,
            took.wall / copies.wall,
            took.cpu / copies.cpu,
        );
    }
    // What `cargo bench -p distbuild-tests` takes over into its summary.
    let rate = BLOB_BYTES as f64 / 1e9 / median(&runs[names.len() - 2]).wall;
    let verdict = if rate >= 1.5 { "met" } else { "missed" };
    println!(
        "row: one blob of 1 GiB from worker to worker on loopback, verified | {rate:.2} GB/s | \
         ≥ 1.5 GB/s | {verdict}"
    );
    bench.stop.cancel();
}

/// Of wall and CPU time, each by itself.
fn median(runs: &[Took]) -> Took {
    let middle = |of: fn(&Took) -> f64| {
        let mut values: Vec<_> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Took { wall: middle(|took| took.wall), cpu: middle(|took| took.cpu) }
}

/// CPU time of this process, all threads, in seconds.
fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}

fn timed(work: impl FnOnce()) -> Took {
    let (start, before) = (Instant::now(), cpu());
    work();
    Took { wall: start.elapsed().as_secs_f64(), cpu: cpu() - before }
}

fn open_store(root: &Path) -> DiskStore {
    DiskStore::open(StoreConfig::new(root)).unwrap()
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let stop = CancellationToken::new();
        let (source, digest) = make_blob(&folder.path().join("blob"));
        let mut holders = Vec::new();
        for name in ["a", "b"] {
            let store = open_store(&folder.path().join(name));
            let mut writer = store.writer(digest, false).unwrap();
            let mut buffer = vec![0; COPY_BYTES];
            let mut source = &source;
            std::io::Seek::rewind(&mut source).unwrap();
            while let Ok(read @ 1..) = source.read(&mut buffer) {
                writer.write_all(&buffer[..read]).unwrap();
            }
            writer.commit().unwrap();
            store.piece_hashes(&digest).unwrap();
            holders.push((store.clone(), serve(&runtime, store, &stop)));
        }
        Self { folder, runtime, digest, holders, source, stop }
    }

    /// A store that has nothing, and goes with its folder.
    fn empty_store(&self) -> (tempfile::TempDir, DiskStore) {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        let store = open_store(folder.path());
        (folder, store)
    }

    fn fetch_from(&self, holders: &[Address]) -> Took {
        let (folder, store) = self.empty_store();
        let wanted = Wanted { digest: self.digest, executable: false, store, silence: SILENCE };
        let took = timed(|| {
            let arrived = watch::Sender::default();
            let fetched = self.runtime.block_on(fetch(&wanted, holders, &arrived, |_| {}));
            assert!(fetched.result.is_ok(), "{fetched:?}");
        });
        assert!(wanted.store.contains(&self.digest));
        drop(folder);
        took
    }

    fn fetch(&self, holders: usize) -> Took {
        let addresses: Vec<_> = self.holders[..holders].iter().map(|(_, at)| at.clone()).collect();
        self.fetch_from(&addresses)
    }

    /// From a holder that has just started: it has to hash the blob first.
    fn first_fetch(&self) -> Took {
        let stop = CancellationToken::new();
        let store = open_store(self.holders[0].0.layout().root());
        let address = serve(&self.runtime, store, &stop);
        let took = self.fetch_from(&[address]);
        stop.cancel();
        took
    }

    fn grpc(&self) -> Took {
        let (folder, store) = self.empty_store();
        let took = timed(|| self.runtime.block_on(self.read_stream(store)));
        drop(folder);
        took
    }

    async fn read_stream(&self, store: DiskStore) {
        let channel = endpoint(&self.holders[0].1).unwrap().connect().await.unwrap();
        let mut client = BlobsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = wire::ReadRequest { digests: vec![self.digest.into()], place: None };
        let mut responses = client.read(request).await.unwrap().into_inner();
        let mut receiver = ChunkReceiver::new(store, vec![self.digest]);
        while let Some(response) = responses.message().await.unwrap() {
            let took = move || {
                for chunk in &response.chunks {
                    if let Some(arrival) = receiver.take(chunk).unwrap() {
                        arrival.result.unwrap();
                    }
                }
                receiver
            };
            receiver = tokio::task::spawn_blocking(took).await.unwrap();
        }
        assert!(receiver.finish().is_empty());
    }

    fn hash(&self) -> Took {
        timed(|| {
            let mut hasher = DigestFunction::Blake3.hasher();
            let mut buffer = vec![0; COPY_BYTES];
            let mut at = 0;
            while let Ok(read @ 1..) = self.source.read_at(&mut buffer, at) {
                hasher.update(&buffer[..read]);
                at += read as u64;
            }
            assert_eq!(hasher.finish(), self.digest);
        })
    }

    fn plain_copy(&self) -> Took {
        let path = self.folder.path().join("copy");
        let to = File::create_new(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let took = timed(|| {
            let from = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut into, _) = listener.accept().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    let (mut at, end) = (0, BLOB_BYTES as i64);
                    while at < end {
                        sendfile64(&from, &self.source, Some(&mut at), COPY_BYTES).unwrap();
                    }
                });
                let (mut buffer, mut at) = (vec![0; COPY_BYTES], 0);
                while let Ok(()) = into.read_exact(&mut buffer) {
                    to.write_all_at(&buffer, at).unwrap();
                    at += COPY_BYTES as u64;
                }
                assert_eq!(at, BLOB_BYTES);
            });
        });
        std::fs::remove_file(path).unwrap();
        took
    }
}

/// Serves a store as a worker does.
fn serve(runtime: &tokio::runtime::Runtime, store: DiskStore, stop: &CancellationToken) -> Address {
    let any = Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    runtime.block_on(async {
        let listener = Listener::bind(&any).await.unwrap();
        let address = listener.address().clone();
        distbuild_worker::serve_peers(listener, store, MAX_STREAMS, SILENCE, stop.clone());
        address
    })
}

/// Streams that a holder serves at once.
const MAX_STREAMS: usize = 8;

/// A file of bytes that do not repeat, in the page cache and on disk.
fn make_blob(path: &Path) -> (File, Digest) {
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    let mut hasher = DigestFunction::Blake3.hasher();
    let mut word = 1_u64;
    let mut buffer = vec![0; COPY_BYTES];
    for _ in 0..BLOB_BYTES / COPY_BYTES as u64 {
        for bytes in buffer.chunks_exact_mut(8) {
            // Marsaglia's xorshift64.
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        hasher.update(&buffer);
        file.write_all(&buffer).unwrap();
    }
    // What is still to be written would be written while something is measured.
    file.sync_all().unwrap();
    (file, hasher.finish())
}
