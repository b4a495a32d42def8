//! Fetches from real holders, and from doubles that lie, stall, die or withhold a piece.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use distbuild_cas::pieces::{PIECE_BYTES, Pieces};
use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_proto::transport::Listener;
use distbuild_proto::{Address, Digest, DigestFunction, wire};
use parking_lot::Mutex;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::connection::{PREFACE, Socket};
use super::*;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);
const PIECE: usize = PIECE_BYTES as usize;

fn bytes(len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

fn piece(data: &[u8], piece: usize) -> &[u8] {
    let range = Pieces::of(data.len() as u64).range(piece);
    &data[range.start as usize..range.end as usize]
}

fn open_store(folder: &Path) -> DiskStore {
    DiskStore::open(StoreConfig { min_free_bytes: 0, ..StoreConfig::new(folder) }).unwrap()
}

/// Folders, and a store that has nothing yet.
struct Scene {
    folder: TempDir,
    store: DiskStore,
    arrived: watch::Sender<Arrived>,
    transfers: Mutex<Vec<Arc<Transfer>>>,
    stop: CancellationToken,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(&folder.path().join("store"));
        Self {
            folder,
            store,
            arrived: watch::Sender::default(),
            transfers: Mutex::default(),
            stop: CancellationToken::new(),
        }
    }

    /// A worker that serves pieces of this blob, as many connections at once as it may.
    async fn holder(&self, name: &str, digest: &Digest, data: &[u8], streams: usize) -> Address {
        let store = open_store(&self.folder.path().join(name));
        store.insert(digest, data, false).unwrap();
        let address = Address::Unix(self.folder.path().join(format!("{name}.sock")));
        let listener = Listener::bind(&address).await.unwrap();
        let (_, pieces) = sort(listener, self.stop.clone());
        tokio::spawn(serve(pieces, store, Arc::new(Semaphore::new(streams)), PATIENCE));
        address
    }

    /// A holder that does as told.
    fn double(&self, name: &str, digest: &Digest, data: &[u8]) -> Double {
        let store = open_store(&self.folder.path().join(name));
        store.insert(digest, data, false).unwrap();
        let hashes = store.piece_hashes(digest).unwrap();
        let hashes = hashes.map(|hashes| hashes.to_bytes()).unwrap_or_default();
        Double::start(self.folder.path().join(format!("{name}.sock")), hashes, data.to_vec())
    }

    async fn fetch(&self, digest: Digest, holders: &[Address]) -> Fetched {
        let store = self.store.clone();
        let wanted = Wanted { digest, executable: false, store, silence: PATIENCE };
        let begun = |transfer: &Arc<Transfer>| self.transfers.lock().push(transfer.clone());
        let fetch = fetch(&wanted, holders, &self.arrived, begun);
        tokio::time::timeout(PATIENCE, fetch).await.expect("the fetch does not end")
    }

    fn assert_stored(&self, digest: &Digest, data: &[u8]) {
        self.transfers.lock().clear();
        let file = self.store.open_file(digest, false).unwrap();
        let mut stored = vec![0; data.len()];
        file.read_exact_at(&mut stored, 0).unwrap();
        assert!(stored == data && file.metadata().unwrap().len() == data.len() as u64);
        assert_eq!(self.unfinished(), 0);
    }

    /// Files below the store's folder for what is not whole.
    fn unfinished(&self) -> usize {
        let folders = std::fs::read_dir(self.folder.path().join("store/tmp")).unwrap();
        let files = |folder: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_dir(folder.unwrap().path()).unwrap().count()
        };
        folders.map(files).sum()
    }

    async fn until_arrived(&self, enough: impl FnMut(&Arrived) -> bool) -> Arrived {
        let mut arrived = self.arrived.subscribe();
        let enough = arrived.wait_for(enough);
        let enough = tokio::time::timeout(PATIENCE, enough).await;
        enough.expect("nothing arrives").unwrap().clone()
    }
}

/// A holder of one connection, whose every answer the test decides.
struct Double {
    address: Address,
    events: Mutex<Receiver<Event>>,
    answers: Sender<Answer>,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Asked(usize),
    /// The other side is gone.
    Closed,
}

enum Answer {
    /// Sends the piece that was asked for first.
    Piece,
    /// Sends something else in its place.
    Bytes(Vec<u8>),
    Close,
}

