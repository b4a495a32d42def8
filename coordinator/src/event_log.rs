//! The events of one build on their way to its client.
//!
//! The core appends and never waits; the client's stream takes what is there. What a slow client
//! leaves here is bounded: beyond [`MAX_PENDING_OUTPUT_BYTES`] the live pieces of stdout and stderr
//! are dropped, since the whole text comes once more with the job's result. All other events are
//! few: a bounded number a job.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use distbuild_proto::wire;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Live output that waits for the client at most.
const MAX_PENDING_OUTPUT_BYTES: usize = 16 << 20;
/// Events in one message to the client.
const EVENTS_PER_MESSAGE: usize = 512;
/// Contents in one message to the client, about.
const BYTES_PER_MESSAGE: usize = 1 << 20;

/// The writing and the reading end; clones are the same log.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventLog {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct State {
    pending: VecDeque<wire::BuildEvent>,
    pending_output_bytes: usize,
    last_seq: u64,
    closed: bool,
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl EventLog {
    /// Adds an event, numbers it and dates it.
    pub(crate) fn append(&self, body: wire::build_event::Body) {
        let mut state = self.shared.state.lock();
        if state.closed {
            return;
        }
        if let wire::build_event::Body::Output(piece) = &body {
            if state.pending_output_bytes + piece.data.len() > MAX_PENDING_OUTPUT_BYTES {
                return;
            }
            state.pending_output_bytes += piece.data.len();
        }
        state.last_seq += 1;
        let seq = state.last_seq;
        state.pending.push_back(wire::BuildEvent { seq, time_ms: unix_ms(), body: Some(body) });
        drop(state);
        self.shared.grown.notify_one();
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.grown.notify_one();
    }

    /// The next events, as soon as there are some; none once the log is closed and empty. One reader.
    pub(crate) async fn next(&self) -> Option<wire::BuildEvents> {
        loop {
            {
                let mut state = self.shared.state.lock();
                if !state.pending.is_empty() {
                    return Some(take(&mut state));
                }
                if state.closed {
                    return None;
                }
            }
            self.shared.grown.notified().await;
        }
    }
}

fn take(state: &mut State) -> wire::BuildEvents {
    let mut events = Vec::new();
    let mut bytes = 0;
    while events.len() < EVENTS_PER_MESSAGE
        && bytes < BYTES_PER_MESSAGE
        && let Some(event) = state.pending.pop_front()
    {
        match &event.body {
            Some(wire::build_event::Body::Output(piece)) => {
                state.pending_output_bytes -= piece.data.len();
                bytes += piece.data.len();
            }
            Some(wire::build_event::Body::JobFinished(finished)) => {
                let inline = |content: &Option<wire::Content>| {
                    content.as_ref().map_or(0, |content| content.inline.len())
                };
                bytes += finished
                    .result
                    .as_ref()
                    .map_or(0, |result| inline(&result.stdout) + inline(&result.stderr));
            }
            _ => {}
        }
        events.push(event);
    }
    wire::BuildEvents { events }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::build_event::Body;

    fn queued(job: u32) -> Body {
        Body::JobQueued(wire::JobQueued { job })
    }

    #[tokio::test]
    async fn events_come_in_order_with_numbers_without_gaps() {
        let log = EventLog::default();
        for job in 0..1000 {
            log.append(queued(job));
        }
        log.close();
        let mut seqs = Vec::new();
        while let Some(events) = log.next().await {
            seqs.extend(events.events.into_iter().map(|event| event.seq));
        }
        assert_eq!(seqs, (1..=1000).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn output_beyond_the_bound_is_dropped_and_other_events_are_not() {
        let log = EventLog::default();
        let data = bytes::Bytes::from(vec![0; 1 << 20]);
        for _ in 0..40 {
            let data = data.clone();
            log.append(Body::Output(wire::OutputPiece { data, ..Default::default() }));
        }
        log.append(queued(1));
        log.close();
        let (mut outputs, mut others) = (0, 0);
        while let Some(events) = log.next().await {
            for event in events.events {
                match event.body {
                    Some(Body::Output(_)) => outputs += 1,
                    _ => others += 1,
                }
            }
        }
        assert_eq!((outputs, others), (16, 1));
    }
}
