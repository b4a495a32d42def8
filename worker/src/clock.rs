//! An action's clock: it stands while contents are fetched for the action.
//!
//! Time is what the caller says it is, so that the arithmetic is tested without waiting. Several
//! fetches may be under way; the clock goes on when the last one is done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Shortest sleep between two looks at the clock.
const SHORTEST_LOOK: Duration = Duration::from_millis(5);

/// The clock of one action. Clones are one clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    started: Option<Instant>,
    fetches: u32,
    stopped_since: Option<Instant>,
    stopped: Duration,
}

/// Stops the clock until it is dropped.
#[derive(Debug)]
pub(crate) struct Stopped {
    clock: Clock,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// The action ran too long.
    Run,
    /// Fetches stopped the clock for too long.
    Fetch,
}

impl Clock {
    /// The action begins to run.
    pub(crate) fn start(&self, now: Instant) {
        let mut state = self.state.lock();
        state.started = Some(now);
        state.stopped = Duration::ZERO;
        if state.fetches > 0 {
            state.stopped_since = Some(now);
        }
    }

    /// A fetch begins.
    pub(crate) fn stop(&self, now: Instant) -> Stopped {
        let mut state = self.state.lock();
        state.fetches += 1;
        if state.fetches == 1 {
            state.stopped_since = Some(now);
        }
        Stopped { clock: self.clone() }
    }

    fn resume(&self, now: Instant) {
        let mut state = self.state.lock();
        state.fetches -= 1;
        if state.fetches == 0
            && let Some(since) = state.stopped_since.take()
        {
            state.stopped += now.saturating_duration_since(since);
        }
    }

    /// Time that the action ran, and time that the clock stood meanwhile.
    pub(crate) fn read(&self, now: Instant) -> (Duration, Duration) {
        let state = self.state.lock();
        let wall = state.started.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let standing = state.stopped_since.map(|since| now.saturating_duration_since(since));
        let stopped = state.stopped + standing.unwrap_or_default();
        (wall.saturating_sub(stopped), stopped)
    }

    /// What is left until the next limit may be reached, or which one is.
    fn look(&self, now: Instant, run: Duration, fetch: Duration) -> Result<Duration, Expired> {
        let (ran, stood) = self.read(now);
        if ran >= run {
            return Err(Expired::Run);
        }
        if stood >= fetch {
            return Err(Expired::Fetch);
        }
        // Time passes for one of the two only; neither can be reached sooner than this.
        Ok((run - ran).min(fetch - stood).max(SHORTEST_LOOK))
    }

    /// Waits until a limit is reached.
    pub(crate) async fn expired(&self, run: Duration, fetch: Duration) -> Expired {
        loop {
            match self.look(Instant::now(), run, fetch) {
                Ok(left) => tokio::time::sleep(left).await,
                Err(expired) => return expired,
            }
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.clock.resume(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_clock_stands_from_the_first_fetch_to_the_last() {
        let (clock, begin) = (Clock::default(), Instant::now());
        clock.start(begin);
        let first = clock.stop(begin + ms(10));
        let second = clock.stop(begin + ms(20));
        // What `Drop` does, with a time of our own.
        clock.resume(begin + ms(30));
        clock.resume(begin + ms(50));
        std::mem::forget((first, second));
        assert_eq!(clock.read(begin + ms(100)), (ms(60), ms(40)));
    }

    #[test]
    fn either_limit_ends_it() {
        let (clock, begin) = (Clock::default(), Instant::now());
        clock.start(begin);
        assert_eq!(clock.look(begin + ms(40), ms(100), ms(1000)), Ok(ms(60)));
        assert_eq!(clock.look(begin + ms(100), ms(100), ms(1000)), Err(Expired::Run));
        let stopped = clock.stop(begin + ms(50));
        assert_eq!(clock.look(begin + ms(900), ms(100), ms(1000)), Ok(ms(50)));
        assert_eq!(clock.look(begin + ms(1050), ms(100), ms(1000)), Err(Expired::Fetch));
        std::mem::forget(stopped);
    }

    #[test]
    fn a_fetch_before_the_start_counts_from_the_start() {
        let (clock, begin) = (Clock::default(), Instant::now());
        let stopped = clock.stop(begin);
        clock.start(begin + ms(500));
        assert_eq!(clock.read(begin + ms(600)), (ms(0), ms(100)));
        std::mem::forget(stopped);
    }
}
