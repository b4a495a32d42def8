//! When what happened to an execution: `ExecutedActionMetadata`, by the coordinator's clock.
//!
//! Workers say how long each part of a run took; their clocks are not compared with the coordinator's. So the
//! times are laid out between the assignment and now, in order, and never after now.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::google::protobuf::{Duration as ApiDuration, Timestamp};
use distbuild_proto::wire;

use super::messages::any;
use crate::event_log::unix_ms;

/// The times of an execution, in milliseconds since 1970.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    queued_ms: u64,
    worker: String,
    started_ms: Option<u64>,
    /// Once it has run.
    timings: Option<(wire::Timings, u64)>,
    completed_ms: Option<u64>,
}

impl Timeline {
    /// It waits from now on.
    pub(crate) fn queued() -> Self {
        Self {
            queued_ms: unix_ms(),
            worker: String::new(),
            started_ms: None,
            timings: None,
            completed_ms: None,
        }
    }

    /// A worker has it.
    pub(crate) fn started(&mut self, at_ms: u64, worker: String) {
        self.worker = worker;
        self.started_ms = Some(at_ms.max(self.queued_ms));
    }

    /// It has to run again.
    pub(crate) fn interrupted(&mut self) {
        self.started_ms = None;
        self.timings = None;
        self.worker.clear();
    }

    /// It has run.
    pub(crate) fn ran(&mut self, result: &wire::JobResult) {
        self.timings = result.timings.map(|timings| (timings, unix_ms()));
    }

    /// Its outputs are here.
    pub(crate) fn completed(&mut self) {
        self.completed_ms = Some(unix_ms());
    }

    /// What is known so far.
    pub(crate) fn metadata(&self) -> api::ExecutedActionMetadata {
        let mut metadata = api::ExecutedActionMetadata {
            worker: self.worker.clone(),
            queued_timestamp: timestamp(self.queued_ms),
            ..Default::default()
        };
        let Some(started_ms) = self.started_ms else { return metadata };
        metadata.worker_start_timestamp = timestamp(started_ms);
        metadata.input_fetch_start_timestamp = timestamp(started_ms);
        if let Some((timings, ended_ms)) = &self.timings {
            let after = |ms: u64, took_ms: u64| ms.saturating_add(took_ms).min(*ended_ms);
            let ready_ms = after(started_ms, timings.setup_ms);
            let ran_ms = after(ready_ms, timings.run_ms);
            metadata.input_fetch_completed_timestamp = timestamp(ready_ms);
            metadata.execution_start_timestamp = timestamp(ready_ms);
            metadata.execution_completed_timestamp = timestamp(ran_ms);
            metadata.output_upload_start_timestamp = timestamp(ran_ms);
            let virtual_ms = timings.run_ms.saturating_sub(timings.fetch_wait_ms);
            metadata.virtual_execution_duration = Some(duration(virtual_ms));
            metadata.auxiliary_metadata.push(any("distbuild.v1.Timings", timings));
            if let Some(completed_ms) = self.completed_ms {
                metadata.output_upload_completed_timestamp = timestamp(completed_ms.max(*ended_ms));
            }
        }
        if let Some(completed_ms) = self.completed_ms {
            let ended_ms = self.timings.as_ref().map_or(started_ms, |(_, ended_ms)| *ended_ms);
            metadata.worker_completed_timestamp = timestamp(completed_ms.max(ended_ms));
        }
        metadata
    }
}

fn timestamp(ms: u64) -> Option<Timestamp> {
    let (seconds, nanos) = ((ms / 1000) as i64, (ms % 1000) as i32 * 1_000_000);
    Some(Timestamp { seconds, nanos })
}

fn duration(ms: u64) -> ApiDuration {
    ApiDuration { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ordered_whatever_the_worker_says() {
        let mut timeline = Timeline::queued();
        timeline.started(0, "w".to_owned());
        let timings =
            wire::Timings { setup_ms: 3, run_ms: u64::MAX, fetch_wait_ms: 5, ..Default::default() };
        let result = wire::JobResult { timings: Some(timings), ..Default::default() };
        timeline.ran(&result);
        timeline.completed();
        let metadata = timeline.metadata();
        let times = [
            metadata.queued_timestamp,
            metadata.worker_start_timestamp,
            metadata.input_fetch_start_timestamp,
            metadata.input_fetch_completed_timestamp,
            metadata.execution_start_timestamp,
            metadata.execution_completed_timestamp,
            metadata.output_upload_start_timestamp,
            metadata.output_upload_completed_timestamp,
            metadata.worker_completed_timestamp,
        ];
        let times = times.map(|time| time.map(|time| (time.seconds, time.nanos)).unwrap());
        assert!(times.is_sorted(), "{times:?}");
        assert_eq!(metadata.worker, "w");
    }
}
