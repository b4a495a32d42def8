//! `distbuild explain`: why a job ran, or what stood for it.
//!
//! The coordinator wrote that down when it decided. It is asked, or, for embedded builds, what it left in the
//! cache directory is read; nothing runs for that.

use distbuild_coordinator::Archive;
use distbuild_proto::action::{DEP_NAME, SOURCE_NAME};
use distbuild_proto::digest::to_hex;
use distbuild_proto::wire::{self, Decision};
use serde_json::{Value, json};

use crate::build::console::visible;
use crate::cli::ExplainArgs;
use crate::exit::{Exit, Failure};
use crate::look::client;
use crate::output;
use crate::places::Cache;

/// Characters of a key that people are shown.
const SHOWN_KEY: usize = 16;

/// Explains.
///
/// # Errors
/// Nothing is known of the job, or the coordinator or its state cannot be reached.
pub(crate) async fn run(args: ExplainArgs) -> Result<Exit, Failure> {
    let json = args.json;
    let explanation = find(args).await?;
    if json {
        output::json(&as_json(&explanation));
    } else {
        lines(&explanation).iter().for_each(|line| output::line(visible(line)));
    }
    Ok(Exit::DONE)
}

async fn find(args: ExplainArgs) -> Result<wire::Explanation, Failure> {
    let (job, build_id) = (args.job, args.build.unwrap_or_default());
    if args.coordinator.is_some() {
        let mut builds = client(args.coordinator, &args.plaintext).await?;
        let answer = builds.explain(wire::ExplainRequest { job, build_id }).await;
        return match answer {
            Ok(found) => Ok(found.into_inner()),
            Err(status) if status.code() == tonic::Code::NotFound => {
                Err(Failure::usage(status.message()))
            }
            Err(status) => Err(Failure::of_status(&status)),
        };
    }
    let state = Cache::new(args.state)?.coordinator();
    let failed = |error: distbuild_coordinator::StateError| {
        Failure::usage(format!("{error}; for builds of a coordinator, give --coordinator"))
    };
    let archive = Archive::open(&state).map_err(failed)?;
    let found = archive.explanation(&job, &build_id).map_err(failed)?;
    found.ok_or_else(|| {
        let of = if build_id.is_empty() { "no build that is remembered" } else { "that build" };
        Failure::usage(format!("{of} had a job {job:?}, as far as {} tells", state.display()))
    })
}

/// What people read.
fn lines(explanation: &wire::Explanation) -> Vec<String> {
    let build = &explanation.build_id;
    let mut lines = vec![format!("{} in build {build}:", explanation.job_name)];
    let reused = explanation
        .result
        .as_ref()
        .map(|result| format!("run {} on worker {}", short(&result.action_key), result.worker));
    let reused = reused.unwrap_or_default();
    lines.push(match explanation.decision() {
        Decision::FoundByJob => {
            format!("cached: nothing that it declares has changed since {reused}")
        }
        Decision::FoundByAction => {
            format!("cut off: its commands and all their inputs are those of {reused}")
        }
        Decision::FoundByObservedInputs => {
            format!("cut off: nothing has changed of what {reused} looked at")
        }
        Decision::NotFound if explanation.compared.is_empty() => {
            "ran: its inputs are new, and no earlier run of its commands is known".to_owned()
        }
        Decision::NotFound => {
            "ran: its inputs are new, and something has changed of what each earlier run looked at"
                .to_owned()
        }
        Decision::NotCompared => {
            "ran: its inputs are new, and what commands look at was not compared \
             (--observed-inputs off, or nothing to look at)"
                .to_owned()
        }
        Decision::NotLookedUp => {
            "ran: no result was looked up (--no-cache, or \"cache\": false)".to_owned()
        }
        Decision::Unspecified => "decided in a way that this program does not know".to_owned(),
    });
    lines.extend(explanation.compared.iter().map(compared));
    if explanation.outputs_were_lost {
        lines.push("but its outputs were not whole any more, so it ran".to_owned());
    }
    lines
}

fn compared(run: &wire::ComparedRun) -> String {
    let key = short(&run.action_key);
    match &run.change {
        Some(change) => format!("  run {key}: {} {}", place(change), change.what),
        None if run.unusable.is_empty() => format!("  run {key}: all that it looked at holds"),
        None => format!("  run {key}: says nothing here: {}", run.unusable),
    }
}

