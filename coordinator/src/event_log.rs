//! The events of one build on their way to its client.
//!
//! The core appends and never waits; the client's stream takes what is there. What a slow client
//! leaves here is bounded: beyond [`MAX_PENDING_OUTPUT_BYTES`] the live pieces of stdout and stderr
//! are dropped, since the whole text comes once more with the job's result. All other events are
//! few: a bounded number a job.
//!
//! For a client that may come back, what was sent is kept until it says that it has taken it in; a new stream goes on
//! where the client stands. So many events wait for that at most; the next ones are sent later.

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
    /// Sent, and not known to have been taken in; only if the client may come back.
    sent: VecDeque<wire::BuildEvent>,
    /// Events that may be in `sent`; none are kept for a client that does not come back.
    max_sent: Option<usize>,
    last_seq: u64,
    /// Who reads now. An earlier reader gets nothing more.
    reader: Reader,
    closed: bool,
    /// The coordinator goes away; the build does not end.
    going_away: bool,
}

/// One stream to the client, of those that follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reader(u64);

/// The coordinator goes away while the build runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub(crate) struct GoingAway;

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl EventLog {
    /// A log for a client that may come back, and that has taken in the events up to `seq`.
    pub(crate) fn resumable(seq: u64, max_sent: usize) -> Self {
        let log = Self::default();
        {
            let mut state = log.shared.state.lock();
            (state.last_seq, state.max_sent) = (seq, Some(max_sent.max(EVENTS_PER_MESSAGE)));
        }
        log
    }

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
        self.shared.grown.notify_waiters();
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.grown.notify_waiters();
    }

    /// Whoever reads is told that the coordinator goes away.
    pub(crate) fn go_away(&self) {
        self.shared.state.lock().going_away = true;
        self.shared.grown.notify_waiters();
    }

    /// The client has taken in the events up to this one.
    pub(crate) fn heard(&self, seq: u64) {
        let mut state = self.shared.state.lock();
        while state.sent.front().is_some_and(|event| event.seq <= seq) {
            state.sent.pop_front();
        }
        drop(state);
        self.shared.grown.notify_waiters();
    }

    /// Whether the client has taken in everything, and nothing more comes.
    pub(crate) fn is_heard_out(&self) -> bool {
        let state = self.shared.state.lock();
        state.closed && state.pending.is_empty() && state.sent.is_empty()
    }

    /// A new reader, who goes on after `seq`. None if the events after it are not all at hand.
    pub(crate) fn attach(&self, seq: u64) -> Option<Reader> {
        let mut state = self.shared.state.lock();
        let first = state.sent.front().or(state.pending.front());
        let first = first.map_or(state.last_seq + 1, |event| event.seq);
        if state.max_sent.is_none() || seq + 1 < first || seq > state.last_seq {
            return None;
        }
        while let Some(event) = state.sent.pop_back() {
            if event.seq <= seq {
                break;
            }
            state.pending_output_bytes += output_bytes(&event);
            state.pending.push_front(event);
        }
        state.sent.clear();
        state.reader.0 += 1;
        let reader = state.reader;
        drop(state);
        self.shared.grown.notify_waiters();
        Some(reader)
    }

    /// The next events for the first reader; see [`next_for`](Self::next_for).
    pub(crate) async fn next(&self) -> Option<wire::BuildEvents> {
        self.next_for(Reader::default()).await.ok().flatten()
    }

    /// The next events, as soon as there are some; none once the log is closed and empty, or another reads.
    ///
    /// # Errors
    /// The coordinator goes away.
    pub(crate) async fn next_for(
        &self,
        reader: Reader,
    ) -> Result<Option<wire::BuildEvents>, GoingAway> {
        loop {
            let mut grown = std::pin::pin!(self.shared.grown.notified());
            grown.as_mut().enable();
            {
                let mut state = self.shared.state.lock();
                if state.reader != reader {
                    return Ok(None);
                }
                if state.going_away {
                    return Err(GoingAway);
                }
                let full = state.max_sent.is_some_and(|most| state.sent.len() >= most);
                if !state.pending.is_empty() && !full {
                    return Ok(Some(take(&mut state)));
                }
                if state.closed && state.pending.is_empty() {
                    return Ok(None);
                }
            }
            grown.await;
        }
    }
}

fn output_bytes(event: &wire::BuildEvent) -> usize {
    match &event.body {
        Some(wire::build_event::Body::Output(piece)) => piece.data.len(),
        _ => 0,
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
        if state.max_sent.is_some() {
            state.sent.push_back(event.clone());
        }
        events.push(event);
    }
    wire::BuildEvents { events }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
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

    fn seqs(events: wire::BuildEvents) -> Vec<u64> {
        events.events.into_iter().map(|event| event.seq).collect()
    }

    #[tokio::test]
    async fn a_new_reader_gets_what_the_client_has_not_taken_in_and_the_old_one_nothing() {
        let log = EventLog::resumable(10, 1000);
        (0..6).for_each(|job| log.append(queued(job)));
        let first = Reader::default();
        assert_eq!(seqs(log.next_for(first).await.unwrap().unwrap()), [11, 12, 13, 14, 15, 16]);
        log.heard(12);
        assert_eq!(log.attach(11), None, "that is forgotten already");
        assert_eq!(log.attach(17), None, "there is no such event");
        log.append(queued(6));
        let second = log.attach(14).unwrap();
        assert_eq!(log.next_for(first).await, Ok(None));
        assert_eq!(seqs(log.next_for(second).await.unwrap().unwrap()), [15, 16, 17]);
        log.close();
        assert!(!log.is_heard_out());
        log.heard(17);
        assert!(log.is_heard_out());
    }

    #[tokio::test]
    async fn no_more_is_sent_than_may_be_unheard() {
        let log = EventLog::resumable(0, EVENTS_PER_MESSAGE);
        (0..2 * EVENTS_PER_MESSAGE as u32).for_each(|job| log.append(queued(job)));
        let reader = Reader::default();
        let sent = log.next_for(reader).await.unwrap().unwrap();
        assert_eq!(sent.events.len(), EVENTS_PER_MESSAGE);
        assert!(log.next_for(reader).now_or_never().is_none());
        log.heard(1);
        assert!(log.next_for(reader).now_or_never().is_some());
    }

    #[tokio::test]
    async fn readers_are_told_that_the_coordinator_goes_away() {
        let log = EventLog::resumable(0, 1000);
        log.append(queued(1));
        log.go_away();
        assert_eq!(log.next_for(Reader::default()).await, Err(GoingAway));
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
