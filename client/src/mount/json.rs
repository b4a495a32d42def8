//! `result.json` and `summary.json`: what is recorded, for machines.

use bytes::Bytes;
use distbuild_proto::digest::to_hex;
use distbuild_proto::{Digest, wire};
use serde_json::{Value, json};

use crate::look::build_json;

/// A JSON file.
pub(super) fn text(value: &Value) -> Bytes {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into()
}

/// A job's result.
pub(super) fn result(named: &wire::NamedResult, result: &wire::JobResult) -> Value {
    let timings = result.timings.unwrap_or_default();
    json!({
        "id": to_hex(&named.job_id), "name": named.name,
        "exit_code": result.exit_code, "signal": result.signal,
        "failed_command": result.failed_command, "worker": result.worker,
        "finished_ms": result.finished_ms, "action_key": to_hex(&result.action_key),
        "output_root": digest(result.output_root.as_ref()),
        "input_root": digest(named.input_root.as_ref()),
        "stdout": content(result.stdout.as_ref()), "stderr": content(result.stderr.as_ref()),
        "timings": {
            "queued_ms": timings.queued_ms, "setup_ms": timings.setup_ms,
            "run_ms": timings.run_ms, "collect_ms": timings.collect_ms,
            "fetch_wait_ms": timings.fetch_wait_ms,
        },
    })
}

/// A build, with the ids of all its jobs.
pub(super) fn build(build: &wire::FinishedBuild) -> Value {
    let nothing = wire::BuildSummary::default();
    let mut value = build_json(build.summary.as_ref().unwrap_or(&nothing));
    value["job_ids"] = build.job_ids.iter().map(|id| to_hex(id)).collect();
    value
}

fn digest(digest: Option<&wire::Digest>) -> Value {
    let Some(Ok(digest)) = digest.map(Digest::try_from) else { return Value::Null };
    json!({ "function": digest.function().name(), "hash": digest.hex(),
            "size_bytes": digest.size_bytes() })
}

fn content(content: Option<&wire::Content>) -> Value {
    let Some(content) = content else { return json!({ "size_bytes": 0 }) };
    match &content.blob {
        Some(blob) => digest(Some(blob)),
        None => json!({ "size_bytes": content.inline.len() }),
    }
}
