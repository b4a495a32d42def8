//! `Planted`: bugs that can be planted in the scheduler on purpose, so that tests show that the
//! simulation and the watchdog find them.
//!
//! Each stands at the one place where its mistake would be made, behind `Scheduler::has_planted`. Without
//! the feature `sim` that is the constant `false`, there is no way to plant anything, and the compiler
//! leaves nothing of it.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(any(test, feature = "sim")), expect(unreachable_pub, reason = "it is not exported"))]
pub enum Planted {
    /// The attempts of a session that is over stay known, so that a late report of one counts.
    StaleEpoch,
    /// A cancelled attempt that has ended keeps what it had reserved.
    KeptRoom,
    /// Once an execution runs, an equal job does not join it but runs beside it.
    RunsTwice,
    /// A queue that started nothing for long stays behind better classes.
    NoAgeing,
    /// Of the jobs that share an execution only the first hears that it succeeded.
    JoinedForgotten,
    /// That a worker vanished under a job is not held against the job.
    PoisonUnbounded,
    /// Room that an attempt leaves is not offered to the queue.
    LostWakeUp,
    /// When outputs are lost, what is queued and needs them stays queued.
    StaleInputs,
}

impl Planted {
    /// Every one of them.
    #[cfg(any(test, feature = "sim"))]
    pub const ALL: [Self; 8] = [
        Self::StaleEpoch,
        Self::KeptRoom,
        Self::RunsTwice,
        Self::NoAgeing,
        Self::JoinedForgotten,
        Self::PoisonUnbounded,
        Self::LostWakeUp,
        Self::StaleInputs,
    ];
}