impl Double {
    fn start(path: std::path::PathBuf, hashes: Vec<u8>, data: Vec<u8>) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        let (event, events) = channel();
        let (answers, decided) = channel();
        let (hashes, data, decided) =
            (Bytes::from(hashes), Arc::new(data), Arc::new(Mutex::new(decided)));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let socket = Arc::new(Socket::Unix(stream.unwrap()));
                // The test has ended.
                if Self::converse(&socket, &hashes, &data, &decided, &event).is_err() {
                    return;
                }
            }
        });
        Self { address: Address::Unix(path), events: Mutex::new(events), answers }
    }

    fn converse(
        socket: &Arc<Socket>,
        hashes: &Bytes,
        data: &Arc<Vec<u8>>,
        decided: &Arc<Mutex<Receiver<Answer>>>,
        event: &Sender<Event>,
    ) -> Result<(), SendError<Event>> {
        let mut preface = [0; PREFACE.len()];
        socket.fill(&mut preface).unwrap();
        assert_eq!(preface, PREFACE);
        socket.receive::<wire::OpenBlob>().unwrap().unwrap();
        let opened = wire::BlobOpened { piece_hashes: hashes.clone(), ..Default::default() };
        socket.send(&opened, false).unwrap();
        let (asked, to_answer) = channel();
        let (writing, data, decided) = (socket.clone(), data.clone(), decided.clone());
        thread::spawn(move || Self::answer(&writing, &data, &to_answer, &decided.lock()));
        while let Ok(Some(wire::AskPiece { piece })) = socket.receive() {
            // After its last answer nobody asks.
            let _ = asked.send(piece as usize);
            event.send(Event::Asked(piece as usize))?;
        }
        drop(asked);
        event.send(Event::Closed)
    }

    fn answer(socket: &Socket, data: &[u8], asked: &Receiver<usize>, decided: &Receiver<Answer>) {
        for number in asked {
            let Ok(answer) = decided.recv() else { return };
            let bytes = match answer {
                Answer::Close => return socket.shutdown(),
                Answer::Piece => piece(data, number).to_vec(),
                Answer::Bytes(bytes) => bytes,
            };
            let head = wire::PieceHead { piece: number as u32, size_bytes: bytes.len() as u32 };
            let mut writer = socket;
            // The other side may not want it any more.
            if socket.send(&head, true).is_err() || writer.write_all(&bytes).is_err() {
                return;
            }
        }
    }

    /// The next thing that happens; waited for on a thread that may block.
    fn event(&self) -> Event {
        let events = self.events.lock();
        tokio::task::block_in_place(|| events.recv_timeout(PATIENCE)).expect("nothing happens")
    }

    fn asked(&self) -> usize {
        match self.event() {
            Event::Asked(piece) => piece,
            Event::Closed => panic!("the connection was closed"),
        }
    }

    fn say(&self, answers: impl IntoIterator<Item = Answer>) {
        answers.into_iter().for_each(|answer| self.answers.send(answer).unwrap());
    }
}

fn pieces(count: usize) -> impl Iterator<Item = Answer> {
    (0..count).map(|_| Answer::Piece)
}

/// Runs a test on a runtime of its own.
fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(test);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn what_is_fetched_is_what_the_holders_have(
        size in (1..5_usize, prop_oneof![Just(0), 1..3_usize, Just(PIECE - 1), 1..PIECE])
            .prop_map(|(pieces, more)| (pieces - 1) * PIECE + more.max(1)),
        holders in 1..5_usize,
        function in prop::sample::select(DigestFunction::ALL.to_vec()),
    ) {
        run(async move {
            let scene = Scene::new();
            let data = bytes(size);
            let digest = function.digest(&data);
            let mut addresses = Vec::new();
            for number in 0..holders {
                addresses.push(scene.holder(&number.to_string(), &digest, &data, 8).await);
            }
            let fetched = scene.fetch(digest, &addresses).await;
            assert!(fetched.result.is_ok(), "{fetched:?}");
            let brought: usize = fetched.holders.iter().map(|holder| holder.pieces).sum();
            assert_eq!(brought, Pieces::of(size as u64).count());
            scene.assert_stored(&digest, &data);
        });
    }
}

#[test]
fn two_holders_share_the_work() {
    run(async {
        let scene = Scene::new();
        let data = bytes(8 * PIECE);
        let digest = DigestFunction::Blake3.digest(&data);
        let doubles = ["a", "b"].map(|name| scene.double(name, &digest, &data));
        let addresses = doubles.each_ref().map(|double| double.address.clone());
        let (fetched, ()) = tokio::join!(scene.fetch(digest, &addresses), async {
            // Neither answers before both were asked.
            let asked: Vec<_> = doubles.iter().map(Double::asked).collect();
            assert_ne!(asked[0], asked[1]);
            doubles.iter().for_each(|double| double.say(pieces(8)));
        });
        assert!(fetched.result.is_ok(), "{fetched:?}");
        let brought: Vec<_> = fetched.holders.iter().map(|holder| holder.pieces).collect();
        assert!(brought.iter().all(|pieces| *pieces > 0) && brought.iter().sum::<usize>() == 8);
        scene.assert_stored(&digest, &data);
    });
}

