//! Small blobs from one worker's store into another's, over loopback, verified:
//! `cargo bench -p distbuild-worker --bench fetch`. Beside it, in turns and on the same file system, the least that
//! any receiver has to do: hash each blob and create a file of it, by as many threads as there are processors.
//! CPU is that of this process, which is both sides; on a busy machine it is the figure to look at.
//!
//! `DISTBUILD_BENCH_DIR` says where the stores lie; without it they lie in the directory for temporary files
//! and in `/dev/shm`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and fails loudly"
)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_proto::{Address, Digest, DigestFunction};
use distbuild_worker::WorkerConfig;
use distbuild_worker::exchange::{self, Exchange};
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

const BLOBS: u32 = 100_000;
const BLOB_BYTES: usize = 4096;
/// Misses at once: as many as the file system lets be pending.
const AT_ONCE: usize = 16 << 10;
const ROUNDS: usize = 3;
/// Blobs that are fetched one at a time.
const SINGLE: u32 = 500;

fn main() {
    let places = match std::env::var_os("DISTBUILD_BENCH_DIR") {
        Some(place) => vec![PathBuf::from(place)],
        None => vec![PathBuf::from("/dev/shm"), std::env::temp_dir()],
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for place in places {
        let directory = tempfile::tempdir_in(&place).unwrap();
        println!("in {}", place.display());
        runtime.block_on(measure(directory.path()));
    }
}

fn contents(number: u32) -> Vec<u8> {
    let mut data = vec![0; BLOB_BYTES];
    data[..4].copy_from_slice(&number.to_le_bytes());
    data
}

fn threads() -> u32 {
    thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// How long something took, and the CPU that this process used meanwhile.
#[derive(Clone, Copy)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

/// From when to when.
struct Stopwatch {
    start: Instant,
    cpu: Duration,
}

impl Stopwatch {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: cpu() }
    }

    fn took(&self) -> Took {
        Took { wall: self.start.elapsed(), cpu: cpu() - self.cpu }
    }
}

/// CPU that this process has used, to a hundredth of a second.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // Behind the name, which may hold anything; user and system time in ticks.
    let fields: Vec<_> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    let ticks: u64 = fields[12..14].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Runs `work` for each number by all threads.
fn on_all_threads(numbers: u32, work: impl Fn(u32) + Sync) -> Took {
    let start = Stopwatch::start();
    thread::scope(|scope| {
        for first in 0..threads() {
            let work = &work;
            scope.spawn(move || (first..numbers).step_by(threads() as usize).for_each(work));
        }
    });
    start.took()
}

fn open(root: PathBuf) -> DiskStore {
    DiskStore::open(StoreConfig::new(root)).unwrap()
}

async fn measure(directory: &Path) {
    let digests: Vec<Digest> =
        (0..BLOBS).map(|number| DigestFunction::Blake3.digest(&contents(number))).collect();
    let giver = open(directory.join("giver"));
    on_all_threads(BLOBS, |number| {
        giver.insert(&digests[number as usize], &contents(number), false).unwrap();
    });
    let config =
        WorkerConfig::new("127.0.0.1:1".parse().unwrap(), "taker", directory.join("state"));
    let stop = CancellationToken::new();
    let listen: Address = "127.0.0.1:0".parse().unwrap();
    let address = exchange::serve(&config, &listen, giver, stop.clone()).await.unwrap();
    let peers = vec![address.to_string()];

    let (mut plain, mut inserted, mut fetched) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let root = directory.join(format!("taker{round}"));
        plain.push(plain_files(&root, &digests));
        fs::remove_dir_all(&root).unwrap();
        inserted.push(inserts(&root, &digests));
        fs::remove_dir_all(&root).unwrap();
        fetched.push(fetch_all(&config, &root, &peers, &digests).await);
        fs::remove_dir_all(&root).unwrap();
    }
    let plain = rate("baseline: hash and create plain files", plain);
    let inserted = rate("insert into a store, no transport", inserted);
    let fetched = rate("worker to worker, verified, in its store", fetched);
    println!(
        "insert ÷ baseline {:.3}, worker to worker ÷ baseline {:.3}",
        inserted / plain,
        fetched / plain
    );
    // What `cargo bench -p distbuild-tests` takes over into its summary.
    let verdict = if fetched >= 60_000.0 { "met" } else { "missed" };
    println!(
        "row: {BLOBS} blobs of 4 KiB from worker to worker, verified, stores below {} | {fetched:.0} /s \
         ({:.2} of creating plain files) | ≥ 60000 /s | {verdict}",
        directory.parent().unwrap_or(directory).display(),
        fetched / plain
    );
    one_at_a_time(&config, directory, &peers, &digests).await;
    stop.cancel();
}

