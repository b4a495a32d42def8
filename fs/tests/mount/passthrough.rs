//! Large files that the kernel reads from the store by itself, on the second connection.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use distbuild_fs::Message::{Lookup, Open, Read, Release};
use distbuild_fs::contents::{BlobKey, BlobKind, WantError};
use distbuild_fs::protocol::{FromFs, ToFs};
use distbuild_fs::{LARGE_FILE_BYTES, Message};
use distbuild_proto::Digest;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Case;
use crate::messages::mapped;
use crate::rig::Rig;
use crate::testd::Options;
use crate::trees::{FUNCTION, Plain, directory, file};

pub(crate) const CASES: &[Case] = &[
    ("passthrough_large_files_read_as_they_were_written", contents),
    ("passthrough_openings_are_messages_and_reads_of_large_files_are_not", messages),
    ("passthrough_programs_run", programs),
    ("passthrough_openings_at_a_time_share_one_file_of_the_store", many_openings),
    ("passthrough_two_views_at_once", two_views),
    ("passthrough_is_traced_like_the_usual_connection", record),
    ("passthrough_waits_for_a_blob_that_comes_late", late_blob),
    ("passthrough_failed_contents_are_an_input_error_and_reported", failed_contents),
    ("passthrough_a_killed_opener_dies_once_its_view_has_failed", killed_opener),
    ("passthrough_survives_the_eviction_of_an_open_file", eviction),
    ("passthrough_gives_memory_back", memory),
    ("passthrough_refused_is_a_second_usual_mount", refused),
];

fn start() -> Rig {
    let rig = Rig::start(Options { passthrough: true, ..Options::default() });
    assert_eq!(rig.no_passthrough, None);
    rig
}

/// Contents that are just large, and differ at every place and for every seed.
fn large(seed: u64) -> Vec<u8> {
    let words = (0..=LARGE_FILE_BYTES / 8).map(|at| (at * 0x9e37_79b9 + seed).to_le_bytes());
    words.flatten().collect()
}

fn large_digest(seed: u64) -> Digest {
    FUNCTION.digest(&large(seed))
}

fn tree(seed: u64) -> Plain {
    directory([("large", Plain::File(large(seed))), ("small", file("small"))])
}

/// The messages of the passthrough connection; those of the other must be none.
fn cost<R>(rig: &Rig, operation: impl FnOnce() -> R) -> Vec<(Message, u64)> {
    let before = rig.stats();
    operation();
    let after = rig.stats();
    assert_eq!(after.messages.since(&before.messages).total(), 0);
    let counts = after.passthrough_messages.since(&before.passthrough_messages);
    // The closing of a file is told in the background.
    counts.iter().filter(|(kind, count)| *count > 0 && *kind != Release).collect()
}

fn backed(rig: &Rig, count: u64) {
    rig.until("so many files are open", || (rig.stats().backed == count).then_some(()));
}

fn contents() {
    let rig = start();
    rig.add_view(1, &tree(1));
    let (path, data) = (rig.large_path("action/1/large"), large(1));
    assert!(fs::read(&path).unwrap() == data);
    let open = File::open(&path).unwrap();
    backed(&rig, 1);
    for at in [5_000_011_usize, 16, 9_999_991, data.len() - 100] {
        let mut piece = [0; 100];
        open.read_exact_at(&mut piece, at as u64).unwrap();
        assert_eq!(piece, data[at..at + 100]);
    }
    assert_eq!(open.read_at(&mut [0; 100], data.len() as u64).unwrap(), 0);
    assert!(mapped(&open, data.len()) == data);
    drop(open);
    backed(&rig, 0);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mode(), meta.size(), meta.nlink()), (0o100_644, data.len() as u64, 1));
    assert_eq!((meta.mtime(), meta.uid()), (315_532_800, 0));
    assert!(File::options().write(true).open(&path).is_err());
    assert_eq!(fs::read(rig.large_path("action/1/small")).unwrap(), b"small");
    assert!(fs::read(rig.path("action/1/large")).unwrap() == data, "both connections show it");
}

