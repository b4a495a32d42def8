//! Jobs and how they end.

use std::time::{Duration, Instant};

use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::wire::{AttemptEnd, to_worker};
use distbuild_proto::{AccessRecord, wire};
use libtest_mimic::Trial;

use crate::rig::{Job, Rig, dep, text};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_command_runs_and_reports_its_output", a_command_runs),
        trial("an_action_without_commands_succeeds_with_an_empty_tree", no_commands),
        trial("an_output_reaches_the_job_that_depends_on_it", outputs_reach_dependents),
        trial("a_failing_command_reports_its_code", failures),
        trial("a_time_out_keeps_what_was_written", time_out),
        trial("a_cancelled_job_is_dead_within_a_second", cancel),
        trial("outputs_that_cannot_be_stored_fail_the_job", special_outputs),
        trial("long_output_is_a_blob", long_output),
    ]
}

async fn a_command_runs() {
    let mut rig = Rig::start().await;
    rig.link.send(Job::new("echo OK; echo oops >/dev/stderr").assign(1)).await;
    let (ended, before) = rig.link.end().await;
    let live = before.iter().any(
        |body| matches!(body, Body::AttemptOutput(output) if !output.stderr && &output.data[..] == b"OK\n"),
    );
    assert!(live, "{before:?}");
    assert_eq!(ended.end(), AttemptEnd::AttemptSucceeded, "{ended:?}");
    let result = ended.result.unwrap();
    assert_eq!((result.exit_code, result.failed_command), (0, None));
    assert_eq!(text(&result.stdout), "OK\n");
    assert_eq!(text(&result.stderr), "oops\n");
    assert_eq!(result.worker, "w1");
    assert_eq!(result.action_key.len(), 32);
    assert!(AccessRecord::decode(&ended.access_record).unwrap().is_complete());
    rig.worker.shutdown().await;
}

async fn no_commands() {
    let mut rig = Rig::start().await;
    rig.link.send(Job::new("").assign_without_commands(1)).await;
    let (ended, _) = rig.link.end().await;
    assert_eq!(ended.end(), AttemptEnd::AttemptSucceeded, "{ended:?}");
    let nothing = distbuild_proto::DigestFunction::Blake3.digest(b"");
    assert_eq!(ended.result.unwrap().output_root, Some(nothing.into()));
    rig.worker.shutdown().await;
}

async fn outputs_reach_dependents() {
    let mut rig = Rig::start().await;
    let first = rig.run(1, Job::new("mkdir /distbuild/out/d && echo hi >/distbuild/out/d/f")).await;
    let root = first.result.unwrap().output_root;
    let digests: Vec<wire::Digest> = first
        .output_directories
        .iter()
        .map(|directory| distbuild_proto::DigestFunction::Blake3.digest(directory).into())
        .collect();
    assert_eq!((digests.len(), digests.last()), (2, root.as_ref()));
    let mut job = Job::new("cat /distbuild/dep/0/d/f; test ! -e /distbuild/dep/0/none");
    job.deps = vec![dep(&root)];
    let second = rig.run(2, job).await;
    let result = second.result.unwrap();
    assert_eq!(text(&result.stdout), "hi\n", "{}", text(&result.stderr));
    // Not a source, so not counted as opened.
    assert!(second.opened.is_empty());
    assert_eq!(second.files_opened, 1);
    let record = AccessRecord::decode(&second.access_record).unwrap();
    let path = distbuild_proto::RelPath::new(b"dep/0/none").unwrap();
    assert!(record.get(&path).is_some());

    let claim = |root| wire::TreeClaim { root, blobs: vec![] };
    let unknown = distbuild_proto::DigestFunction::Blake3.digest(b"unknown");
    let check = wire::CheckTrees {
        request: 9,
        claims: vec![claim(root), claim(Some(unknown.into()))],
        build_id: "later".to_owned(),
    };
    rig.link.send(to_worker::Body::CheckTrees(check)).await;
    let Body::TreesChecked(checked) = rig.link.next().await else { panic!("not checked") };
    assert_eq!((checked.request, &checked.complete[..]), (9, &[1, 0][..]));
    rig.worker.shutdown().await;
}

async fn failures() {
    let mut rig = Rig::start().await;
    let ended = rig.run(1, Job::new("echo why >&2; exit 7")).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptFailed);
    let result = ended.result.unwrap();
    assert_eq!((result.exit_code, result.failed_command), (7, Some(0)));
    assert_eq!(text(&result.stderr), "why\n");
    let ended = rig.run(2, Job::new("kill -9 $$")).await;
    assert_eq!(ended.result.unwrap().signal, 9);
    let ended = rig.run(3, Job::new("exec /no/such/program")).await;
    assert_eq!(ended.result.unwrap().exit_code, 127);
    rig.worker.shutdown().await;
}

async fn time_out() {
    let mut rig = Rig::start().await;
    let mut job = Job::new("echo begun; sleep 60 & wait");
    job.timeout = Duration::from_millis(500);
    let begin = Instant::now();
    let ended = rig.run(1, job).await;
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(ended.end(), AttemptEnd::AttemptTimedOut, "{ended:?}");
    let result = ended.result.unwrap();
    assert_eq!(text(&result.stdout), "begun\n");
    assert!(text(&result.stderr).contains("timed out"));
    rig.worker.shutdown().await;
}

async fn cancel() {
    let mut rig = Rig::start().await;
    rig.link.send(Job::new("trap '' TERM INT; sleep 60").assign(1)).await;
    assert!(matches!(rig.link.next().await, Body::AttemptBegun(_)));
    let begin = Instant::now();
    let cancel = wire::CancelAttempt { attempt: 1 };
    rig.link.send(to_worker::Body::CancelAttempt(cancel)).await;
    let (ended, _) = rig.link.end().await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_eq!(ended.end(), AttemptEnd::AttemptCancelled);
    rig.worker.shutdown().await;
}

async fn special_outputs() {
    let mut rig = Rig::start().await;
    let ended = rig.run(1, Job::new("mkfifo /distbuild/out/pipe")).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptFailed);
    let result = ended.result.unwrap();
    assert_ne!(result.exit_code, 0);
    assert!(text(&result.stderr).contains("pipe is neither a file"), "{result:?}");
    rig.worker.shutdown().await;
}

async fn long_output() {
    let mut rig = Rig::start_with(|config| {
        config.limits.inline_output_bytes = 1000;
        config.limits.max_output_bytes = 1_000_000;
    })
    .await;
    let ended = rig.run(1, Job::new("yes | head -c 100000")).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptSucceeded, "{ended:?}");
    let blob = ended.result.unwrap().stdout.unwrap().blob;
    let blob = distbuild_proto::Digest::try_from(blob).unwrap();
    assert_eq!(blob.size_bytes(), 100_000);
    assert!(rig.worker.store().contains(&blob));
    let ended = rig.run(2, Job::new("yes")).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptFailed);
    assert!(ended.reason.contains("more than 1000000 bytes"), "{}", ended.reason);
    rig.worker.shutdown().await;
}