#[test]
fn a_holder_that_lies_about_one_piece_is_left_at_that_piece() {
    run(async {
        let scene = Scene::new();
        let data = bytes(6 * PIECE);
        let digest = DigestFunction::Blake3.digest(&data);
        let liar = scene.double("liar", &digest, &data);
        let honest = scene.holder("honest", &digest, &data, 8).await;
        let mut wrong = piece(&data, 1).to_vec();
        wrong[5] ^= 1;
        let alone = [liar.address.clone()];
        liar.say([Answer::Piece, Answer::Bytes(wrong), Answer::Piece]);
        let fetched = scene.fetch(digest, &alone).await;
        assert!(matches!(fetched.result, Err(FetchFailure::NobodyLeft)));
        assert!(matches!(fetched.holders[0].error, Some(HolderError::Wrong(_))));
        assert!(fetched.holders[0].error.as_ref().unwrap().is_distrusted());
        assert_eq!(fetched.holders[0].pieces, 1);

        let liar = scene.double("again", &digest, &data);
        let both = [liar.address.clone(), honest];
        liar.say([Answer::Bytes(vec![0; PIECE])]);
        let fetched = scene.fetch(digest, &both).await;
        assert!(fetched.result.is_ok(), "{fetched:?}");
        assert_eq!(fetched.holders[0].pieces, 0);
        scene.assert_stored(&digest, &data);
    });
}

#[test]
fn hashes_that_are_not_those_of_the_blob_end_a_holder_before_its_first_piece() {
    run(async {
        let scene = Scene::new();
        let data = bytes(2 * PIECE);
        let digest = DigestFunction::Blake3.digest(&data);
        let path = scene.folder.path().join("liar.sock");
        let liar = Double::start(path, vec![7; 64], data.clone());
        let fetched = scene.fetch(digest, std::slice::from_ref(&liar.address)).await;
        assert!(matches!(fetched.holders[0].error, Some(HolderError::Proof(_))), "{fetched:?}");
        assert_eq!(liar.event(), Event::Closed);
    });
}

#[test]
fn what_a_stalled_or_dead_holder_was_asked_for_comes_from_another() {
    for dies in [false, true] {
        run(async move {
            let scene = Scene::new();
            let data = bytes(6 * PIECE);
            let digest = DigestFunction::Blake3.digest(&data);
            let bad = scene.double("bad", &digest, &data);
            let good = scene.double("good", &digest, &data);
            let addresses = [&bad, &good].map(|double| double.address.clone());
            let (fetched, ()) = tokio::join!(scene.fetch(digest, &addresses), async {
                // It has sent one piece and was asked for more before it fails.
                bad.asked();
                bad.say([Answer::Piece]);
                bad.asked();
                if dies {
                    bad.say([Answer::Close]);
                }
                good.say(pieces(6));
            });
            assert!(fetched.result.is_ok(), "{fetched:?}");
            assert!(fetched.holders[0].pieces <= 1);
            scene.assert_stored(&digest, &data);
            // Also the one that stalls is let go.
            while bad.event() != Event::Closed {}
        });
    }
}

#[test]
fn first_bytes_can_be_read_while_the_last_piece_is_withheld() {
    run(async {
        let scene = Scene::new();
        let data = bytes(3 * PIECE + 7);
        let digest = DigestFunction::Blake3.digest(&data);
        let double = scene.double("a", &digest, &data);
        let addresses = [double.address.clone()];
        let (fetched, ()) = tokio::join!(scene.fetch(digest, &addresses), async {
            double.say(pieces(3));
            let have = 0..3 * PIECE_BYTES;
            let arrived = scene.until_arrived(|arrived| arrived.readable.covers(&have)).await;
            assert!(!arrived.readable.covers(&(0..3 * PIECE_BYTES + 1)));
            let mut read = vec![0; 3 * PIECE];
            File::open(arrived.path.unwrap()).unwrap().read_exact_at(&mut read, 0).unwrap();
            assert!(read == data[..3 * PIECE]);
            assert!(!scene.store.contains(&digest));
            double.say(pieces(1));
        });
        assert!(fetched.result.is_ok(), "{fetched:?}");
        scene.assert_stored(&digest, &data);
    });
}

