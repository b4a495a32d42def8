//! What jobs see, how many messages it takes, and what is remembered of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use bytes::Bytes;
use distbuild_fs::Message;
use distbuild_fs::collections::tree_name;
use distbuild_proto::{Observed, RelPath};

use crate::Case;
use crate::rig::Rig;
use crate::testd::Options;
use crate::trees::{FUNCTION, Plain, directory, file};

pub(crate) const CASES: &[Case] = &[
    ("a_tree_reads_as_it_was_written", a_tree_reads_as_it_was_written),
    ("absent_names_are_asked_for_once", absent_names_are_asked_for_once),
    ("warm_files_cost_no_messages", warm_files_cost_no_messages),
    ("equal_contents_have_inodes_of_their_own_and_pages_in_common", equal_contents),
    ("a_directory_stays_in_its_own_view", a_directory_stays_in_its_own_view),
    ("a_dropped_view_gives_its_memory_back", a_dropped_view_gives_its_memory_back),
    ("a_view_can_be_added_after_it_was_looked_for", a_view_after_it_was_looked_for),
    ("ten_thousand_names_are_listed_once_each", ten_thousand_names),
    ("a_record_holds_lookups_absences_and_listings", a_record_holds_everything),
    ("a_record_beyond_its_limit_saw_everything_and_everything_works", a_record_beyond_its_limit),
    ("programs_run_from_the_mount", programs_run_from_the_mount),
    ("a_shared_tree_is_found_by_its_digest", a_shared_tree_is_found_by_its_digest),
    ("an_ordinary_user_can_serve_a_mount", an_ordinary_user_can_serve_a_mount),
    ("large_files_are_read_in_large_pieces", large_files),
    ("many_readers_of_many_views_see_the_same", many_readers),
];

fn path(text: &[u8]) -> RelPath {
    RelPath::new(text).unwrap()
}

fn large(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 3) as u8 ^ seed ^ (at >> 11) as u8).collect()
}

fn sample() -> Plain {
    let mut odd = std::collections::BTreeMap::new();
    odd.insert(b"caf\xe9 \n".to_vec(), file("latin-1"));
    directory([
        (
            "src",
            directory([
                ("a.c", file("int a;\n")),
                ("empty", file("")),
                ("odd", Plain::Directory(odd)),
            ]),
        ),
        ("tool", Plain::Program(b"#!/bin/sh\nexit 3\n".to_vec())),
        ("link", Plain::Link("src/a.c")),
        ("big", Plain::File(large(7, 3_000_001))),
        ("none", directory([])),
    ])
}

fn a_tree_reads_as_it_was_written() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &sample());
    let at = |name: &str| rig.path("action/1").join(name);
    assert_eq!(fs::read(at("src/a.c")).unwrap(), b"int a;\n");
    assert_eq!(fs::read(at("link")).unwrap(), b"int a;\n");
    assert_eq!(fs::read_link(at("link")).unwrap().as_os_str().as_bytes(), b"src/a.c");
    assert_eq!(fs::read(at("src/empty")).unwrap(), b"");
    assert_eq!(fs::read(at("big")).unwrap(), large(7, 3_000_001));
    let odd = std::ffi::OsString::from_vec(b"caf\xe9 \n".to_vec());
    assert_eq!(fs::read(at("src/odd").join(&odd)).unwrap(), b"latin-1");
    assert_eq!(fs::read_dir(at("src/odd")).unwrap().next().unwrap().unwrap().file_name(), odd);
    assert_eq!(fs::read_dir(at("none")).unwrap().count(), 0);

    for (name, mode, size) in [
        ("src", 0o040_755, 0),
        ("src/a.c", 0o100_644, 7),
        ("tool", 0o100_755, 17),
        ("link", 0o120_777, 7),
    ] {
        let meta = fs::symlink_metadata(at(name)).unwrap();
        assert_eq!((meta.mode(), meta.size(), meta.nlink()), (mode, size, 1), "{name}");
        assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.uid()), (315_532_800, 0, 0), "{name}");
    }
    let written = fs::write(at("src/new"), "x").unwrap_err();
    assert_eq!(written.kind(), ErrorKind::ReadOnlyFilesystem);
    let about = nix::sys::statvfs::statvfs(&at("src")).unwrap();
    assert_eq!(about.name_max(), 255);
}

fn absent_names_are_asked_for_once() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &sample());
    let look = || fs::symlink_metadata(rig.path("action/1/src/none.h")).unwrap_err().kind();
    let (first, kind) = rig.messages(look);
    assert_eq!((kind, first.get(Message::Lookup)), (ErrorKind::NotFound, 4));
    let (second, kind) = rig.messages(look);
    assert_eq!((kind, second.total()), (ErrorKind::NotFound, 0));
}

