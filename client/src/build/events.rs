//! The event file: one JSON object a line, as things happen.
//!
//! Lines are written in the order in which the coordinator numbers them. When the file can no longer
//! be written the build goes on without it, but does not end well. A pipe whose reader has left is no trouble.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use distbuild_proto::Digest;
use distbuild_proto::digest::to_hex;
use distbuild_proto::wire::build_event::Body;
use distbuild_proto::wire::{self, BuildEvent, JobResult};
use serde_json::{Map, Value, json};

use super::record::{Record, result_word, succeeded, word};
use crate::output::is_unwanted;

/// Where events are written, if anywhere.
#[derive(Debug)]
pub(crate) struct EventFile {
    file: Option<BufWriter<File>>,
    path: PathBuf,
    trouble: Option<std::io::Error>,
}

impl EventFile {
    /// Begins a file, in place of one that was there; writes nowhere without a path. Blocks, for a
    /// named pipe until somebody reads.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(crate) fn create(path: Option<&Path>) -> std::io::Result<Self> {
        let file = path.map(File::create).transpose()?.map(BufWriter::new);
        Ok(Self { file, path: path.map(Path::to_owned).unwrap_or_default(), trouble: None })
    }

    /// Writes an event that the record has taken in.
    pub(crate) fn write(&mut self, event: &BuildEvent, record: &Record) {
        let Some(file) = &mut self.file else { return };
        let Some(line) = line(event, record) else { return };
        let written = serde_json::to_writer(&mut *file, &line)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"));
        self.check(written);
    }

    /// Brings what was written to whoever reads along.
    pub(crate) fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let flushed = file.flush();
            self.check(flushed);
        }
    }

    /// Why events are no longer written, once.
    pub(crate) fn take_trouble(&mut self) -> Option<String> {
        let error = self.trouble.take()?;
        Some(format!("failed to write the events to {}: {error}", self.path.display()))
    }

    fn check(&mut self, written: std::io::Result<()>) {
        let Err(error) = written else { return };
        if let Some(file) = self.file.take() {
            // What is left in the buffer would only fail again.
            drop(file.into_parts());
        }
        if !is_unwanted(&error) {
            self.trouble = Some(error);
        }
    }
}

fn line(event: &BuildEvent, record: &Record) -> Option<Value> {
    let (kind, mut fields) = fields(event.body.as_ref()?, record);
    fields.insert("seq".to_owned(), event.seq.into());
    fields.insert("time_ms".to_owned(), event.time_ms.into());
    fields.insert("type".to_owned(), kind.into());
    Some(Value::Object(fields))
}

fn fields(body: &Body, record: &Record) -> (&'static str, Map<String, Value>) {
    let of_job = |job: u32, fields: Value| {
        let mut all = object(fields);
        all.insert("job".to_owned(), record.plan().name(job).into());
        all.insert("id".to_owned(), record.id(job).into());
        all
    };
    match body {
        Body::BuildStarted(started) => {
            let jobs = record.plan().len();
            ("build_started", object(json!({ "build_id": started.build_id, "jobs": jobs })))
        }
        Body::JobQueued(queued) => ("job_queued", of_job(queued.job, json!({}))),
        Body::JobWaiting(waiting) => {
            ("job_waiting", of_job(waiting.job, json!({ "reason": waiting.reason })))
        }
        Body::AttemptStarted(started) => {
            let fields = json!({ "number": started.number, "worker": started.worker });
            ("attempt_started", of_job(started.job, fields))
        }
        Body::Output(piece) => {
            let stream = if piece.stderr { "stderr" } else { "stdout" };
            let data = STANDARD.encode(&piece.data);
            let fields = json!({ "attempt": piece.attempt, "stream": stream, "data": data });
            ("output", of_job(piece.job, fields))
        }
        Body::AttemptFinished(finished) => {
            ("attempt_finished", of_job(finished.job, attempt_finished(finished)))
        }
        Body::JobFinished(finished) => {
            ("job_finished", of_job(finished.job, job_finished(finished, record)))
        }
        Body::OutputsRemade(remade) => {
            let result = result_word(remade.outcome());
            let fields = json!({ "result": result, "reason": remade.reason });
            ("outputs_remade", of_job(remade.job, fields))
        }
        Body::BuildFinished(finished) => {
            let bytes = finished.bytes.unwrap_or_default();
            let fields = json!({
                "outcome": result_word(finished.outcome()),
                "bytes": { "opened": bytes.opened, "from_peers": bytes.from_peers,
                           "from_backing_store": bytes.from_backing_store,
                           "prefetched": prefetched(bytes.prefetched) },
            });
            ("build_finished", object(fields))
        }
    }
}

