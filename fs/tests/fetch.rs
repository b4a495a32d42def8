//! `Fetcher` over contents that come when the test says so, or never.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use distbuild_fs::contents::{BlobKey, BlobKind, Contents, Done, Reads, Want, WantError};
use distbuild_fs::fetch::{Blob, FetchConfig, Fetcher};
use distbuild_fs::ranges::Ranges;
use distbuild_fs::tree::{Found, Step};
use distbuild_fs::{Ino, RecordLimits, Tree, ViewId, Views};
use distbuild_proto::{Digest, DigestFunction, Directory};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_secs(3600);

/// Keeps what is wanted until the test answers.
#[derive(Default)]
struct Scripted {
    wants: Mutex<Vec<(Want, Done)>>,
    failures: Mutex<Vec<(Digest, WantError)>>,
    reads: Mutex<Vec<Reads>>,
}

impl Contents for Scripted {
    fn want(&self, want: Want, done: Done) {
        self.wants.lock().unwrap().push((want, done));
    }

    fn reads(&self, _: &BlobKey, reads: Reads) {
        self.reads.lock().unwrap().push(reads);
    }

    fn read_failed(&self, digest: Digest, _: Vec<ViewId>, why: &WantError) {
        self.failures.lock().unwrap().push((digest, why.clone()));
    }
}

impl Scripted {
    fn answer(&self, result: Result<(), WantError>) {
        let (_, done) = self.wants.lock().unwrap().pop().unwrap();
        done(result);
    }

    fn asked(&self) -> usize {
        self.wants.lock().unwrap().len()
    }
}

type Answer = Result<Blob, WantError>;

struct Bench {
    store: TempDir,
    contents: Arc<Scripted>,
    views: Arc<Views>,
    fetcher: Fetcher,
    answers: (Sender<Answer>, Receiver<Answer>),
}

impl Bench {
    fn new(deadline: Duration, max_pending: usize) -> Self {
        let store = tempfile::tempdir().unwrap();
        let contents = Arc::new(Scripted::default());
        let views = Arc::new(Views::new(RecordLimits::default()));
        let config = FetchConfig {
            store: store.path().to_owned(),
            deadline,
            threads: 2,
            max_pending,
            open_files: 2,
            directory_cache_bytes: 1 << 20,
        };
        let tree: Arc<dyn Tree> = views.clone();
        let fetcher = Fetcher::new(config, tree, contents.clone()).unwrap();
        Self { store, contents, views, fetcher, answers: channel() }
    }

    fn want(&self, key: BlobKey, ino: Ino) {
        let sender = self.answers.0.clone();
        self.fetcher.want(key, ino, Box::new(move |blob| sender.send(blob).unwrap()));
    }

    fn want_part(&self, key: BlobKey, part: Range<u64>) {
        let sender = self.answers.0.clone();
        self.fetcher.want_part(key, Ino(1), part, Box::new(move |blob| sender.send(blob).unwrap()));
    }

    /// Some of a blob has come, into a file outside the store.
    fn arriving(&self, key: BlobKey, readable: &[(u64, u64)]) {
        let path = self.store.path().join("partial");
        fs::write(&path, "partial").unwrap();
        let mut ranges = Ranges::default();
        readable.iter().for_each(|(start, end)| ranges.insert(*start..*end));
        self.fetcher.arriving(&key, &path, ranges);
    }

    fn answer(&self) -> Answer {
        self.answers.1.recv_timeout(PATIENCE).expect("a waiter is not called")
    }

    fn put(&self, data: &[u8]) -> BlobKey {
        put(self.store.path(), data, BlobKind::File { executable: false })
    }
}

fn put(store: &Path, data: &[u8], kind: BlobKind) -> BlobKey {
    let key = BlobKey { digest: DigestFunction::Sha256.digest(data), kind };
    let path = key.path(store);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, data).unwrap();
    key
}

#[test]
fn many_waiters_ask_once_and_all_are_answered() {
    let bench = Bench::new(NEVER, 10);
    let key = bench.put(b"data");
    for ino in 0..5 {
        bench.want(key, Ino(ino));
    }
    assert_eq!((bench.contents.asked(), bench.fetcher.pending_count()), (1, 1));
    bench.contents.answer(Ok(()));
    for _ in 0..5 {
        assert!(matches!(bench.answer(), Ok(Blob::File(_))));
    }
    assert!(bench.fetcher.cached_file(&key).is_some());
    assert_eq!(bench.fetcher.pending_count(), 0);
}