fn warm_files_cost_no_messages() {
    let rig = Rig::start(Options::default());
    let names: Vec<String> = (0..20).map(|n| format!("f{n}")).collect();
    let files = names.iter().map(|name| (name.clone().into_bytes(), file(name))).collect();
    rig.add_view(1, &Plain::Directory(files));
    let read_all = || {
        for name in &names {
            assert_eq!(fs::read_to_string(rig.path("action/1").join(name)).unwrap(), *name);
        }
        fs::read_dir(rig.path("action/1")).unwrap().count()
    };
    let (cold, _) = rig.messages(read_all);
    assert_eq!(cold.get(Message::Lookup), 22, "{cold:?}");
    assert_eq!(cold.get(Message::Read), 20, "{cold:?}");
    for once in [Message::Open, Message::Opendir, Message::Flush] {
        assert!(cold.get(once) <= 1, "{once:?}: {cold:?}");
    }
    let (warm, count) = rig.messages(read_all);
    assert_eq!((warm.total(), count), (0, 20), "{warm:?}");
}

fn equal_contents() {
    let rig = Rig::start(Options::default());
    let tree =
        directory([("a", file("same")), ("b", file("same")), ("x", Plain::Program("same".into()))]);
    rig.add_view(1, &tree);
    rig.add_view(2, &tree);
    let ino = |name: &str| fs::metadata(rig.path(name)).unwrap().ino();
    let inodes = ["action/1/a", "action/1/b", "action/1/x"].map(ino);
    assert_eq!(inodes.iter().collect::<BTreeSet<_>>().len(), 3);
    // The other view meets them in another order: its first is the first view's first.
    assert_eq!(["action/2/b", "action/2/a"].map(ino), [inodes[0], inodes[1]]);

    fs::read(rig.path("action/1/a")).unwrap();
    let (messages, data) = rig.messages(|| fs::read(rig.path("action/2/b")).unwrap());
    assert_eq!((messages.get(Message::Read), data), (0, b"same".to_vec()));
    assert_eq!(rig.script(|script| script.wants.len()), 2, "one directory, one file");
}

fn a_directory_stays_in_its_own_view() {
    let rig = Rig::start(Options::default());
    let tree = directory([("d", directory([("e", directory([]))]))]);
    rig.add_view(1, &tree);
    rig.add_view(2, &tree);
    let here = File::open(rig.path("action/1/d/e")).unwrap();
    for _ in 0..3 {
        fs::metadata(rig.path("action/2/d/e")).unwrap();
    }
    let link = fs::read_link(format!("/proc/self/fd/{}", here.as_raw_fd())).unwrap();
    assert!(link.ends_with("action/1/d/e"), "{link:?}");
    let up = fs::metadata(format!("/proc/self/fd/{}/../..", here.as_raw_fd())).unwrap();
    assert_eq!(up.ino(), fs::metadata(rig.path("action/1")).unwrap().ino());
    assert_ne!(up.ino(), fs::metadata(rig.path("action/2")).unwrap().ino());
}

fn a_dropped_view_gives_its_memory_back() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &sample());
    rig.add_view(2, &sample());
    let walk = |view: &str| {
        let found = Command::new("find").arg(rig.path(view)).arg("-printf").arg("%s\n").output();
        assert!(found.unwrap().status.success());
    };
    walk("action/1");
    walk("action/2");
    assert!(rig.stats().inodes > 10);
    rig.drop_view(1);
    // The kernel learns of it from another thread than the agent does.
    let error = rig.until("a dropped view is gone", || fs::metadata(rig.path("action/1")).err());
    assert_eq!(error.kind(), ErrorKind::NotFound);
    walk("action/2");
    rig.drop_view(2);
    rig.until("all inodes are given back", || (rig.stats().inodes == 0).then_some(()));
}

fn a_view_after_it_was_looked_for() {
    let rig = Rig::start(Options::default());
    let look = || fs::metadata(rig.path("action/7")).map(|_| ()).map_err(|error| error.kind());
    assert_eq!(look(), Err(ErrorKind::NotFound));
    rig.add_view(7, &sample());
    assert_eq!(look(), Ok(()));
    assert!(fs::metadata(rig.path("action/07")).is_err());
}

fn ten_thousand_names() {
    let rig = Rig::start(Options::default());
    let names: BTreeSet<Vec<u8>> =
        (0..10_000).map(|n| format!("a rather long name {n}").into_bytes()).collect();
    let children = names.iter().map(|name| (name.clone(), file("x"))).collect();
    rig.add_view(1, &Plain::Directory(children));
    for _ in 0..2 {
        let entries = fs::read_dir(rig.path("action/1")).unwrap();
        let listed: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_vec()).collect();
        assert_eq!(listed.len(), names.len());
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
    }
    let record = rig.drop_view(1);
    assert_eq!((record.listed().len(), record.looked_up().len()), (1, 0));
}