/// The path as people know it: in the source tree, or in the outputs of a dependency.
fn place(change: &wire::ObservedChange) -> String {
    let path = String::from_utf8_lossy(&change.path);
    if path == SOURCE_NAME {
        return "the source tree".to_owned();
    }
    let below = |directory: &str| path.strip_prefix(directory)?.strip_prefix('/');
    if let Some(source) = below(SOURCE_NAME) {
        return source.to_owned();
    }
    match below(DEP_NAME) {
        Some(output) if !change.dependency.is_empty() => match output.split_once('/') {
            Some((_, file)) => format!("{file} of {:?}", change.dependency),
            None => format!("the output directory of {:?}", change.dependency),
        },
        _ => path.into_owned(),
    }
}

fn short(key: &[u8]) -> String {
    let mut key = to_hex(key);
    key.truncate(SHOWN_KEY);
    key
}

fn word(decision: Decision) -> &'static str {
    match decision {
        Decision::Unspecified => "unknown",
        Decision::FoundByJob => "found_by_job",
        Decision::FoundByAction => "found_by_action",
        Decision::FoundByObservedInputs => "found_by_observed_inputs",
        Decision::NotFound => "not_found",
        Decision::NotCompared => "not_compared",
        Decision::NotLookedUp => "not_looked_up",
    }
}

fn as_json(explanation: &wire::Explanation) -> Value {
    let compared = explanation.compared.iter().map(|run| {
        let change = run.change.as_ref().map(|change| {
            json!({ "path": String::from_utf8_lossy(&change.path), "what": change.what,
                    "dependency": Some(&change.dependency).filter(|name| !name.is_empty()) })
        });
        let unusable = Some(&run.unusable).filter(|why| !why.is_empty());
        json!({ "action": to_hex(&run.action_key), "change": change, "unusable": unusable })
    });
    let key = |key: &[u8]| (!key.is_empty()).then(|| to_hex(key));
    let result = explanation.result.as_ref();
    json!({
        "job": explanation.job_name, "id": to_hex(&explanation.job_id),
        "build_id": explanation.build_id, "time_ms": explanation.time_ms,
        "decision": word(explanation.decision()), "action": key(&explanation.action_key),
        "reused": result.and_then(|result| key(&result.action_key)),
        "reused_from_worker": result.map(|result| &result.worker),
        "outputs_were_lost": explanation.outputs_were_lost,
        "compared": compared.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, dependency: &str) -> wire::ObservedChange {
        wire::ObservedChange {
            path: path.to_owned().into(),
            what: "has other contents".to_owned(),
            dependency: dependency.to_owned(),
        }
    }

    #[test]
    fn places_are_named_as_people_know_them() {
        assert_eq!(place(&change("src/include/a.h", "")), "include/a.h");
        assert_eq!(place(&change("src", "")), "the source tree");
        assert_eq!(place(&change("dep/2/gen/a.h", "configure")), "gen/a.h of \"configure\"");
        assert_eq!(place(&change("dep/2", "configure")), "the output directory of \"configure\"");
        assert_eq!(place(&change("other", "")), "other");
    }

    #[test]
    fn a_job_that_ran_names_what_has_changed_for_each_earlier_run() {
        let run = |change, unusable: &str| wire::ComparedRun {
            action_key: vec![0xab; 32].into(),
            change,
            unusable: unusable.to_owned(),
        };
        let explanation = wire::Explanation {
            build_id: "b1".to_owned(),
            job_name: "cc a.c".to_owned(),
            decision: Decision::NotFound.into(),
            compared: vec![run(Some(change("src/a.h", "")), ""), run(None, "damaged")],
            ..Default::default()
        };
        let lines = lines(&explanation);
        assert_eq!(lines[0], "cc a.c in build b1:");
        assert!(lines[1].starts_with("ran: "), "{lines:?}");
        assert_eq!(lines[2], "  run abababababababab: a.h has other contents");
        assert_eq!(lines[3], "  run abababababababab: says nothing here: damaged");
        let json = as_json(&explanation);
        assert_eq!(json["compared"][0]["change"]["path"], "src/a.h");
        assert_eq!(json["decision"], "not_found");
    }
}
