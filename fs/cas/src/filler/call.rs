//! One call of a source: which of its blobs have no answer yet, and whether its lane counts it.

use std::collections::HashSet;
use std::future::pending;
use std::sync::Arc;

use distbuild_proto::Digest;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{Answers, Lane, Shared, Source, State, TakesAnswers, Want};
use crate::error::FetchError;

/// One call of the source.
struct Call<S: Source> {
    shared: Arc<Shared<S>>,
    lane: Lane,
    left: Mutex<Left>,
}

/// What a call has not answered yet.
#[derive(Default)]
struct Left {
    unanswered: HashSet<Digest>,
    /// Those of them that somebody else fetches.
    elsewhere: HashSet<Digest>,
    /// Nothing is left to do but to wait for others: the lane does not count this call any more.
    stands: bool,
}

impl<S: Source> Call<S> {
    /// Tells all who wait for a blob.
    fn land(&self, digest: &Digest, outcome: Result<(), FetchError>) {
        if let Some(flight) = self.shared.state.lock().flights.remove(digest) {
            // Nobody may wait any more, and that is fine.
            let _ = flight.outcome.send(Some(outcome));
        }
    }

    /// Changes what is left; if nothing but waiting is, the next call goes.
    fn change(&self, change: impl FnOnce(&mut Left, &mut State<S::Hint>)) {
        let mut left = self.left.lock();
        let mut state = self.shared.state.lock();
        change(&mut left, &mut state);
        let stood = left.stands;
        left.stands |= left.unanswered.len() == left.elsewhere.len();
        let ends = left.stands && !stood;
        if ends {
            state.queue(self.lane).calls -= 1;
        }
        drop(state);
        drop(left);
        // Outside a runtime nothing can go on, and nobody waits.
        if ends && tokio::runtime::Handle::try_current().is_ok() {
            self.shared.depart(self.lane);
        }
    }

    /// Ends the flight of a blob, unless somebody has come to wait for it just now.
    fn leave(&self, digest: &Digest) -> bool {
        let mut left_it = false;
        self.change(|left, state| {
            if state.flights.get(digest).is_some_and(|flight| flight.outcome.is_closed()) {
                state.flights.remove(digest);
                left_it = Self::strike(left, state, digest);
            }
        });
        left_it
    }

    /// Takes a blob off the list; answers whether it was there.
    fn strike(left: &mut Left, state: &mut State<S::Hint>, digest: &Digest) -> bool {
        if left.elsewhere.remove(digest) {
            state.elsewhere -= 1;
        }
        left.unanswered.remove(digest)
    }
}

impl<S: Source> TakesAnswers for Call<S> {
    fn answer(&self, digest: &Digest, outcome: Result<(), FetchError>) {
        let outcome = outcome.and_then(|()| match self.shared.store.contains(digest) {
            true => Ok(()),
            false => Err(FetchError::NotDelivered(*digest)),
        });
        let mut first = false;
        self.change(|left, state| first = Self::strike(left, state, digest));
        if first {
            self.land(digest, outcome);
        }
    }

    fn waits(&self, digest: &Digest) {
        self.change(|left, state| {
            if left.unanswered.contains(digest) && left.elsewhere.insert(*digest) {
                state.elsewhere += 1;
            }
        });
    }
}

/// A call that is under way. However it ends, every blob of it gets an answer and the lane goes on.
pub(super) struct OpenCall<S: Source>(Arc<Call<S>>);

impl<S: Source> OpenCall<S> {
    /// A call for these blobs, which the lane counts already.
    pub(super) fn new(shared: Arc<Shared<S>>, lane: Lane, wants: &[Want<S::Hint>]) -> Self {
        let unanswered = wants.iter().map(|want| want.digest).collect();
        let left = Mutex::new(Left { unanswered, ..Left::default() });
        Self(Arc::new(Call { shared, lane, left }))
    }

    pub(super) async fn run(self, wants: Vec<Want<S::Hint>>) {
        let shared = &self.0.shared;
        let after = shared.deadline(&wants);
        let answers = Answers { call: self.0.clone() };
        let fetch = shared.source.fetch(wants, &shared.store, answers);
        let ended = tokio::select! {
            fetched = timeout(after, fetch) => fetched.is_ok(),
            () = self.unwanted() => true,
        };
        if !ended {
            for digest in self.unanswered() {
                // What came before the deadline has come.
                let outcome = match shared.store.contains(&digest) {
                    true => Ok(()),
                    false => Err(FetchError::TimedOut { digest, after }),
                };
                self.0.answer(&digest, outcome);
            }
        }
    }

    /// Returns when nobody waits for a large blob any more, which has left the call then.
    async fn unwanted(&self) {
        let (Lane::Large, [digest]) = (self.0.lane, &self.unanswered()[..]) else {
            return pending().await;
        };
        loop {
            let flights = &self.0.shared.state;
            let outcome = flights.lock().flights.get(digest).map(|flight| flight.outcome.clone());
            match outcome {
                Some(outcome) => outcome.closed().await,
                None => pending().await,
            }
            if self.0.leave(digest) {
                return;
            }
        }
    }

    fn unanswered(&self) -> Vec<Digest> {
        self.0.left.lock().unanswered.iter().copied().collect()
    }
}

impl<S: Source> Drop for OpenCall<S> {
    fn drop(&mut self) {
        for digest in self.unanswered() {
            self.0.answer(&digest, Err(FetchError::Abandoned(digest)));
        }
    }
}
