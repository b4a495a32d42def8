//! How many messages of the kernel each operation costs. A message costs more than the work that it asks
//! for, so that these counts, which are exact on every machine, stand for the speed of the file system.
//!
//! Some messages are sent once in the life of a mount, to learn that they are not implemented (OPEN,
//! OPENDIR, FLUSH and others). Each case lets them go by before it counts.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use distbuild_fs::Message::{
    self, Forget, Getxattr, Lookup, Read as Reading, Readdir, Readlink, Statfs,
};
use distbuild_fs::MessageCounts;
use nix::libc;
use nix::unistd::{AccessFlags, access};

use crate::Case;
use crate::rig::Rig;
use crate::testd::Options;
use crate::trees::{FUNCTION, Plain, directory, file};

pub(crate) const CASES: &[Case] = &[
    ("a_name_is_asked_for_once_in_a_view_whether_it_exists_or_not", names),
    ("contents_are_read_once_for_all_views", contents),
    ("a_listing_is_asked_for_once_and_hides_no_name", listings),
    ("a_symlink_is_read_once", symlinks),
    ("a_program_costs_as_much_as_a_file", programs),
    ("a_mapped_file_costs_as_much_as_a_read_one", mapped_files),
    ("what_is_not_implemented_is_asked_for_once", not_implemented),
    ("every_inode_of_a_dropped_view_is_forgotten", forgotten),
    ("a_compile_asks_for_each_name_and_each_blob_once", compiles),
    ("names_in_one_directory_are_looked_up_in_parallel", parallel_lookups),
    ("a_hundred_slow_blobs_do_not_stop_reading_ahead", slow_blobs),
];

/// The kinds of messages and how many of each.
type Counts = Vec<(Message, u64)>;

fn nonzero(counts: &MessageCounts) -> Counts {
    counts.iter().filter(|(_, count)| *count > 0).collect()
}

/// What an operation costs.
fn cost<R>(rig: &Rig, operation: impl FnOnce() -> R) -> Counts {
    nonzero(&rig.messages(operation).0)
}

/// Views of one tree, known to the kernel by their roots alone.
fn views(tree: Plain, count: u64) -> Rig {
    let rig = Rig::start(Options::default());
    let first = directory([("d", directory([("f", file("first"))]))]);
    rig.add_view(0, &first);
    assert_eq!(fs::read_dir(rig.path("action/0/d")).unwrap().count(), 1);
    assert_eq!(fs::read(rig.path("action/0/d/f")).unwrap(), b"first");
    for view in 1..=count {
        rig.add_view(view, &tree);
        fs::metadata(rig.path(&format!("action/{view}"))).unwrap();
    }
    rig
}

fn names() {
    let rig = views(directory([("d", directory([("f", file("data"))]))]), 2);
    for view in ["action/1", "action/2"] {
        let stat = |name: &str| fs::symlink_metadata(rig.path(view).join(name)).is_ok();
        assert_eq!(cost(&rig, || assert!(stat("d/f"))), [(Lookup, 2)]);
        assert_eq!(cost(&rig, || assert!(stat("d/f"))), []);
        assert_eq!(cost(&rig, || assert!(!stat("d/none"))), [(Lookup, 1)]);
        assert_eq!(cost(&rig, || assert!(!stat("d/none"))), []);
        assert_eq!(cost(&rig, || assert!(!stat("none/f"))), [(Lookup, 1)]);
        assert_eq!(cost(&rig, || assert!(!stat("none/g"))), []);
    }
}

fn contents() {
    let data = "x".repeat(20_000);
    let rig = views(directory([("f", file(&data)), ("empty", file(""))]), 2);
    let cat = |path: &str| assert_eq!(fs::read_to_string(rig.path(path)).unwrap(), data);
    assert_eq!(cost(&rig, || cat("action/1/f")), [(Lookup, 1), (Reading, 1)]);
    assert_eq!(cost(&rig, || cat("action/1/f")), []);
    assert_eq!(cost(&rig, || cat("action/2/f")), [(Lookup, 1)]);
    let empty = || assert_eq!(fs::read(rig.path("action/1/empty")).unwrap(), b"");
    assert_eq!(cost(&rig, empty), [(Lookup, 1)]);
}

fn listings() {
    let rig = views(directory([("d", directory([("f", file("")), ("g", file(""))]))]), 1);
    let list = || assert_eq!(fs::read_dir(rig.path("action/1/d")).unwrap().count(), 2);
    // One answer with the names, one that says that there are no more.
    assert_eq!(cost(&rig, list), [(Lookup, 1), (Readdir, 2)]);
    assert_eq!(cost(&rig, list), []);
    let stat = || fs::metadata(rig.path("action/1/d/f")).unwrap();
    assert_eq!(cost(&rig, stat), [(Lookup, 1)]);
}

