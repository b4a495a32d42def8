//! Sessions that break, and workers that end.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use distbuild_proto::Address;
use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::wire::{self, AttemptEnd, to_worker};
use distbuild_worker::{Worker, WorkerConfig, WorkerError};
use libtest_mimic::Trial;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fake::{PATIENCE, within};
use crate::rig::{Job, Rig, text};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_result_survives_broken_connections_until_it_is_acknowledged", resume),
        trial("a_session_that_is_not_resumed_is_abandoned", not_resumed),
        trial("a_draining_worker_ends_what_it_runs_and_takes_nothing_new", drain),
        trial("nothing_is_left_after_a_shutdown", nothing_is_left),
        trial("nothing_is_left_of_a_worker_that_is_dropped", nothing_is_left_of_the_dropped),
        trial("two_workers_share_a_state_directory_unless_one_is_exclusive", shared_state),
        trial("a_helper_that_cannot_serve_says_why", broken_helper),
        trial("a_worker_whose_file_system_is_killed_fails_and_takes_nothing", || {
            killed_helper("63", |helper| helper)
        }),
        trial("a_worker_whose_spawner_is_killed_fails_and_takes_nothing", || {
            killed_helper("64", |helper| children_of(helper)[0])
        }),
    ]
}

async fn resume() {
    let mut rig = Rig::start().await;
    rig.link.send(Job::new("sleep 0.3; echo done").assign(5)).await;
    assert!(matches!(rig.link.next().await, Body::AttemptBegun(_)));
    rig.link = rig.fake.connection_after(rig.link).await;
    assert_eq!(rig.link.hello.resume_session, 1);
    assert_eq!(&rig.link.hello.resume_secret[..], b"secret");
    rig.link.welcome(1, true).await;
    let (ended, _) = rig.link.end().await;
    assert_eq!(text(&ended.result.unwrap().stdout), "done\n");
    // Not acknowledged, so it comes again.
    rig.link = rig.fake.connection_after(rig.link).await;
    rig.link.welcome(1, true).await;
    let (ended, _) = rig.link.end().await;
    assert_eq!(ended.attempt, 5);
    rig.link.acknowledge(5).await;
    let Rig { worker, mut link, .. } = rig;
    let dismissal = async {
        assert!(matches!(link.next().await, Body::Drain(_)));
        link.send(to_worker::Body::Dismiss(wire::Dismiss {})).await;
    };
    within(async { tokio::join!(worker.drain(), dismissal) }).await;
    worker.shutdown().await;
}

async fn not_resumed() {
    let mut rig = Rig::start().await;
    rig.link.send(Job::new("sleep 60").assign(5)).await;
    assert!(matches!(rig.link.next().await, Body::AttemptBegun(_)));
    rig.link = rig.fake.connection_after(rig.link).await;
    rig.link.welcome(2, false).await;
    // The number is given again, by a coordinator that knows nothing of the first.
    rig.link.send(Job::new("echo second").assign(5)).await;
    let (ended, before) = rig.link.end().await;
    assert!(!before.iter().any(|body| matches!(body, Body::AttemptEnded(_))));
    assert_eq!(ended.end(), AttemptEnd::AttemptSucceeded, "{ended:?}");
    assert_eq!(text(&ended.result.unwrap().stdout), "second\n");
    rig.worker.shutdown().await;
}

async fn drain() {
    let mut rig = Rig::start().await;
    rig.link.send(Job::new("sleep 0.5; echo done").assign(1)).await;
    assert!(matches!(rig.link.next().await, Body::AttemptBegun(_)));
    let Rig { worker, mut link, .. } = rig;
    let talk = async {
        assert!(matches!(link.next().await, Body::Drain(_)));
        link.send(Job::new("true").assign(2)).await;
        let (rejected, _) = link.end().await;
        assert_eq!((rejected.attempt, rejected.end()), (2, AttemptEnd::AttemptRejected));
        link.acknowledge(2).await;
        let (ended, _) = link.end().await;
        assert_eq!((ended.attempt, ended.end()), (1, AttemptEnd::AttemptSucceeded));
        link.acknowledge(1).await;
        // Somebody may still need its outputs: it leaves when it is told that nobody does.
        link.send(to_worker::Body::Dismiss(wire::Dismiss {})).await;
    };
    within(async { tokio::join!(worker.drain(), talk) }).await;
    worker.shutdown().await;
}

fn is_empty(path: &std::path::Path) -> bool {
    fs::read_dir(path).unwrap().flatten().all(|entry| entry.file_name() == "lock")
}

fn wait_until_empty(directories: &[PathBuf]) {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    for directory in directories {
        inotify.add_watch(directory, AddWatchFlags::IN_DELETE).unwrap();
    }
    let patience = PollTimeout::try_from(PATIENCE).unwrap();
    while !directories.iter().all(|directory| is_empty(directory)) {
        let mut events = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut events, patience).unwrap(), 1, "nothing more was removed");
        inotify.read_events().unwrap();
    }
}

