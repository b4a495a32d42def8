//! The summary: one JSON object about a build, whole or not there.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use distbuild_proto::digest::to_hex;
use distbuild_proto::wire::{Outcome, PrefetchBytes};
use serde::Serialize;

use super::record::{Attempt, Record, result_word};

/// The object, field by field as documented.
#[derive(Debug, Serialize)]
pub(crate) struct Summary<'a> {
    outcome: &'static str,
    build_id: &'a str,
    wall_ms: u64,
    jobs: Jobs,
    bytes: Bytes,
    stood: Vec<StoodLine<'a>>,
    attempts: Vec<AttemptLine<'a>>,
}

/// A job for which the run of another action stood: nothing has changed of what that looked at.
#[derive(Debug, Serialize)]
struct StoodLine<'a> {
    job: &'a str,
    id: &'a str,
    /// The key of that action, which names the record.
    action: String,
}

#[derive(Debug, Serialize)]
struct Jobs {
    total: u64,
    executed: u64,
    cached: u64,
    cut_off: u64,
    failed: u64,
    timed_out: u64,
    skipped: u64,
    cancelled: u64,
    infra_error: u64,
    no_worker: u64,
}

/// Bytes that moved.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Bytes {
    /// Distinct bytes of all declared source inputs.
    pub(crate) declared: u64,
    /// Distinct bytes of the source files that commands looked up with success.
    pub(crate) opened: u64,
    /// Bytes of blob contents that left the client, all copies counted.
    pub(crate) sent_by_client: u64,
    /// Bytes that workers fetched from each other.
    pub(crate) from_peers: u64,
    /// Bytes that workers fetched from a backing store.
    pub(crate) from_backing_store: u64,
    /// Bytes of outputs that reached the client.
    pub(crate) outputs_received: u64,
    /// Bytes of files that workers fetched before they were needed.
    #[serde(flatten)]
    pub(crate) prefetched: Prefetched,
}

/// Bytes of files that were fetched before they were needed, by what became of them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Prefetched {
    /// There before a command looked them up.
    pub(crate) prefetch_hit: u64,
    /// Needed while they were on their way.
    pub(crate) prefetch_late: u64,
    /// Never looked up.
    pub(crate) prefetch_wasted: u64,
}

impl From<PrefetchBytes> for Prefetched {
    fn from(bytes: PrefetchBytes) -> Self {
        Self { prefetch_hit: bytes.hit, prefetch_late: bytes.late, prefetch_wasted: bytes.wasted }
    }
}

#[derive(Debug, Serialize)]
struct AttemptLine<'a> {
    job: &'a str,
    id: &'a str,
    worker: &'a str,
    number: u32,
    result: &'static str,
    exit_code: i32,
    queued_ms: u64,
    setup_ms: u64,
    run_ms: u64,
    collect_ms: u64,
    fetch_wait_ms: u64,
    files_opened: u32,
    #[serde(flatten)]
    prefetched: Prefetched,
}

impl<'a> Summary<'a> {
    /// The summary of a build that is over.
    pub(crate) fn new(record: &'a Record, outcome: Outcome, wall_ms: u64, bytes: Bytes) -> Self {
        let jobs = Jobs {
            total: record.plan().len() as u64,
            executed: record.count(Outcome::Executed),
            cached: record.count(Outcome::Cached),
            cut_off: record.count(Outcome::CutOff),
            failed: record.count(Outcome::Failed),
            timed_out: record.count(Outcome::TimedOut),
            skipped: record.count(Outcome::Skipped),
            cancelled: record.count(Outcome::Cancelled),
            infra_error: record.count(Outcome::InfraError),
            no_worker: record.count(Outcome::NoWorker),
        };
        let attempts = record.attempts.iter().map(|attempt| line(record, attempt)).collect();
        let stood = record.stood.iter().map(|(job, action)| StoodLine {
            job: record.plan().name(*job),
            id: record.id(*job),
            action: to_hex(action),
        });
        let (outcome, stood) = (result_word(outcome), stood.collect());
        Self { outcome, build_id: &record.build_id, wall_ms, jobs, bytes, stood, attempts }
    }

    /// The text of the object.
    ///
    /// # Errors
    /// None that is known.
    pub(crate) fn to_text(&self) -> std::io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// Writes a text to a file, in place of what was there; into what is not a file of its own, like a pipe,
/// a device or a link, it is written as it stands. Blocks, for a named pipe until somebody reads.
///
/// # Errors
/// The directory or the file cannot be written to.
pub(crate) fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    if std::fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        let file = File::options().write(true).create(true).truncate(true).open(path);
        return file.and_then(|mut file| file.write_all(text));
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.tmp", std::process::id()));
    let draft = std::path::PathBuf::from(draft);
    let written = File::create(&draft)
        .and_then(|mut file| file.write_all(text))
        .and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written
}