fn attempt_finished(finished: &wire::AttemptFinished) -> Value {
    let timings = finished.timings.unwrap_or_default();
    json!({
        "number": finished.number, "worker": finished.worker,
        "result": result_word(finished.outcome()), "exit_code": finished.exit_code,
        "reason": finished.reason, "files_opened": finished.files_opened,
        "queued_ms": timings.queued_ms, "setup_ms": timings.setup_ms, "run_ms": timings.run_ms,
        "collect_ms": timings.collect_ms, "fetch_wait_ms": timings.fetch_wait_ms,
        "prefetched": prefetched(finished.prefetched),
    })
}

/// Bytes that were fetched before they were needed.
fn prefetched(bytes: Option<wire::PrefetchBytes>) -> Value {
    let bytes = bytes.unwrap_or_default();
    json!({ "hit": bytes.hit, "late": bytes.late, "wasted": bytes.wasted })
}

fn job_finished(finished: &wire::JobFinished, record: &Record) -> Value {
    let outcome = finished.outcome();
    let mut fields = object(json!({
        "result": result_word(outcome), "reason": finished.reason, "joined": finished.joined,
    }));
    if succeeded(outcome) {
        fields.insert("how".to_owned(), word(outcome).into());
    }
    if !finished.stood_action_key.is_empty() {
        fields.insert("stood".to_owned(), to_hex(&finished.stood_action_key).into());
    }
    if outcome == wire::Outcome::Skipped {
        fields.insert("dependency".to_owned(), record.plan().name(finished.dependency).into());
    }
    if let Some(result) = &finished.result {
        fields.extend(object(job_result(result)));
    }
    Value::Object(fields)
}

fn job_result(result: &JobResult) -> Value {
    let mut fields = object(json!({
        "exit_code": result.exit_code, "signal": result.signal, "worker": result.worker,
    }));
    if !result.action_key.is_empty() {
        fields.insert("action".to_owned(), to_hex(&result.action_key).into());
    }
    if let Some(failed) = result.failed_command {
        fields.insert("failed_command".to_owned(), failed.into());
    }
    let digest = |digest: &Option<wire::Digest>| Digest::try_from(digest.as_ref()?).ok();
    if let Some(root) = digest(&result.output_root) {
        fields.insert("output_root".to_owned(), root.to_string().into());
    }
    for (name, content) in [("stdout", &result.stdout), ("stderr", &result.stderr)] {
        let Some(content) = content else { continue };
        match digest(&content.blob) {
            Some(blob) => fields.insert(format!("{name}_blob"), blob.to_string().into()),
            None => fields.insert(name.to_owned(), STANDARD.encode(&content.inline).into()),
        };
    }
    Value::Object(fields)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use distbuild_proto::graph::Graph;

    use super::*;
    use crate::build::plan::Plan;

    #[test]
    fn an_event_is_a_line_with_its_number_time_type_and_job() {
        let file = json!({ "version": 1, "jobs": [{ "name": "a", "cmds": [{ "exec": ["/x"] }] }] });
        let graph = Graph::from_json(file.to_string().as_bytes()).unwrap();
        let record = Record::new(Arc::new(Plan::new(graph, &[]).unwrap()));
        let piece = wire::OutputPiece { job: 0, attempt: 1, stderr: true, data: "hi\n".into() };
        let body = Some(Body::Output(piece));
        let event = BuildEvent { seq: 7, time_ms: 1000, body };
        assert_eq!(
            line(&event, &record).unwrap(),
            json!({ "seq": 7, "time_ms": 1000, "type": "output", "job": "a", "id": "", "attempt": 1,
                    "stream": "stderr", "data": "aGkK" })
        );
    }

    #[test]
    fn a_full_disk_is_told_once() {
        let mut events = EventFile::create(Some(Path::new("/dev/full"))).unwrap();
        let graph = Graph::from_json(br#"{ "version": 1, "jobs": [] }"#).unwrap();
        let record = Record::new(Arc::new(Plan::new(graph, &[]).unwrap()));
        let body = Some(Body::BuildStarted(wire::BuildStarted::default()));
        events.write(&BuildEvent { seq: 1, time_ms: 0, body }, &record);
        events.flush();
        let trouble = events.take_trouble().unwrap();
        assert!(trouble.contains("/dev/full") && trouble.contains("No space"), "{trouble}");
        events.flush();
        assert!(events.take_trouble().is_none());
    }
}
