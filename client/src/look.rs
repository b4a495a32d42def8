//! `distbuild status`, `workers`, `cancel`: looking at a coordinator, and the one thing to steer.

use distbuild_proto::Address;
use distbuild_proto::transport::MAX_MESSAGE_BYTES;
use distbuild_proto::wire;
use distbuild_proto::wire::builds_client::BuildsClient;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::backend::dial;
use crate::build::console::visible;
use crate::build::record::result_word;
use crate::cli::{CancelArgs, LookArgs, PlaintextArgs};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::plaintext::Allowed;

/// Shows builds and queues.
///
/// # Errors
/// The coordinator is not reached.
pub(crate) async fn status(args: LookArgs) -> Result<Exit, Failure> {
    let mut builds = client(args.coordinator, &args.plaintext).await?;
    let status = builds.status(wire::StatusRequest {}).await;
    let status = status.map_err(|status| Failure::of_status(&status))?.into_inner();
    if args.json {
        output::json(&status_json(&status));
        return Ok(Exit::DONE);
    }
    output::line(format_args!(
        "{} jobs queued, {} running, {} waiting; {} workers",
        status.queued_jobs, status.running_jobs, status.waiting_jobs, status.workers
    ));
    for build in &status.builds {
        output::line(format_args!(
            "{}  {}/{} jobs  {}  {}",
            build.build_id,
            build.finished_jobs,
            build.total_jobs,
            visible(&build.user),
            visible(&build.title)
        ));
    }
    if status.stalls > 0 {
        output::line(format_args!(
            "{} jobs waited although a worker had room for them, which is a mistake of the scheduler; \
             the last: {}",
            status.stalls,
            visible(&status.last_stall)
        ));
    }
    Ok(Exit::DONE)
}

/// Shows the connected workers.
///
/// # Errors
/// The coordinator is not reached.
pub(crate) async fn workers(args: LookArgs) -> Result<Exit, Failure> {
    let mut builds = client(args.coordinator, &args.plaintext).await?;
    let answer = builds.list_workers(wire::ListWorkersRequest {}).await;
    let mut workers = answer.map_err(|status| Failure::of_status(&status))?.into_inner().workers;
    workers.sort_by(|a, b| a.name.cmp(&b.name));
    if args.json {
        output::json(&workers.iter().map(worker_json).collect());
        return Ok(Exit::DONE);
    }
    for worker in &workers {
        let mut properties: Vec<_> =
            worker.properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
        properties.sort();
        output::line(format_args!(
            "{}  {} running, {} cores, {}{}  {}",
            visible(&worker.name),
            worker.running_jobs,
            cores(worker),
            HumanBytes(worker.memory_bytes),
            if worker.draining { ", draining" } else { "" },
            visible(&properties.join(" "))
        ));
        worker.notes.iter().for_each(|note| output::line(format_args!("  {}", visible(note))));
    }
    Ok(Exit::DONE)
}

/// Cancels a build.
///
/// # Errors
/// No such build runs, or the coordinator is not reached.
pub(crate) async fn cancel(args: CancelArgs) -> Result<Exit, Failure> {
    let mut builds = client(args.coordinator, &args.plaintext).await?;
    match builds.cancel(wire::CancelRequest { build_id: args.build }).await {
        Ok(_) => Ok(Exit::DONE),
        Err(status) if status.code() == tonic::Code::NotFound => {
            Err(Failure::usage(status.message()))
        }
        Err(status) => Err(Failure::of_status(&status)),
    }
}

pub(crate) async fn client(
    address: Option<Address>,
    plaintext: &PlaintextArgs,
) -> Result<BuildsClient<Channel>, Failure> {
    let address = address.ok_or_else(|| {
        Failure::usage("which coordinator? Give --coordinator, or set DISTBUILD_COORDINATOR")
    })?;
    Allowed::from(plaintext).check(&address)?;
    let channel = dial(&address).await?;
    Ok(BuildsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

fn status_json(status: &wire::StatusResponse) -> Value {
    let builds: Vec<Value> = status.builds.iter().map(build_json).collect();
    let last_stall = Some(&status.last_stall).filter(|text| !text.is_empty());
    json!({
        "queued_jobs": status.queued_jobs, "running_jobs": status.running_jobs,
        "waiting_jobs": status.waiting_jobs, "workers": status.workers, "builds": builds,
        "stalls": status.stalls, "last_stall": last_stall,
    })
}

pub(crate) fn build_json(build: &wire::BuildSummary) -> Value {
    let outcome = build.finished.then(|| result_word(build.outcome()));
    json!({
        "build_id": build.build_id, "user": build.user, "title": build.title,
        "started_ms": build.started_ms, "total_jobs": build.total_jobs,
        "finished_jobs": build.finished_jobs, "finished": build.finished, "outcome": outcome,
    })
}

fn worker_json(worker: &wire::WorkerInfo) -> Value {
    let peer = Some(&worker.peer_address).filter(|address| !address.is_empty());
    json!({
        "name": worker.name, "properties": worker.properties, "cores": cores(worker),
        "memory_bytes": worker.memory_bytes, "running_jobs": worker.running_jobs,
        "peer_address": peer, "draining": worker.draining, "store_id": worker.store_id,
        "notes": worker.notes,
    })
}

fn cores(worker: &wire::WorkerInfo) -> f64 {
    f64::from(worker.milli_cores) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_the_documented_fields() {
        let worker = wire::WorkerInfo {
            name: "w1".to_owned(),
            properties: [("os".to_owned(), "linux".to_owned())].into(),
            milli_cores: 2500,
            memory_bytes: 7,
            running_jobs: 1,
            store_id: "s".to_owned(),
            notes: vec!["no passthrough".to_owned()],
            ..Default::default()
        };
        assert_eq!(
            worker_json(&worker),
            json!({ "name": "w1", "properties": { "os": "linux" }, "cores": 2.5, "memory_bytes": 7,
                    "running_jobs": 1, "peer_address": null, "draining": false, "store_id": "s",
                    "notes": ["no passthrough"] })
        );
    }
}