fn symlinks() {
    let rig = views(directory([("f", file("data")), ("link", Plain::Link("f"))]), 1);
    let link = rig.path("action/1/link");
    assert_eq!(cost(&rig, || fs::read_link(&link).unwrap()), [(Lookup, 1), (Readlink, 1)]);
    assert_eq!(cost(&rig, || fs::read_link(&link).unwrap()), []);
    assert_eq!(cost(&rig, || fs::metadata(&link).unwrap()), [(Lookup, 1)]);
    assert_eq!(cost(&rig, || fs::metadata(&link).unwrap()), []);
}

fn programs() {
    let rig = views(directory([("tool", Plain::Program("#!/bin/sh\nexit 3\n".into()))]), 2);
    let run = |path: &str| {
        let status = Command::new(rig.path(path)).status().unwrap();
        assert_eq!(status.code(), Some(3));
    };
    assert_eq!(cost(&rig, || run("action/1/tool")), [(Lookup, 1), (Reading, 1)]);
    assert_eq!(cost(&rig, || run("action/1/tool")), []);
    assert_eq!(cost(&rig, || run("action/2/tool")), [(Lookup, 1)]);
}

fn mapped_files() {
    let data = "y".repeat(16_000);
    let rig = views(directory([("f", file(&data))]), 1);
    let sum = || {
        let file = File::open(rig.path("action/1/f")).unwrap();
        assert_eq!(mapped(&file, data.len()), data.as_bytes());
    };
    assert_eq!(cost(&rig, sum), [(Lookup, 1), (Reading, 1)]);
    assert_eq!(cost(&rig, sum), []);
}

/// A copy of a file's bytes, taken out of a mapping.
#[expect(unsafe_code, reason = "a mapping has no safe interface")]
pub(crate) fn mapped(file: &File, len: usize) -> Vec<u8> {
    // SAFETY: a new mapping, read within its length while it exists; the file cannot shrink.
    unsafe {
        let flags = libc::MAP_PRIVATE;
        let at = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        let copy = std::slice::from_raw_parts(at.cast::<u8>(), len).to_vec();
        assert_eq!(libc::munmap(at, len), 0);
        copy
    }
}

fn not_implemented() {
    let rig = views(directory([("f", file("data")), ("g", file("data"))]), 1);
    let attribute = |name: &str| {
        let path = rig.path("action/1").join(name);
        let path = std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
        let mut value = [0_u8; 16];
        #[expect(unsafe_code, reason = "std and nix know no extended attributes")]
        // SAFETY: both strings end with a zero, and the buffer is as long as it is said to be.
        let result = unsafe {
            let (name, buffer) = (c"user.none".as_ptr(), value.as_mut_ptr().cast());
            libc::getxattr(path.as_ptr(), name, buffer, value.len())
        };
        assert_eq!((result, nix::errno::Errno::last_raw()), (-1, libc::EOPNOTSUPP));
    };
    assert_eq!(cost(&rig, || attribute("f")), [(Lookup, 1), (Getxattr, 1)]);
    assert_eq!(cost(&rig, || attribute("g")), [(Lookup, 1)]);
    let allowed = || access(&rig.path("action/1/f"), AccessFlags::R_OK).unwrap();
    assert_eq!(cost(&rig, allowed), []);
    // Never remembered, and rarely asked: before an overlay is mounted, and by people.
    let room = || nix::sys::statvfs::statvfs(&rig.path("action/1/f")).unwrap();
    assert_eq!(cost(&rig, room), [(Statfs, 1)]);
    assert_eq!(cost(&rig, room), [(Statfs, 1)]);
}

fn forgotten() {
    let rig = views(program(6), 1);
    let found = Command::new("find").arg(rig.path("action/1")).stdout(Stdio::null()).status();
    assert!(found.unwrap().success());
    let before = rig.stats();
    let names = rig.drop_view(1).looked_up().len() as u64;
    let after = rig.until("the inodes of the view are given back", || {
        let after = rig.stats();
        (after.inodes + names < before.inodes).then_some(after)
    });
    // Names and the root of the view; one message for each, and nothing else.
    assert_eq!(before.inodes - after.inodes, names + 1);
    assert_eq!(nonzero(&after.messages.since(&before.messages)), [(Forget, names + 1)]);
}