#[test]
fn a_failure_is_reported_once_and_asked_for_anew_afterwards() {
    let bench = Bench::new(NEVER, 10);
    let key = bench.put(b"data");
    let refused = WantError::Refused("no".into());
    bench.want(key, Ino(1));
    bench.want(key, Ino(2));
    bench.contents.answer(Err(refused.clone()));
    for _ in 0..2 {
        assert_eq!(bench.answer().unwrap_err(), refused);
    }
    assert_eq!(*bench.contents.failures.lock().unwrap(), [(key.digest, refused)]);
    bench.want(key, Ino(1));
    bench.contents.answer(Ok(()));
    assert!(bench.answer().is_ok());
}

#[test]
fn a_late_answer_does_not_meet_the_next_request() {
    let bench = Bench::new(Duration::from_millis(20), 10);
    let key = bench.put(b"data");
    bench.want(key, Ino(1));
    assert_eq!(bench.answer().unwrap_err(), WantError::Deadline(20));
    let (_, late) = bench.contents.wants.lock().unwrap().pop().unwrap();
    late(Ok(()));
    assert!(bench.fetcher.cached_file(&key).is_none());
    assert_eq!(bench.fetcher.pending_count(), 0);
}

#[test]
fn more_than_the_limit_is_refused_and_not_queued() {
    let bench = Bench::new(NEVER, 1);
    let (first, second) = (bench.put(b"1"), bench.put(b"2"));
    bench.want(first, Ino(1));
    bench.want(second, Ino(2));
    assert_eq!(bench.answer().unwrap_err(), WantError::Busy(1));
    assert_eq!(bench.contents.asked(), 1);
}

#[test]
fn what_is_pending_fails_when_the_fetcher_ends() {
    let bench = Bench::new(NEVER, 10);
    let key = bench.put(b"data");
    bench.want(key, Ino(1));
    let Bench { fetcher, answers, .. } = bench;
    drop(fetcher);
    assert_eq!(answers.1.recv_timeout(PATIENCE).unwrap().unwrap_err(), WantError::Gone);
}

#[test]
fn only_requests_of_views_that_failed_are_given_up_and_that_is_no_failure() {
    let bench = Bench::new(NEVER, 10);
    let directory = put(bench.store.path(), b"", BlobKind::Directory);
    for view in 1..=2 {
        bench.views.add(ViewId(view), directory.digest).unwrap();
    }
    for name in [b"1", b"2"] {
        bench.want(directory, root_of(&bench.views, name));
    }
    bench.views.fail(ViewId(1));
    bench.fetcher.give_up();
    assert_eq!(bench.answer().unwrap_err(), WantError::GivenUp);
    bench.contents.answer(Ok(()));
    match bench.answer() {
        Ok(Blob::Directory(found)) => assert_eq!(*found, Directory::default()),
        other => panic!("not a directory: {other:?}"),
    }
    assert!(bench.contents.failures.lock().unwrap().is_empty());
}

#[test]
fn a_view_that_comes_to_wait_is_announced_once() {
    let bench = Bench::new(NEVER, 10);
    let directory = put(bench.store.path(), b"", BlobKind::Directory);
    for view in 1..=2 {
        bench.views.add(ViewId(view), directory.digest).unwrap();
    }
    for name in [&b"1"[..], b"2", b"2"] {
        bench.want(directory, root_of(&bench.views, name));
    }
    let asked: Vec<_> = bench
        .contents
        .wants
        .lock()
        .unwrap()
        .iter()
        .map(|(want, _)| want.context.views.clone())
        .collect();
    assert_eq!(asked, [[ViewId(1)], [ViewId(2)]]);
    bench.contents.answer(Ok(()));
    for _ in 0..3 {
        assert!(bench.answer().is_ok());
    }
    bench.contents.answer(Err(WantError::Refused("the second answer".into())));
    assert!(bench.contents.failures.lock().unwrap().is_empty());
}

fn root_of(views: &Views, name: &[u8]) -> Ino {
    match views.lookup(Ino::ACTIONS, name, None) {
        Ok(Step::Done(Found::Entry(found))) => found.ino,
        other => panic!("no view: {other:?}"),
    }
}

#[test]
fn open_files_are_bounded_and_the_oldest_go_first() {
    let bench = Bench::new(NEVER, 10);
    let keys = [b"1", b"2", b"3"].map(|data| bench.put(data));
    for key in keys {
        bench.want(key, Ino(1));
        bench.contents.answer(Ok(()));
        bench.answer().unwrap();
    }
    let open = keys.map(|key| bench.fetcher.cached_file(&key).is_some());
    assert_eq!(open, [false, true, true]);
}

