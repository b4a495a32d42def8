//! How jobs live, end and are ended.

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use distbuild_worker::sandbox::{JobEnd, SandboxError};

use crate::Test;
use crate::daemon::{As, Daemon, PATIENCE, Running, processes_with, sh};

pub(crate) const TESTS: &[Test] = &[
    ("output_arrives_while_the_job_runs", output_arrives_while_the_job_runs),
    ("nothing_is_left_when_a_job_has_ended", nothing_is_left_when_a_job_has_ended),
    ("orphans_of_one_command_live_until_the_last", orphans_of_one_command_live_until_the_last),
    ("a_killed_job_is_gone_within_a_second", a_killed_job_is_gone_within_a_second),
    ("a_dropped_job_is_killed", a_dropped_job_is_killed),
    ("jobs_die_with_the_agent", jobs_die_with_the_agent),
    ("jobs_die_with_the_spawner", jobs_die_with_the_spawner),
    ("a_hundred_jobs_run_at_once", a_hundred_jobs_run_at_once),
    ("more_jobs_than_allowed_are_refused", more_jobs_than_allowed_are_refused),
];

/// Starts a tree of processes that have left their session and parent, and says so.
fn tree(argument: &str) -> String {
    format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sleep {argument} & setsid sh -c \
         'trap \"\" TERM HUP INT; sleep {argument} & wait' &) ; done; \
         while [ $(grep -lx sleep /proc/[0-9]*/comm 2>/dev/null | wc -l) -lt 20 ]; do :; done; echo up"
    )
}

fn output_arrives_while_the_job_runs(kind: As) {
    let daemon = Daemon::start(kind);
    let job =
        daemon.job(vec![sh("echo first; while [ ! -e /distbuild/src/go ]; do sleep 0.01; done")]);
    let mut running = job.start();
    assert_eq!(running.line(), "first\n");
    fs::write(job.dir("src").join("go"), "").unwrap();
    assert_eq!(running.ended().end, JobEnd::Exited { command: 0, code: 0 });
}

fn nothing_is_left_when_a_job_has_ended(kind: As) {
    let daemon = Daemon::start(kind);
    let argument = format!("1001.{}", daemon.child.id());
    let mut running = daemon.job(vec![sh(&tree(&argument))]).start();
    assert_eq!(running.ended().end, JobEnd::Exited { command: 0, code: 0 });
    assert_eq!(processes_with(&argument), 0);
    assert_eq!(running.line(), "up\n");
}

fn orphans_of_one_command_live_until_the_last(kind: As) {
    let daemon = Daemon::start(kind);
    let commands = vec![
        sh("(setsid sleep 1000 &); (setsid true &)"),
        sh(
            "until grep -qx sleep /proc/[0-9]*/comm; do :; done; echo alive; while grep -q '^State:.Z' /proc/[0-9]*/status; do :; done",
        ),
    ];
    assert_eq!(daemon.job(commands).run().succeeded(), "alive\n");
}

fn a_killed_job_is_gone_within_a_second(kind: As) {
    let daemon = Daemon::start(kind);
    let argument = format!("1002.{}", daemon.child.id());
    let script = format!("{}; sleep {argument}", tree(&argument));
    let mut running = daemon.job(vec![sh(&script)]).start();
    assert_eq!(running.line(), "up\n");
    assert!(processes_with(&argument) >= 20);
    let killed = Instant::now();
    running.job.kill().unwrap();
    assert_eq!(running.ended().end, JobEnd::Killed);
    assert!(killed.elapsed() < Duration::from_secs(1), "took {:?}", killed.elapsed());
    assert_eq!(processes_with(&argument), 0);
    running.job.kill().unwrap();
}

fn a_dropped_job_is_killed(kind: As) {
    let daemon = Daemon::start(kind);
    let mut running = daemon.job(vec![sh("echo up; sleep 1000")]).start();
    assert_eq!(running.line(), "up\n");
    let Running { job, stdout, .. } = running;
    drop(job);
    wait_for_end_of(stdout);
}

fn jobs_die_with_the_agent(kind: As) {
    let mut daemon = Daemon::start(kind);
    let mut running = daemon.job(vec![sh(&format!("{}; sleep 1000", tree("1000")))]).start();
    assert_eq!(running.line(), "up\n");
    daemon.spawner = None;
    assert!(daemon.child.wait().unwrap().success());
    assert!(matches!(running.try_ended(), Err(SandboxError::Lost)));
    wait_for_end_of(running.stdout);
}

fn jobs_die_with_the_spawner(kind: As) {
    let mut daemon = Daemon::start(kind);
    let job = daemon.job(vec![sh(&format!("{}; sleep 1000", tree("1000")))]);
    let mut running = job.start();
    assert_eq!(running.line(), "up\n");
    drop(job);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(matches!(running.try_ended(), Err(SandboxError::Lost)));
    wait_for_end_of(running.stdout);
    let (_, write) = nix::unistd::pipe().unwrap();
    let again = daemon.spawner.as_ref().unwrap().start(
        Default::default(),
        write.try_clone().unwrap(),
        write,
    );
    assert!(matches!(again, Err(SandboxError::Lost)));
}

/// A pipe ends when the last process that holds it has died.
fn wait_for_end_of(mut pipe: impl std::io::Read + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(pipe.read_to_end(&mut Vec::new())));
    receiver.recv_timeout(PATIENCE).expect("the job's processes die").unwrap();
}

fn a_hundred_jobs_run_at_once(kind: As) {
    let daemon = Daemon::start(kind);
    let script =
        "echo up; while [ ! -e /distbuild/src/go ]; do sleep 0.1; done; echo $0 > /distbuild/out/f";
    let jobs: Vec<_> = (0..100).map(|_| daemon.job(vec![sh(script)])).collect();
    let mut running: Vec<_> = jobs.iter().map(|job| job.start()).collect();
    for job in &mut running {
        assert_eq!(job.line(), "up\n");
    }
    for job in &jobs {
        fs::write(job.dir("src").join("go"), "").unwrap();
    }
    for (job, running) in jobs.iter().zip(running) {
        let outcome = running.finish();
        assert_eq!(outcome.ended.end, JobEnd::Exited { command: 0, code: 0 }, "{outcome:?}");
        assert!(job.dir("out").join("f").exists());
    }
}

fn more_jobs_than_allowed_are_refused(kind: As) {
    let daemon = Daemon::start_with(kind, |config, _| config.max_jobs = 1);
    let mut first = daemon.job(vec![sh("echo up; sleep 1000")]).start();
    assert_eq!(first.line(), "up\n");
    let end = daemon.sh("true").ended.end;
    assert!(matches!(&end, JobEnd::SetupFailed(reason) if reason.contains("1 jobs")), "{end:?}");
    first.job.kill().unwrap();
    assert_eq!(first.ended().end, JobEnd::Killed);
    daemon.sh("true").succeeded();
}