fn line<'a>(record: &'a Record, attempt: &'a Attempt) -> AttemptLine<'a> {
    let timings = &attempt.timings;
    AttemptLine {
        job: record.plan().name(attempt.job),
        id: record.id(attempt.job),
        worker: &attempt.worker,
        number: attempt.number,
        result: result_word(attempt.outcome),
        exit_code: attempt.exit_code,
        queued_ms: timings.queued_ms,
        setup_ms: timings.setup_ms,
        run_ms: timings.run_ms,
        collect_ms: timings.collect_ms,
        fetch_wait_ms: timings.fetch_wait_ms,
        files_opened: attempt.files_opened,
        prefetched: attempt.prefetched.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use distbuild_proto::graph::Graph;
    use distbuild_proto::wire;
    use distbuild_proto::wire::build_event::Body;
    use serde_json::json;

    use super::*;
    use crate::build::plan::Plan;

    fn record() -> Record {
        let job = |name: &str| json!({ "name": name, "cmds": [{ "exec": ["/bin/true"] }] });
        let file = json!({ "version": 1, "jobs": [job("a"), job("b"), job("c")] });
        let graph = Graph::from_json(file.to_string().as_bytes()).unwrap();
        let mut record = Record::new(Arc::new(Plan::new(graph, &[]).unwrap()));
        let ids = (0..3).flat_map(|id| [id; 20]).collect();
        record.apply(&Body::BuildStarted(wire::BuildStarted {
            build_id: "b1".to_owned(),
            lend_secret: bytes::Bytes::new(),
            job_ids: ids,
        }));
        record
    }

    fn attempt(number: u32, outcome: Outcome) -> Body {
        Body::AttemptFinished(wire::AttemptFinished {
            job: 1,
            number,
            worker: "w1".to_owned(),
            outcome: outcome.into(),
            exit_code: 0,
            reason: String::new(),
            timings: Some(wire::Timings { queued_ms: 1, run_ms: 240, ..Default::default() }),
            files_opened: 41,
            prefetched: Some(wire::PrefetchBytes { hit: 4, late: 2, wasted: 1 }),
        })
    }

    fn finished(job: u32, outcome: Outcome) -> Body {
        Body::JobFinished(wire::JobFinished { job, outcome: outcome.into(), ..Default::default() })
    }

    #[test]
    fn the_object_has_the_documented_fields() {
        let mut record = record();
        record.apply(&attempt(1, Outcome::InfraError));
        record.apply(&attempt(2, Outcome::Executed));
        record.apply(&finished(0, Outcome::Cached));
        record.apply(&finished(1, Outcome::Executed));
        record.apply(&Body::JobFinished(wire::JobFinished {
            job: 2,
            outcome: Outcome::CutOff.into(),
            stood_action_key: vec![0xab; 32].into(),
            ..Default::default()
        }));
        let bytes = Bytes { declared: 7, opened: 3, sent_by_client: 3, ..Bytes::default() };
        let bytes =
            Bytes { prefetched: Prefetched { prefetch_hit: 9, ..Default::default() }, ..bytes };
        let summary = Summary::new(&record, Outcome::Executed, 812, bytes);
        let id = "01".repeat(20);
        let attempt = |number, result| {
            json!({ "job": "b", "id": id, "worker": "w1", "number": number, "result": result,
                    "exit_code": 0, "queued_ms": 1, "setup_ms": 0, "run_ms": 240, "collect_ms": 0,
                    "fetch_wait_ms": 0, "files_opened": 41, "prefetch_hit": 4, "prefetch_late": 2,
                    "prefetch_wasted": 1 })
        };
        assert_eq!(
            serde_json::to_value(&summary).unwrap(),
            json!({ "outcome": "succeeded", "build_id": "b1", "wall_ms": 812,
                "jobs": { "total": 3, "executed": 1, "cached": 1, "cut_off": 1, "failed": 0,
                          "timed_out": 0, "skipped": 0, "cancelled": 0, "infra_error": 0, "no_worker": 0 },
                "bytes": { "declared": 7, "opened": 3, "sent_by_client": 3, "from_peers": 0,
                           "from_backing_store": 0, "outputs_received": 0, "prefetch_hit": 9,
                           "prefetch_late": 0, "prefetch_wasted": 0 },
                "stood": [{ "job": "c", "id": "02".repeat(20), "action": "ab".repeat(32) }],
                "attempts": [attempt(1, "infra_error"), attempt(2, "succeeded")] })
        );
    }

    #[test]
    fn jobs_that_were_not_heard_of_again_are_counted() {
        let mut record = record();
        record.apply(&finished(0, Outcome::Executed));
        record.apply(&Body::AttemptStarted(wire::AttemptStarted {
            job: 1,
            number: 1,
            worker: "w1".to_owned(),
        }));
        record.close(Outcome::Cancelled);
        let summary = Summary::new(&record, Outcome::Cancelled, 1, Bytes::default());
        let value = serde_json::to_value(&summary).unwrap();
        assert_eq!(value["outcome"], "cancelled");
        assert_eq!(value["jobs"]["cancelled"], 2);
        assert_eq!(value["attempts"][0]["result"], "cancelled");
    }

    #[test]
    fn a_summary_replaces_the_one_before_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("summary.json");
        std::fs::write(&path, "old").unwrap();
        let record = record();
        let summary = Summary::new(&record, Outcome::Failed, 1, Bytes::default());
        write(&path, &summary.to_text().unwrap()).unwrap();
        let value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(value["outcome"], "failed");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        let error = write(&link, b"{}\n").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