#[test]
fn without_piece_hashes_nothing_can_be_read_before_all_is_verified() {
    run(async {
        let scene = Scene::new();
        let data = bytes(2 * PIECE + 7);
        let digest = DigestFunction::Sha256.digest(&data);
        let double = scene.double("a", &digest, &data);
        let addresses = [double.address.clone()];
        let (fetched, ()) = tokio::join!(scene.fetch(digest, &addresses), async {
            double.say(pieces(2));
            let arrived = scene.until_arrived(|arrived| arrived.pieces == 2).await;
            assert_eq!(arrived.readable.iter().count(), 0);
            assert!(!scene.store.contains(&digest));
            double.say(pieces(1));
        });
        assert!(fetched.result.is_ok(), "{fetched:?}");
        scene.assert_stored(&digest, &data);
    });
}

#[test]
fn of_several_holders_of_a_blob_without_piece_hashes_the_liar_is_found() {
    run(async {
        let scene = Scene::new();
        let data = bytes(8 * PIECE);
        let digest = DigestFunction::Sha256.digest(&data);
        let lie = || Answer::Bytes(vec![0; PIECE]);
        let doubles = ["liar", "honest"].map(|name| scene.double(name, &digest, &data));
        let addresses = doubles.each_ref().map(|double| double.address.clone());
        let (fetched, ()) = tokio::join!(scene.fetch(digest, &addresses), async {
            let [liar, honest] = &doubles;
            assert_ne!(liar.asked(), honest.asked());
            liar.say([lie()].into_iter().chain(pieces(7)));
            honest.say(pieces(8));
            // One by one, they are dialled again.
            doubles.iter().for_each(|double| while double.event() != Event::Closed {});
            liar.say((0..8).map(|_| lie()));
            honest.say(pieces(8));
        });
        assert!(fetched.result.is_ok(), "{fetched:?}");
        assert!(matches!(fetched.holders[0].error, Some(HolderError::Wrong(_))), "{fetched:?}");
        assert!(fetched.holders[1].error.is_none());
        scene.assert_stored(&digest, &data);
    });
}

#[test]
fn a_fetch_that_nobody_waits_for_ends_and_leaves_nothing() {
    run(async {
        let scene = Scene::new();
        let data = bytes(8 * PIECE);
        let digest = DigestFunction::Blake3.digest(&data);
        let double = scene.double("a", &digest, &data);
        let addresses = [double.address.clone()];
        double.say(pieces(1));
        {
            let fetch = scene.fetch(digest, &addresses);
            let some = scene.until_arrived(|arrived| arrived.pieces == 1);
            tokio::select! {
                _ = fetch => panic!("seven pieces are missing"),
                _ = some => {}
            }
        }
        while double.event() != Event::Closed {}
        scene.transfers.lock().clear();
        // The thread of the holder lets the file go when it has seen the end.
        let gone = async {
            while scene.unfinished() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("the file stays");
        assert!(!scene.store.contains(&digest));
    });
}

#[test]
fn a_reader_in_a_hurry_is_served_before_what_comes_next_and_followed() {
    run(async {
        let scene = Scene::new();
        let data = bytes(12 * PIECE);
        let digest = DigestFunction::Blake3.digest(&data);
        let double = scene.double("a", &digest, &data);
        let addresses = [double.address.clone()];
        let (fetched, ()) = tokio::join!(scene.fetch(digest, &addresses), async {
            let ahead: Vec<_> = (0..WINDOW).map(|_| double.asked()).collect();
            assert_eq!(ahead, [0, 1, 2, 3]);
            let at = 9 * PIECE_BYTES + 5;
            scene.transfers.lock()[0].hurry(&(at..at + 1));
            double.say(pieces(12));
            let rest: Vec<_> = (WINDOW..12).map(|_| double.asked()).collect();
            assert_eq!(rest, [9, 10, 11, 4, 5, 6, 7, 8]);
        });
        assert!(fetched.result.is_ok(), "{fetched:?}");
        scene.assert_stored(&digest, &data);
    });
}

#[test]
fn a_worker_that_serves_enough_others_is_left_for_another() {
    run(async {
        let scene = Scene::new();
        let data = bytes(2 * PIECE);
        let digest = DigestFunction::Blake3.digest(&data);
        let busy = scene.holder("busy", &digest, &data, 0).await;
        let without = scene.holder("without", &DigestFunction::Blake3.digest(b"x"), b"x", 8).await;
        let holders = [busy.clone(), without, busy, scene.holder("d", &digest, &data, 8).await];
        let fetched = scene.fetch(digest, &holders).await;
        assert!(fetched.result.is_ok(), "{fetched:?}");
        let error = fetched.holders[0].error.as_ref().unwrap();
        assert!(matches!(error, HolderError::Busy) && !error.is_distrusted(), "{error}");
        assert!(matches!(fetched.holders[1].error, Some(HolderError::NotFound)));
        let nobody = scene.fetch(DigestFunction::Blake3.digest(&data[1..]), &holders[1..2]).await;
        assert!(matches!(nobody.result, Err(FetchFailure::NobodyLeft)));
    });
}
