//! Being asked to end: once to end well, twice to end at once.

use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long the process may take to end at once, before it is ended whatever it does.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The exit code of a process that had to be ended.
const CANCELLED: i32 = 130;

/// Tells when a signal came that asks to end. Clones share what they know.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    first: CancellationToken,
    second: CancellationToken,
}

impl Interrupt {
    /// Catches SIGINT and SIGTERM from now on, and SIGHUP and SIGQUIT unless they were ignored
    /// before: `nohup` stays in force.
    ///
    /// # Errors
    /// The operating system refuses.
    pub(crate) fn listen() -> io::Result<Self> {
        let this = Self { first: CancellationToken::new(), second: CancellationToken::new() };
        let ignored = ignored_signals();
        let is_ignored = |signal: Signal| ignored & (1 << (signal as i32 - 1)) != 0;
        let also = [Signal::SIGHUP, Signal::SIGQUIT].into_iter().filter(|it| !is_ignored(*it));
        let (tell, told) = mpsc::channel(2);
        for caught in [Signal::SIGINT, Signal::SIGTERM].into_iter().chain(also) {
            let mut signals = signal(SignalKind::from_raw(caught as i32))?;
            let tell = tell.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() && tell.send(()).await.is_ok() {}
            });
        }
        tokio::spawn(this.clone().watch(told));
        Ok(this)
    }

    async fn watch(self, mut signals: mpsc::Receiver<()>) {
        for token in [self.first, self.second] {
            if signals.recv().await.is_none() {
                return;
            }
            token.cancel();
        }
        // A thread, because whatever keeps the process from ending may keep the runtime busy, too.
        let patience = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(AT_ONCE);
            std::process::exit(CANCELLED);
        });
        if patience.is_err() {
            std::process::exit(CANCELLED);
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

/// The signals that this process was told to ignore, one bit each from SIGHUP on; none if the system
/// does not tell.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