fn messages() {
    let rig = start();
    rig.add_view(1, &tree(1));
    fs::metadata(rig.large_path("action/1")).unwrap();
    let read = |name: &str| fs::read(rig.large_path("action/1").join(name)).unwrap();
    assert_eq!(cost(&rig, || read("large")), [(Lookup, 1), (Open, 1)]);
    assert_eq!(cost(&rig, || read("large")), [(Open, 1)]);
    assert_eq!(cost(&rig, || read("small")), [(Lookup, 1), (Read, 1), (Open, 1)]);
    assert_eq!(cost(&rig, || read("small")), [(Open, 1)]);
    let absent = || assert!(fs::metadata(rig.large_path("action/1/none")).is_err());
    assert_eq!(cost(&rig, absent), [(Lookup, 1)]);
    assert_eq!(cost(&rig, absent), []);
}

fn programs() {
    let rig = start();
    // A real program: the kernel maps it, and reads no further than it must.
    let mut program = fs::read("/bin/cat").unwrap();
    program.resize(LARGE_FILE_BYTES as usize + 1, 0);
    rig.add_view(1, &directory([("cat", Plain::Program(program))]));
    let mut cat = Command::new(rig.large_path("action/1/cat"));
    let mut running = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    backed(&rig, 1);
    running.stdin.take().unwrap().write_all(b"through").unwrap();
    assert_eq!(running.wait_with_output().unwrap().stdout, b"through");
    backed(&rig, 0);
    let map = || Command::new(rig.large_path("action/1/cat")).arg("/dev/null").status().unwrap();
    assert!(map().success());
}

fn many_openings() {
    let rig = start();
    rig.add_view(1, &tree(1));
    let (path, data) = (rig.large_path("action/1/large"), large(1));
    std::thread::scope(|scope| {
        for first in 0..8_usize {
            let (path, data) = (&path, &data);
            scope.spawn(move || {
                for round in 0..50 {
                    let open = File::open(path).unwrap();
                    let mut piece = [0; 64];
                    let at = (first * 1_000_003 + round * 9973) % (data.len() - 64);
                    open.read_exact_at(&mut piece, at as u64).unwrap();
                    assert_eq!(piece, data[at..at + 64]);
                }
            });
        }
    });
    let held = [File::open(&path).unwrap(), File::open(&path).unwrap()];
    backed(&rig, 1);
    let [first, second] = held;
    drop(first);
    let mut piece = [0; 8];
    second.read_exact_at(&mut piece, 0).unwrap();
    assert_eq!(piece, data[..8]);
    drop(second);
    backed(&rig, 0);
}

fn two_views() {
    let rig = start();
    rig.add_view(1, &tree(1));
    rig.add_view(2, &tree(1));
    let one = File::open(rig.large_path("action/1/large")).unwrap();
    let two = File::open(rig.large_path("action/2/large")).unwrap();
    rig.drop_view(1);
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    one.read_exact_at(&mut a, 8 << 20).unwrap();
    two.read_exact_at(&mut b, 8 << 20).unwrap();
    assert!(a == b && a[..] == large(1)[8 << 20..][..4096]);
    assert_eq!(rig.script(|script| script.wants.len()), 2, "one directory, one file");
}

fn record() {
    let rig = start();
    rig.add_view(1, &tree(1));
    rig.add_view(2, &tree(1));
    let look = |root: std::path::PathBuf| {
        assert_eq!(fs::read_dir(&root).unwrap().count(), 2);
        assert!(fs::metadata(root.join("none")).is_err());
        File::open(root.join("large")).unwrap();
        // Listed, but never looked at: small.
    };
    look(rig.path("action/1"));
    look(rig.large_path("action/2"));
    let (usual, large) = (rig.drop_view(1), rig.drop_view(2));
    assert_eq!((large.looked_up().len(), large.listed().len()), (2, 1));
    assert_eq!(usual, large);
}

