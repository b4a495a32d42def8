//! What the file system says of the reads that wait for parts of a blob, for whoever brings the blob.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Reads that are remembered until somebody listens; of more, the first are forgotten, which costs
/// them nothing but their place in front.
const REMEMBERED: usize = 64;

/// The requests that somebody listens to, by number. Clones are one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demands {
    table: Arc<Mutex<HashMap<u64, Arc<Demand>>>>,
}

/// Listens to one request, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    demands: Demands,
    request: u64,
    demand: Arc<Demand>,
}

#[derive(Debug, Default)]
struct Demand {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    reads: Vec<Range<u64>>,
    waits: bool,
}

impl Default for State {
    fn default() -> Self {
        // It was asked for because a read waits.
        Self { reads: Vec::new(), waits: true }
    }
}

impl Demands {
    /// Listens to a request.
    pub(crate) fn listen(&self, request: u64) -> Listener {
        let demand = Arc::new(Demand::default());
        self.table.lock().insert(request, demand.clone());
        Listener { demands: self.clone(), request, demand }
    }

    /// One more read waits, of these bytes; or, without bytes, none any more.
    pub(crate) fn tell(&self, request: u64, bytes: Option<Range<u64>>) {
        let Some(demand) = self.table.lock().get(&request).cloned() else { return };
        {
            let mut state = demand.state.lock();
            state.waits = bytes.is_some();
            state.reads.extend(bytes);
            let too_many = state.reads.len().saturating_sub(REMEMBERED);
            state.reads.drain(..too_many);
        }
        demand.changed.notify_one();
    }
}

impl Listener {
    /// Waits for news: the reads that have come since, and whether any waits now. May be dropped.
    pub(crate) async fn changed(&self) -> (Vec<Range<u64>>, bool) {
        self.demand.changed.notified().await;
        let mut state = self.demand.state.lock();
        (std::mem::take(&mut state.reads), state.waits)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.demands.table.lock().remove(&self.request);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn reads_are_kept_until_they_are_heard_and_the_last_word_counts() {
        let demands = Demands::default();
        let listener = demands.listen(7);
        assert!(listener.changed().now_or_never().is_none());
        demands.tell(8, Some(0..1));
        demands.tell(7, Some(0..1));
        demands.tell(7, Some(5..6));
        assert_eq!(listener.changed().now_or_never(), Some((vec![0..1, 5..6], true)));
        demands.tell(7, Some(2..3));
        demands.tell(7, Some(4..5));
        demands.tell(7, None);
        assert_eq!(listener.changed().now_or_never(), Some((vec![2..3, 4..5], false)));
        (0..100).for_each(|at| demands.tell(7, Some(at..at + 1)));
        let (reads, _) = listener.changed().now_or_never().unwrap();
        assert_eq!((reads.len(), reads.last()), (REMEMBERED, Some(&(99..100))));
        drop(listener);
        assert!(demands.table.lock().is_empty());
    }
}
