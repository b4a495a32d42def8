//! Waiting for something to become true, with a deadline.

use std::time::{Duration, Instant};

/// How long a step of a test may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `probe` gives something.
///
/// # Panics
/// It does not within [`PATIENCE`].
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, probe)
}

/// Polls until `probe` gives something.
///
/// # Panics
/// It does not in time.
pub fn within<T>(patience: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {patience:?}");
        // Polling needs a pause; no test relies on its length.
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
