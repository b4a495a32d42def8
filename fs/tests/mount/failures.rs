//! Contents that do not come, processes that are killed while they wait, and the end of the agent.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use distbuild_fs::contents::WantError;
use distbuild_fs::protocol::{FromFs, ToFs};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Case;
use crate::rig::Rig;
use crate::testd::Options;
use crate::trees::{FUNCTION, directory, file};

pub(crate) const CASES: &[Case] = &[
    ("failed_contents_are_an_input_error_and_reported", failed_contents),
    ("a_directory_that_does_not_come_is_an_input_error", a_failed_directory),
    ("contents_that_take_too_long_are_an_input_error", contents_that_take_too_long),
    ("a_killed_reader_dies_once_its_view_has_failed", a_killed_reader_dies),
    ("a_failed_view_frees_who_waits_for_a_directory", a_waiting_lookup_is_freed),
    ("failing_one_view_leaves_the_reads_of_another", another_view_is_left_alone),
    ("a_view_that_may_wait_is_announced", a_view_that_may_wait_is_announced),
    ("the_process_ends_with_its_agent", the_process_ends_with_its_agent),
    ("the_process_ends_with_its_agent_although_somebody_waits", ends_although_somebody_waits),
    ("a_damaged_blob_is_never_served", a_damaged_blob_is_never_served),
];

fn errno(result: std::io::Result<Vec<u8>>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

fn failed_contents() {
    let rig = Rig::start(Options::default());
    let tree = directory([(
        "dep",
        directory([("3", directory([("lib", directory([("f", file("data"))]))]))]),
    )]);
    rig.add_view(1, &tree);
    rig.add_view(2, &tree);
    let digest = FUNCTION.digest(b"data");
    rig.script(|script| script.refused.insert(digest, "nobody has it".into()));
    fs::metadata(rig.path("action/2/dep/3/lib/f")).unwrap();
    assert_eq!(errno(fs::read(rig.path("action/1/dep/3/lib/f"))), Some(libc::EIO));
    let reason = WantError::Refused("nobody has it".into());
    assert_eq!(rig.event(), FromFs::ReadFailed { digest, views: vec![1, 2], reason });
    let (views, hint) = rig.wanted(digest);
    assert_eq!((views, hint.as_bytes()), (vec![2, 1], &b"dep/3"[..]));

    // An error is not remembered.
    rig.script(|script| script.refused.clear());
    assert_eq!(fs::read(rig.path("action/1/dep/3/lib/f")).unwrap(), b"data");
}

fn a_failed_directory() {
    let rig = Rig::start(Options::default());
    let root = rig.add_view(1, &directory([("f", file("x"))]));
    rig.script(|script| script.refused.insert(root, "gone".into()));
    assert_eq!(errno(fs::read(rig.path("action/1/f"))), Some(libc::EIO));
    let reason = WantError::Refused("gone".into());
    assert_eq!(rig.event(), FromFs::ReadFailed { digest: root, views: vec![1], reason });
}

fn contents_that_take_too_long() {
    let rig = Rig::start(Options { deadline: Duration::from_millis(300), ..Options::default() });
    rig.add_view(1, &directory([("f", file("slow"))]));
    let digest = FUNCTION.digest(b"slow");
    rig.script(|script| script.held.insert(digest));
    assert_eq!(errno(fs::read(rig.path("action/1/f"))), Some(libc::EIO));
    let reason = WantError::Deadline(300);
    assert_eq!(rig.event(), FromFs::ReadFailed { digest, views: vec![1], reason });
}

fn a_killed_reader_dies() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &directory([("f", file("slow"))]));
    let digest = FUNCTION.digest(b"slow");
    rig.script(|script| script.held.insert(digest));
    let path = rig.path("action/1/f");
    let mut reader = Command::new("cat").arg(path).stderr(Stdio::null()).spawn().unwrap();
    rig.wanted(digest);
    let begin = Instant::now();
    rig.send(&ToFs::FailView { view: 1 });
    kill(Pid::from_raw(reader.id() as i32), Signal::SIGKILL).unwrap();
    reader.wait().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "it waited for the deadline");
    assert!(rig.drop_view(1).is_complete());
}