async fn nothing_is_left() {
    let mut rig = Rig::start().await;
    let seconds = own("61");
    rig.link.send(Job::new(&format!("sleep {seconds} & sleep {seconds}")).assign(1)).await;
    assert!(matches!(rig.link.next().await, Body::AttemptBegun(_)));
    let state = rig.directory.path().join("state");
    let begin = Instant::now();
    rig.worker.shutdown().await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(is_empty(&state.join("run")) && is_empty(&state.join("actions")));
    assert_no_job(&seconds);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*state.to_string_lossy()));
}

/// So many seconds, and a fraction that no other run of these tests sleeps for at the same time.
fn own(seconds: &str) -> String {
    format!("{seconds}.{}", std::process::id())
}

/// No process sleeps for exactly so long.
fn assert_no_job(seconds: &str) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(!line.starts_with(&format!("sleep {seconds}")), "{line}");
    }
}

async fn nothing_is_left_of_the_dropped() {
    let mut rig = Rig::start().await;
    let seconds = own("62");
    rig.link.send(Job::new(&format!("sleep {seconds}")).assign(1)).await;
    assert!(matches!(rig.link.next().await, Body::AttemptBegun(_)));
    let state = rig.directory.path().join("state");
    drop(rig.worker);
    let directories = ["run", "actions"].map(|name| state.join(name));
    tokio::task::spawn_blocking(move || wait_until_empty(&directories)).await.unwrap();
    assert_no_job(&seconds);
}

async fn shared_state() {
    let mut first = Rig::start_with(|config| config.exclusive = true).await;
    let state = first.directory.path().join("state");
    let mut second = Rig::start_with(|config| config.state.clone_from(&state)).await;
    let made = second.run(1, Job::new("echo x >/distbuild/out/f; echo two")).await;
    assert_eq!(text(&made.result.unwrap().stdout), "two\n");
    second.worker.shutdown().await;
    let made = first.run(1, Job::new("echo one")).await;
    assert_eq!(text(&made.result.unwrap().stdout), "one\n");
    let mut config = WorkerConfig::new(first.fake.address.clone(), "w2", state);
    config.exclusive = true;
    let error = within(Worker::start(config)).await.unwrap_err();
    assert!(matches!(error, WorkerError::StateInUse { .. }), "{error:?}");
    first.worker.shutdown().await;
}

async fn broken_helper() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = Address::Unix(directory.path().join("nobody"));
    let mut config = WorkerConfig::new(nobody, "w1", directory.path().join("state"));
    config.properties.insert("toolchain".to_owned(), "t".to_owned());
    config.helper_program = "/bin/false".into();
    let error = within(Worker::start(config.clone())).await.unwrap_err();
    assert!(matches!(error, WorkerError::HelperEnded(_)), "{error:?}");
    config.helper_program = directory.path().join("no program");
    let error = within(Worker::start(config)).await.unwrap_err();
    assert!(matches!(error, WorkerError::Helper { .. }), "{error:?}");
}

/// Kills the helper process that `victim` chooses, given the one that serves files.
async fn killed_helper(seconds: &str, victim: impl FnOnce(u32) -> u32) {
    let seconds = own(seconds);
    let mut rig = Rig::start().await;
    let state = rig.directory.path().join("state");
    rig.link.send(Job::new(&format!("sleep {seconds}")).assign(1)).await;
    assert!(matches!(rig.link.next().await, Body::AttemptBegun(_)));
    let victim = victim(helper_of(&state));
    kill(Pid::from_raw(victim.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let begin = Instant::now();
    let words = within(rig.worker.failed()).await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(words.ends_with("is gone"), "{words}");
    let (ended, _) = rig.link.end().await;
    assert_eq!((ended.attempt, ended.end()), (1, AttemptEnd::AttemptInfraError), "{ended:?}");
    rig.link.send(Job::new("true").assign(2)).await;
    let (ended, _) = rig.link.end().await;
    assert_eq!((ended.attempt, ended.end()), (2, AttemptEnd::AttemptRejected), "{ended:?}");
    let begin = Instant::now();
    rig.worker.shutdown().await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(is_empty(&state.join("run")) && is_empty(&state.join("actions")));
    assert_no_job(&seconds);
}

/// The process that serves the worker with this state directory: it has inherited a lock below it.
fn helper_of(state: &std::path::Path) -> u32 {
    let holds_lock = |process: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
        let mut links = descriptors.flatten().flat_map(|entry| fs::read_link(entry.path()));
        links.any(|link| link.starts_with(state))
    };
    children_of(std::process::id()).into_iter().find(holds_lock).unwrap()
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |process: &u32| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{parent}"))
    };
    processes.filter(is_child).collect()
}
