//! Being asked to end: once to end well, twice to end at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Tells when SIGINT or SIGTERM came. Clones share what they know.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    first: CancellationToken,
    second: CancellationToken,
}

impl Interrupt {
    /// Catches the signals from now on.
    ///
    /// # Errors
    /// The operating system refuses.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let this = Self { first: CancellationToken::new(), second: CancellationToken::new() };
        let (interrupt, terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::spawn(this.clone().watch(interrupt, terminate));
        Ok(this)
    }

    async fn watch(self, mut interrupt: Signal, mut terminate: Signal) {
        for token in [self.first, self.second] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            token.cancel();
        }
    }

    /// Returns when a signal has come.
    pub(crate) async fn first(&self) {
        self.first.cancelled().await;
    }

    /// Returns when a second signal has come.
    pub(crate) async fn second(&self) {
        self.second.cancelled().await;
    }
}