/// A program of so many source files, with a header for each and one for all, found on the last of
/// three search paths.
fn program(files: usize) -> Plain {
    let mut sources: Vec<(Vec<u8>, Plain)> = Vec::new();
    let mut headers = vec![(b"all.h".to_vec(), file("#pragma once\nint all(int);\n"))];
    for number in 0..files {
        let text = format!(
            "#include \"f{number}.h\"\n#include <all.h>\n\
             #if __has_include(<absent.h>)\n#error\n#endif\n\
             int f{number}(int x) {{ return all(x) + {number}; }}\n"
        );
        sources.push((format!("f{number}.c").into_bytes(), file(&text)));
        let header = format!("#pragma once\nint f{number}(int);\n");
        headers.push((format!("f{number}.h").into_bytes(), file(&header)));
    }
    directory([
        ("src", Plain::Directory(sources.into_iter().collect())),
        ("first", directory([])),
        ("second", directory([])),
        ("include", Plain::Directory(headers.into_iter().collect())),
    ])
}

fn compiles() {
    const FILES: usize = 5;
    let rig = views(program(FILES), 2);
    let folder = tempfile::tempdir().unwrap();
    let compile = |view: u64| {
        for number in 0..FILES {
            compile_one(&rig.path(&format!("action/{view}")), number, folder.path());
        }
    };
    let (first, ()) = rig.messages(|| compile(1));
    let (second, ()) = rig.messages(|| compile(1));
    let (elsewhere, ()) = rig.messages(|| compile(2));
    let records = [rig.drop_view(1), rig.drop_view(2)];
    let names = records[0].looked_up().len() as u64;
    assert_eq!(records[0], records[1], "a compile looks at the same in every view");
    // Each source file and header, and as many names again that are in none of the search paths: the
    // floor of 1 message a name and 1 a blob.
    let blobs = records[0].looked_up_files().count() as u64;
    assert_eq!(blobs, 2 * FILES as u64 + 1);
    assert_eq!(nonzero(&first), [(Lookup, names), (Reading, blobs)]);
    assert_eq!(nonzero(&second), []);
    assert_eq!(nonzero(&elsewhere), [(Lookup, names)]);
}

fn compile_one(view: &Path, number: usize, output: &Path) {
    let mut cc = Command::new("cc");
    cc.arg("-c").arg(view.join(format!("src/f{number}.c")));
    for path in ["first", "second", "include"] {
        cc.arg("-I").arg(view.join(path));
    }
    cc.arg("-o").arg(output.join("object.o"));
    let done = cc.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// A reader whose output is to be taken; it waits in the mount.
fn cat(path: PathBuf) -> std::process::Child {
    Command::new("cat").arg(path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn parallel_lookups() {
    let rig = views(directory([("d", directory([("f", file("1")), ("g", file("2"))]))]), 1);
    let inner = directory([("f", file("1")), ("g", file("2"))]);
    let inner = rig.script(|script| {
        let digest = crate::trees::encode(&inner, &mut script.blobs);
        script.held.insert(digest);
        digest
    });
    let before = rig.stats().messages;
    let (f, g) = (cat(rig.path("action/1/d/f")), cat(rig.path("action/1/d/g")));
    // Both names wait for the contents of their directory; the kernel by itself lets only one ask.
    rig.until("both names are asked for", || {
        (rig.stats().messages.since(&before).get(Lookup) == 3).then_some(())
    });
    rig.release(inner);
    assert_eq!(f.wait_with_output().unwrap().stdout, b"1");
    assert_eq!(g.wait_with_output().unwrap().stdout, b"2");
}

fn slow_blobs() {
    const SLOW: usize = 100;
    let slow = |n: usize| format!("{n:05}").repeat(4000);
    let files = (0..SLOW).map(|n| (format!("f{n}").into_bytes(), file(&slow(n))));
    let mut tree: std::collections::BTreeMap<_, _> = files.collect();
    tree.insert(b"other".to_vec(), file(&slow(SLOW)));
    let rig = views(Plain::Directory(tree), 1);
    let digests: Vec<_> = (0..SLOW).map(|n| FUNCTION.digest(slow(n).as_bytes())).collect();
    rig.script(|script| script.held.extend(digests.iter().copied()));
    let readers: Vec<_> = (0..SLOW).map(|n| cat(rig.path(&format!("action/1/f{n}")))).collect();
    digests.iter().for_each(|digest| drop(rig.wanted(*digest)));
    // A kernel that thinks that too much is under way reads nothing ahead, and so page by page.
    let other = || fs::read(rig.path("action/1/other")).unwrap();
    let (messages, data) = rig.messages(other);
    assert!(data == slow(SLOW).into_bytes());
    assert_eq!(nonzero(&messages), [(Lookup, 1), (Reading, 1)]);
    digests.iter().for_each(|digest| rig.release(*digest));
    for (n, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.wait_with_output().unwrap().stdout, slow(n).into_bytes());
    }
}