fn plain_files(root: &Path, digests: &[Digest]) -> Took {
    (0..=255_u8).for_each(|fan| fs::create_dir_all(root.join(format!("{fan:02x}"))).unwrap());
    on_all_threads(BLOBS, |number| {
        let (digest, data) = (&digests[number as usize], contents(number));
        assert_eq!(DigestFunction::Blake3.digest(&data), *digest);
        let hex = digest.hex();
        let mut file = File::create_new(root.join(&hex[..2]).join(&hex[2..])).unwrap();
        file.write_all(&data).unwrap();
    })
}

fn inserts(root: &Path, digests: &[Digest]) -> Took {
    let store = open(root.to_owned());
    on_all_threads(BLOBS, |number| {
        store.insert(&digests[number as usize], &contents(number), false).unwrap();
    })
}

async fn fetch_all(
    config: &WorkerConfig,
    root: &Path,
    peers: &[String],
    digests: &[Digest],
) -> Took {
    let store = open(root.to_owned());
    let exchange = Exchange::new(config, store.clone(), peers.to_vec()).unwrap();
    let start = Stopwatch::start();
    let mut fetches = futures::stream::iter(digests)
        .map(|digest| exchange.fetch(*digest))
        .buffer_unordered(AT_ONCE);
    while let Some(fetched) = fetches.next().await {
        fetched.unwrap();
    }
    let took = start.took();
    assert_eq!(store.known_blobs(), digests.len());
    took
}

/// One miss at a time, beside a round trip of as many bytes through a plain socket and a plain file.
async fn one_at_a_time(
    config: &WorkerConfig,
    directory: &Path,
    peers: &[String],
    digests: &[Digest],
) {
    let store = open(directory.join("single"));
    let exchange = Exchange::new(config, store, peers.to_vec()).unwrap();
    // The connection.
    exchange.fetch(digests[SINGLE as usize]).await.unwrap();
    let mut plain = PlainPeer::start(directory.join("plain"));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..SINGLE {
        let start = Instant::now();
        exchange.fetch(digests[number as usize]).await.unwrap();
        ours.push(start.elapsed());
        theirs.push(plain.fetch(number));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "one blob at a time: {:.0} µs; baseline: echo of a plain socket and a file {:.0} µs; ratio {:.2}",
        ours.as_secs_f64() * 1e6,
        theirs.as_secs_f64() * 1e6,
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}

struct PlainPeer {
    stream: TcpStream,
    directory: PathBuf,
}

impl PlainPeer {
    fn start(directory: PathBuf) -> Self {
        fs::create_dir(&directory).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut asked = [0; 4];
            while stream.read_exact(&mut asked).is_ok() {
                stream.write_all(&contents(u32::from_le_bytes(asked))).unwrap();
            }
        });
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, directory }
    }

    fn fetch(&mut self, number: u32) -> Duration {
        let start = Instant::now();
        self.stream.write_all(&number.to_le_bytes()).unwrap();
        let mut data = vec![0; BLOB_BYTES];
        self.stream.read_exact(&mut data).unwrap();
        fs::write(self.directory.join(DigestFunction::Blake3.digest(&data).hex()), &data).unwrap();
        start.elapsed()
    }
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// Prints the median rate, with the least and the greatest, and the CPU of a blob.
fn rate(what: &str, took: Vec<Took>) -> f64 {
    let mut walls: Vec<_> = took.iter().map(|took| took.wall).collect();
    walls.sort_unstable();
    let of = |wall: &Duration| f64::from(BLOBS) / wall.as_secs_f64();
    let (least, most, middle) =
        (of(walls.last().unwrap()), of(&walls[0]), of(&walls[walls.len() / 2]));
    let cpu = median(took.iter().map(|took| took.cpu).collect()).as_secs_f64() * 1e6;
    let cpu = cpu / f64::from(BLOBS);
    println!("{what:<42} {middle:>8.0} /s ({least:.0}–{most:.0}), CPU {cpu:.1} µs a blob");
    middle
}