#[test]
fn a_directory_that_is_none_is_damaged() {
    let bench = Bench::new(NEVER, 10);
    let key = put(bench.store.path(), b"\xff\xff", BlobKind::Directory);
    bench.want(key, Ino(1));
    bench.contents.answer(Ok(()));
    assert!(matches!(bench.answer(), Err(WantError::Damaged(_))));
}

/// What an answer that is a file holds.
fn text(answer: Answer) -> String {
    let Ok(Blob::File(file)) = answer else { panic!("no file") };
    let mut data = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut data, 0).unwrap();
    String::from_utf8(data).unwrap()
}

#[test]
fn a_part_is_given_out_as_soon_as_it_has_come_and_the_rest_waits() {
    let bench = Bench::new(NEVER, 10);
    let key = bench.put(b"whole");
    bench.want_part(key, 0..4);
    bench.want_part(key, 2..6);
    bench.want(key, Ino(1));
    bench.arriving(key, &[(0, 4)]);
    assert_eq!(text(bench.answer()), "partial");
    bench.want_part(key, 1..2);
    assert_eq!(text(bench.answer()), "partial");
    assert!(bench.answers.1.try_recv().is_err());
    bench.contents.answer(Ok(()));
    assert_eq!([text(bench.answer()), text(bench.answer())], ["whole", "whole"]);
    assert_eq!(bench.fetcher.pending_count(), 0);
}

#[test]
fn whoever_brings_a_blob_hears_which_reads_wait_and_when_none_does() {
    let bench = Bench::new(NEVER, 10);
    let key = bench.put(b"whole");
    let reads = || std::mem::take(&mut *bench.contents.reads.lock().unwrap());
    bench.want_part(key, 0..4);
    assert_eq!(reads(), []);
    bench.arriving(key, &[]);
    assert_eq!(reads(), [Reads::Wait(0..4)]);
    bench.want_part(key, 8..9);
    assert_eq!(reads(), [Reads::Wait(8..9)]);
    bench.arriving(key, &[(0, 4)]);
    assert_eq!(reads(), []);
    bench.arriving(key, &[(0, 4), (8, 12)]);
    assert_eq!(reads(), [Reads::Done]);
    bench.want_part(key, 9..10);
    assert_eq!(reads(), []);
}

#[test]
fn a_failure_after_all_that_was_wanted_hurts_nobody() {
    let bench = Bench::new(NEVER, 10);
    let key = bench.put(b"whole");
    bench.want_part(key, 0..1);
    bench.arriving(key, &[(0, 1)]);
    assert!(bench.answer().is_ok());
    bench.contents.answer(Err(WantError::Refused("no".into())));
    let begin = Instant::now();
    while bench.fetcher.pending_count() > 0 {
        assert!(begin.elapsed() < PATIENCE, "the answer is not taken");
        std::thread::yield_now();
    }
    bench.want_part(key, 0..1);
    assert!(bench.contents.failures.lock().unwrap().is_empty());
    bench.contents.answer(Ok(()));
    assert_eq!(text(bench.answer()), "whole");
}

#[test]
fn what_arrives_from_a_second_try_is_read_from_its_own_file() {
    let bench = Bench::new(NEVER, 10);
    let key = bench.put(b"whole");
    bench.want_part(key, 4..5);
    bench.arriving(key, &[(0, 4)]);
    let second = bench.store.path().join("second");
    fs::write(&second, "second").unwrap();
    bench.fetcher.arriving(&key, &second, Ranges::default());
    bench.want_part(key, 0..1);
    assert!(bench.answers.1.try_recv().is_err());
    let mut readable = Ranges::default();
    readable.insert(0..5);
    bench.fetcher.arriving(&key, &second, readable);
    assert_eq!([text(bench.answer()), text(bench.answer())], ["second", "second"]);
}

#[test]
fn a_request_whose_views_are_gone_is_forgotten_unless_others_wait() {
    let bench = Bench::new(NEVER, 10);
    let key = bench.put(b"whole");
    bench.want_part(key, 0..1);
    bench.arriving(key, &[(0, 1)]);
    assert!(bench.answer().is_ok());
    bench.contents.answer(Err(WantError::GivenUp));
    assert_eq!(bench.fetcher.pending_count(), 0);

    bench.want_part(key, 0..1);
    bench.contents.answer(Err(WantError::GivenUp));
    assert_eq!(bench.fetcher.pending_count(), 1);
    assert!(bench.answers.1.try_recv().is_err());
    bench.arriving(key, &[(0, 1)]);
    assert!(bench.answer().is_ok());
    assert!(bench.contents.failures.lock().unwrap().is_empty());
}
