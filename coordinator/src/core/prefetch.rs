//! What a command will read, foreseen from its last run, and how much of that may come from the client.
//!
//! A prediction follows the assignment in a message of its own, a look-up of the database later: no start waits
//! for it. It names paths and no contents; the worker finds out what they are now.
//!
//! The client is spared: what it sends ahead and nobody looks up counts against the share [`WASTE_SHARE`] of what
//! the build has opened. Until an attempt has ended nobody knows, so what is on its way at once begins small
//! and grows by what turned out to be needed.

use distbuild_proto::wire::to_worker;
use distbuild_proto::{AccessRecord, Prediction, wire};
use distbuild_sched::AttemptId;

use super::{Core, Message};
use crate::event_log::unix_ms;
use crate::state::Looked;

/// The client sends ahead while no more than one byte in so many of those opened was sent in vain: 5 %.
const WASTE_SHARE: u64 = 20;
/// Bytes that a client may send ahead for attempts of which none has ended yet.
const FIRST_BYTES: u64 = 4 << 20;
/// Longest record that is kept whole; of a longer one, as much as serves to foresee.
const MAX_RECORD_BYTES: usize = 256 << 10;
/// Records of so many bytes together are checked where they are; it takes less than handing them over.
const FITTED_AT_ONCE_BYTES: usize = 8 << 10;

/// What is foreseen for an attempt.
pub(crate) struct Foreseen {
    attempt: AttemptId,
    prediction: wire::Prediction,
    /// Bytes of the files when they were looked up.
    file_bytes: u64,
}

/// What one build's client sends ahead of need.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// For attempts that run.
    granted: u64,
    needed: u64,
    wasted: u64,
}

impl Ledger {
    /// How much of `wanted` the client may send ahead for one more attempt; `opened` is what the build has
    /// looked up so far.
    fn grant(&mut self, wanted: u64, opened: u64) -> u64 {
        if self.wasted > opened / WASTE_SHARE {
            return 0;
        }
        let window = FIRST_BYTES.saturating_add(self.needed).saturating_sub(self.granted);
        let granted = wanted.min(window);
        self.granted += granted;
        granted
    }

    /// An attempt has ended: what became of its part.
    pub(super) fn settle(&mut self, granted: u64, became: wire::PrefetchBytes) {
        self.granted = self.granted.saturating_sub(granted);
        self.needed = self.needed.saturating_add(became.hit).saturating_add(became.late);
        self.wasted = self.wasted.saturating_add(became.wasted);
    }
}

impl Core {
    /// Looks up what the attempts that were assigned in this round will read.
    pub(super) fn send_predictions(&mut self) {
        if self.unforeseen.is_empty() {
            return;
        }
        let (attempts, commands): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unforeseen).into_iter().unzip();
        let state = self.shared.state.clone();
        self.spawn_message(async move {
            let records = state.newest_records(commands).await.unwrap_or_else(|error| {
                tracing::error!(%error, "failed to look access records up");
                Vec::new()
            });
            let decoding = tokio::task::spawn_blocking(move || {
                let records = attempts.into_iter().zip(records);
                records.filter_map(|(attempt, record)| foresee(attempt, &record?)).collect()
            });
            Message::Foreseen { predictions: decoding.await.unwrap_or_default() }
        });
    }

    /// Tells the workers.
    pub(super) fn foreseen(&mut self, predictions: Vec<Foreseen>) {
        for foreseen in predictions {
            let id = foreseen.attempt;
            let Some(attempt) = self.attempts.get_mut(&id) else { continue };
            let Some(build) = self.builds.get_mut(&attempt.job.build) else { continue };
            // A file may have grown a little.
            let wanted = foreseen.file_bytes.saturating_add(foreseen.file_bytes / 4);
            let client_bytes = build.sent_ahead.grant(wanted, build.bytes.opened);
            attempt.client_bytes = client_bytes;
            let prediction = Some(foreseen.prediction);
            let prefetch = wire::Prefetch { attempt: id.0, prediction, client_bytes };
            let session = attempt.session;
            self.send_to(session, to_worker::Body::Prefetch(prefetch));
        }
    }

    /// Remembers what a run without a result of its own looked at, in the background.
    pub(super) fn remember(&self, looked: Looked) {
        let state = self.shared.state.clone();
        tokio::spawn(async move {
            let looked = fitted(vec![looked]).await;
            let written =
                state.record_all(Vec::new(), Vec::new(), looked, Vec::new(), unix_ms()).await;
            if let Err(error) = written {
                tracing::warn!(%error, "failed to remember an access record");
            }
        });
    }
}

/// Records as they are kept: checked, and cut if they are long. One that cannot be read is left out.
pub(super) async fn fitted(looked: Vec<Looked>) -> Vec<Looked> {
    let bytes: usize = looked.iter().map(|looked| looked.record.len()).sum();
    let fit_all = || looked.into_iter().filter_map(fit).collect();
    match bytes <= FITTED_AT_ONCE_BYTES {
        true => fit_all(),
        false => tokio::task::spawn_blocking(fit_all).await.unwrap_or_default(),
    }
}

fn fit(mut looked: Looked) -> Option<Looked> {
    let record = AccessRecord::decode(&looked.record)
        .inspect_err(|error| tracing::warn!(%error, "a worker sent no usable access record"))
        .ok()?;
    looked.complete = record.is_complete();
    if looked.record.len() > MAX_RECORD_BYTES {
        looked.complete = false;
        looked.record = record.shortened(MAX_RECORD_BYTES).encode();
    }
    Some(looked)
}

/// A record that cannot be read foresees nothing.
fn foresee(attempt: AttemptId, record: &[u8]) -> Option<Foreseen> {
    let record = AccessRecord::decode(record).ok()?;
    let prediction = Prediction::of(&record);
    let file_bytes = record.looked_up_files().map(|(_, digest, _)| digest.size_bytes()).sum();
    let names_something = !prediction.files.is_empty();
    names_something.then(|| Foreseen { attempt, prediction: prediction.to_wire(), file_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn became(hit: u64, wasted: u64) -> wire::PrefetchBytes {
        wire::PrefetchBytes { hit, late: 0, wasted }
    }

    #[test]
    fn what_a_client_sends_ahead_begins_small_and_grows_by_what_was_needed() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.grant(FIRST_BYTES - 1, 0), FIRST_BYTES - 1);
        assert_eq!(ledger.grant(100, 0), 1, "the rest");
        assert_eq!(ledger.grant(100, 0), 0);
        ledger.settle(FIRST_BYTES - 1, became(1000, 0));
        ledger.settle(1, became(1, 0));
        assert_eq!(ledger.grant(u64::MAX, 0), FIRST_BYTES + 1001);
    }

    #[test]
    fn nothing_is_sent_ahead_while_more_than_a_twentieth_was_sent_in_vain() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.grant(200, 0), 200);
        ledger.settle(200, became(100, 100));
        assert_eq!(ledger.grant(10, 1999), 0);
        assert_eq!(ledger.grant(10, 2000), 10);
    }
}