fn late_blob() {
    let rig = start();
    rig.add_view(1, &tree(1));
    let digest = large_digest(1);
    rig.script(|script| script.held.insert(digest));
    let open = |path| Command::new("head").args(["-c8"]).arg(path).stdout(Stdio::piped()).spawn();
    let readers = [(); 2].map(|()| open(rig.large_path("action/1/large")).unwrap());
    assert_eq!(rig.wanted(digest).0, [1]);
    rig.until("both wait", || (rig.stats().passthrough_messages.get(Open) >= 2).then_some(()));
    // Who waits holds up nobody else.
    assert_eq!(fs::read(rig.large_path("action/1/small")).unwrap(), b"small");
    rig.release(digest);
    for reader in readers {
        assert_eq!(reader.wait_with_output().unwrap().stdout, large(1)[..8]);
    }
    assert_eq!(rig.script(|script| script.wants.iter().filter(|w| w.0 == digest).count()), 1);
}

fn failed_contents() {
    let rig = start();
    rig.add_view(1, &tree(1));
    let digest = large_digest(1);
    rig.script(|script| script.refused.insert(digest, "nobody has it".into()));
    let open = || File::open(rig.large_path("action/1/large"));
    assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::EIO));
    let reason = WantError::Refused("nobody has it".into());
    assert_eq!(rig.event(), FromFs::ReadFailed { digest, views: vec![1], reason });
    // A blob that was cut short in the store is not opened either.
    rig.script(|script| {
        script.refused.clear();
        let key = BlobKey { digest, kind: BlobKind::File { executable: false } };
        script.blobs.get_mut(&key).unwrap().truncate(100);
    });
    assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::EIO));
    match rig.event() {
        FromFs::ReadFailed { views, reason: WantError::Damaged(_), .. } => assert_eq!(views, [1]),
        other => panic!("not a failure: {other:?}"),
    }
    assert_eq!(rig.stats().backed, 0);
}

fn killed_opener() {
    let rig = start();
    rig.add_view(1, &tree(1));
    let digest = large_digest(1);
    rig.script(|script| script.held.insert(digest));
    let mut opener = Command::new("cat");
    opener.arg(rig.large_path("action/1/large")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut opener = opener.spawn().unwrap();
    rig.wanted(digest);
    rig.send(&ToFs::FailView { view: 1 });
    kill(Pid::from_raw(opener.id() as i32), Signal::SIGKILL).unwrap();
    assert!(!opener.wait().unwrap().success());
    assert!(rig.drop_view(1).is_complete());
    rig.release(digest);
    backed(&rig, 0);
}

fn eviction() {
    let rig = start();
    rig.add_view(1, &tree(1));
    let path = rig.large_path("action/1/large");
    let (open, data) = (File::open(&path).unwrap(), large(1));
    let key = BlobKey { digest: large_digest(1), kind: BlobKind::File { executable: false } };
    let stored = key.path(&rig.store());
    // Evicted: the name goes, and another file takes it, as when the blob is fetched anew.
    fs::remove_file(&stored).unwrap();
    fs::write(&stored, b"another").unwrap();
    fs::set_permissions(&stored, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(mapped(&open, data.len()) == data);
    assert!(fs::read(&path).unwrap() == data);
}

fn memory() {
    let rig = start();
    rig.add_view(1, &tree(1));
    // Each connection counts its own look-ups of one inode.
    for path in [rig.path("action/1/large"), rig.large_path("action/1/large")] {
        fs::metadata(path).unwrap();
    }
    File::open(rig.large_path("action/1/large")).unwrap();
    let before = rig.stats();
    rig.drop_view(1);
    rig.until("all inodes are given back", || (rig.stats().inodes == 0).then_some(()));
    let after = rig.stats();
    let forgotten =
        |after: &distbuild_fs::MessageCounts, before| after.since(before).get(Message::Forget);
    assert_eq!(forgotten(&after.messages, &before.messages), 2);
    assert_eq!(forgotten(&after.passthrough_messages, &before.passthrough_messages), 2);
    assert_eq!(after.backed, 0);
}

fn refused() {
    let rig = Rig::start(Options { passthrough: true, powerless: true, ..Options::default() });
    assert!(
        rig.no_passthrough.as_ref().unwrap().contains("not permitted"),
        "{:?}",
        rig.no_passthrough
    );
    rig.add_view(1, &tree(1));
    let read = || assert!(fs::read(rig.large_path("action/1/large")).unwrap() == large(1));
    read();
    // Here as there, nobody asks before a file is opened.
    assert_eq!(cost(&rig, read), []);
    assert_eq!(rig.stats().backed, 0);
}