fn a_waiting_lookup_is_freed() {
    let rig = Rig::start(Options::default());
    let tree = directory([("d", directory([("f", file("x"))]))]);
    rig.add_view(1, &tree);
    let inner = rig.script(|script| {
        let mut blobs = Default::default();
        let digest = crate::trees::encode(&directory([("f", file("x"))]), &mut blobs);
        script.held.insert(digest);
        digest
    });
    let path = rig.path("action/1/d/f");
    let mut reader = Command::new("cat").arg(path).stderr(Stdio::null()).spawn().unwrap();
    rig.wanted(inner);
    rig.send(&ToFs::FailView { view: 1 });
    // It is not killed: the error ends it. Nobody is told, since the view was failed on purpose.
    assert_eq!(reader.wait().unwrap().code(), Some(1));
    rig.drop_view(1);
}

fn another_view_is_left_alone() {
    let rig = Rig::start(Options::default());
    let tree = directory([("f", file("slow"))]);
    rig.add_view(1, &tree);
    rig.add_view(2, &tree);
    fs::metadata(rig.path("action/1/f")).unwrap();
    let digest = FUNCTION.digest(b"slow");
    rig.script(|script| script.held.insert(digest));
    let reader =
        Command::new("cat").arg(rig.path("action/2/f")).stdout(Stdio::piped()).spawn().unwrap();
    rig.wanted(digest);
    rig.send(&ToFs::FailView { view: 1 });
    rig.drop_view(1);
    rig.release(digest);
    let output = reader.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"slow");
}

fn a_view_that_may_wait_is_announced() {
    let rig = Rig::start(Options::default());
    let tree = directory([("f", file("slow"))]);
    rig.add_view(1, &tree);
    rig.add_view(2, &tree);
    let digest = FUNCTION.digest(b"slow");
    rig.script(|script| script.held.insert(digest));
    let path = rig.path("action/1/f");
    let reader = Command::new("cat").arg(path).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(rig.wanted(digest).0, [1]);
    fs::metadata(rig.path("action/2/f")).unwrap();
    rig.until("the second view is announced", || {
        let wants = rig.script(|script| script.wants.clone());
        wants.iter().any(|want| want.0 == digest && want.1 == [1, 2]).then_some(())
    });
    rig.release(digest);
    assert_eq!(reader.wait_with_output().unwrap().stdout, b"slow");
}

fn the_process_ends_with_its_agent() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &directory([("f", file("x"))]));
    assert_eq!(fs::read(rig.path("action/1/f")).unwrap(), b"x");
    assert!(rig.finish());
}

fn ends_although_somebody_waits() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &directory([("f", file("slow"))]));
    let digest = FUNCTION.digest(b"slow");
    rig.script(|script| script.held.insert(digest));
    let path = rig.path("action/1/f");
    let mut reader = Command::new("cat").arg(path).stderr(Stdio::null()).spawn().unwrap();
    rig.wanted(digest);
    assert!(rig.finish());
    assert_eq!(reader.wait().unwrap().code(), Some(1));
}

fn a_damaged_blob_is_never_served() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &directory([("f", file("whole"))]));
    let digest = FUNCTION.digest(b"whole");
    rig.script(|script| {
        for (key, blob) in &mut script.blobs {
            if key.digest == digest {
                blob.truncate(3);
            }
        }
    });
    assert_eq!(errno(fs::read(rig.path("action/1/f"))), Some(libc::EIO));
    match rig.event() {
        FromFs::ReadFailed { views, reason: WantError::Damaged(_), .. } => {
            assert_eq!(views, [1]);
        }
        other => panic!("not a failure: {other:?}"),
    }
}