fn a_record_holds_everything() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &sample());
    fs::metadata(rig.path("action/1/src/a.c")).unwrap();
    fs::read_link(rig.path("action/1/link")).unwrap();
    fs::metadata(rig.path("action/1/include/x.h")).unwrap_err();
    fs::metadata(rig.path("action/1/tool")).unwrap();
    assert_eq!(fs::read_dir(rig.path("action/1/src")).unwrap().count(), 3);
    let record = rig.drop_view(1);
    assert!(record.is_complete());
    assert_eq!(record.listed(), [path(b"src")]);
    let seen = |at: &[u8]| record.get(&path(at));
    let file = |contents: &[u8], executable| Observed::File {
        digest: FUNCTION.digest(contents),
        executable,
    };
    let target = Bytes::from_static(b"src/a.c");
    assert_eq!(record.looked_up().len(), 5);
    assert_eq!(seen(b"include"), Some(&Observed::Absent));
    assert_eq!(seen(b"link"), Some(&Observed::Symlink { target }));
    assert!(matches!(seen(b"src"), Some(Observed::Directory(_))));
    assert_eq!(seen(b"src/a.c"), Some(&file(b"int a;\n", false)));
    assert_eq!(seen(b"tool"), Some(&file(b"#!/bin/sh\nexit 3\n", true)));
    assert_eq!(record.looked_up_files().count(), 2);
}

fn a_record_beyond_its_limit() {
    let rig = Rig::start(Options { record_entries: 3, ..Options::default() });
    rig.add_view(1, &sample());
    let names = ["src/a.c", "tool", "link", "big", "src/odd", "none"];
    let inodes: BTreeSet<u64> = names
        .iter()
        .map(|name| fs::symlink_metadata(rig.path("action/1").join(name)).unwrap().ino())
        .collect();
    assert_eq!(inodes.len(), names.len());
    assert_eq!(fs::read(rig.path("action/1/big")).unwrap(), large(7, 3_000_001));
    let record = rig.drop_view(1);
    assert!(record.root().everything, "`link` did not fit");
    assert_eq!(record.looked_up().len(), 3);
    rig.until("all inodes are given back", || (rig.stats().inodes == 0).then_some(()));
}

fn programs_run_from_the_mount() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &sample());
    let status = Command::new(rig.path("action/1/tool")).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

fn a_shared_tree_is_found_by_its_digest() {
    let rig = Rig::start(Options::default());
    let root = rig.add_view(1, &sample());
    rig.drop_view(1);
    let tree = rig.path("tree").join(tree_name(&root));
    assert_eq!(fs::read(tree.join("src/a.c")).unwrap(), b"int a;\n");
    assert!(fs::metadata(rig.path("tree/blake3-00-1")).is_err());
}

fn an_ordinary_user_can_serve_a_mount() {
    let rig = Rig::start(Options { unprivileged: true, ..Options::default() });
    rig.add_view(1, &sample());
    let output = rig.inside().arg("cat").arg(rig.inner_path("action/1/src/a.c")).output().unwrap();
    assert_eq!(output.stdout, b"int a;\n", "{}", String::from_utf8_lossy(&output.stderr));
    let record = rig.drop_view(1);
    assert_eq!(record.looked_up_files().count(), 1);
}

fn large_files() {
    let rig = Rig::start(Options::default());
    let data = large(1, 16 << 20);
    rig.add_view(1, &directory([("data", Plain::File(data.clone()))]));
    let (messages, read) = rig.messages(|| fs::read(rig.path("action/1/data")).unwrap());
    assert!(read == data);
    // Read-ahead of 1 MiB once it has warmed up; at the kernel's default it would be 128.
    assert!(messages.get(Message::Read) <= 40, "{messages:?}");
}

fn many_readers() {
    const VIEWS: u64 = 30;
    let rig = Rig::start(Options::default());
    let folder = |seed: u8| {
        let file = |n: u8| (vec![b'f', b'a' + n], Plain::File(large(seed ^ (n % 5), 9_000)));
        Plain::Directory((0..20).map(file).collect())
    };
    let folders = (0..6).map(|n| (vec![b'd', b'a' + n], folder(n))).collect();
    let tree = Plain::Directory(folders);
    for view in 0..VIEWS {
        rig.add_view(view, &tree);
    }
    let roots: Vec<_> = (0..VIEWS).map(|view| rig.path(&format!("action/{view}"))).collect();
    let sums = std::thread::scope(|scope| {
        let readers = (0..8).map(|first| {
            let roots = &roots;
            // Each begins elsewhere, so that they meet in the same files at different times.
            scope.spawn(move || {
                let order = roots.iter().cycle().skip(first * 4).take(roots.len());
                order.map(|root| sum(root)).collect::<BTreeSet<_>>()
            })
        });
        let readers: Vec<_> = readers.collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect::<BTreeSet<_>>()
    });
    assert_eq!(sums.len(), 1, "all views show the same");
    for view in 0..VIEWS {
        let record = rig.drop_view(view);
        assert_eq!((record.looked_up_files().count(), record.listed().len()), (120, 7));
    }
    rig.until("all inodes are given back", || (rig.stats().inodes == 0).then_some(()));
}

/// Something that depends on every name and byte below a directory.
fn sum(directory: &std::path::Path) -> u64 {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    entries.iter().fold(0_u64, |sum, path| {
        let inner = match fs::metadata(path).unwrap().is_dir() {
            true => self::sum(path),
            false => fs::read(path)
                .unwrap()
                .iter()
                .fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte))),
        };
        let name = path.file_name().unwrap().as_bytes();
        let name = name.iter().fold(0_u64, |sum, byte| sum * 257 + u64::from(*byte));
        sum.wrapping_mul(1_000_003).wrapping_add(inner ^ name)
    })
}
