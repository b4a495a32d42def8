//! What the driver tells the scheduler (`Event`) and what it is asked to do (`Effect`).

use std::collections::BTreeMap;

use crate::graph::Graph;
use crate::ids::{ActionKey, AttemptId, BuildId, JobRef, SelectorId, StoreId, UserId, WorkerId};
use crate::resources::Resources;
use crate::watchdog::Stall;

/// Something that happened. Events that name what the scheduler does not know (any more) change
/// nothing: a late report of a worker that left, or of a build that ended, is no error.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker is online and takes jobs.
    WorkerJoined {
        /// This session; a fresh number every time.
        worker: WorkerId,
        /// What holds its outputs; the same as in its earlier sessions.
        store: StoreId,
        /// Platform properties it offers.
        properties: BTreeMap<String, String>,
        /// What its jobs may reserve together.
        capacity: Resources,
        /// Takes no jobs, as after `WorkerDrained`.
        draining: bool,
    },
    /// A session is over. What ran there ends as an infrastructure error and runs elsewhere.
    WorkerLeft {
        /// The session.
        worker: WorkerId,
        /// It vanished; its jobs may have been the cause. False: it said goodbye.
        lost: bool,
    },
    /// The worker finishes what it runs and takes nothing new.
    WorkerDrained {
        /// The session.
        worker: WorkerId,
    },
    /// Gives a selector its meaning: it matches workers whose properties include all of these.
    /// A selector that is not defined matches nothing.
    SelectorDefined {
        /// The selector; a second definition replaces the first.
        selector: SelectorId,
        /// Properties a worker must offer.
        properties: BTreeMap<String, String>,
    },
    /// A build begins.
    Submitted {
        /// The build; ignored if it is known.
        build: BuildId,
        /// Whom its work is accounted to.
        user: UserId,
        /// Priority class; lower runs sooner.
        class: u8,
        /// After a failure, run all that does not depend on it. False: stop.
        keep_going: bool,
        /// The jobs.
        graph: Box<Graph>,
    },
    /// Nobody wants the build any more.
    Cancelled {
        /// The build.
        build: BuildId,
    },
    /// The answer to `Effect::LookUp`; exactly one a request. A job is not asked about again before
    /// it was answered.
    LookedUp {
        /// The job.
        job: JobRef,
        /// What was found.
        answer: Answer,
    },
    /// A worker runs an attempt that an earlier scheduler assigned. It takes its resources until it ends, and is
    /// for nobody until a job is answered with [`Answer::Running`]. Ignored if the attempt is known.
    Reattached {
        /// The attempt; none of this scheduler's own has its number.
        attempt: AttemptId,
        /// The session.
        worker: WorkerId,
        /// What was reserved for it.
        resources: Resources,
    },
    /// The worker has begun to run the attempt.
    AttemptStarted {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The attempt is over and its resources are free. Also sent after `Effect::CancelAttempt`.
    AttemptEnded {
        /// The attempt.
        attempt: AttemptId,
        /// How it ended.
        end: AttemptEnd,
    },
    /// Every copy of a finished job's outputs is gone and somebody needs them.
    OutputsLost {
        /// The job.
        job: JobRef,
    },
    /// The outputs of a requested job have reached the client, or the client wants none.
    Delivered {
        /// The job.
        job: JobRef,
    },
    /// Time has passed (see `Scheduler::poll_timeout`).
    Tick,
}

/// Whether a job whose dependencies are done has been run before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its result is known and complete.
    Hit {
        /// Stores that hold the outputs; may be empty (a backing store has them).
        holders: Vec<StoreId>,
    },
    /// It has to run.
    Miss {
        /// Executions with equal keys are run once. `None`: never shared.
        key: Option<ActionKey>,
    },
    /// It runs already, in an attempt that was reattached. Like a miss if that attempt is for a job already, or if
    /// an equal job is queued or runs: then the attempt is cancelled.
    Running {
        /// As for a miss.
        key: Option<ActionKey>,
        /// The attempt.
        attempt: AttemptId,
    },
    /// It is known to have ended so.
    Dead {
        /// Never `Succeeded`.
        outcome: Outcome,
    },
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// Its outputs are on the worker's store.
    Succeeded,
    /// A command failed. Never retried.
    Failed,
    /// The job's own time limit passed. Never retried.
    TimedOut,
    /// It was killed for want of memory. Retried once with twice as much.
    OutOfMemory,
    /// It could not be run or observed. Retried, elsewhere if possible.
    Infra {
        /// Who is at fault, as far as known.
        blame: Blame,
        /// Inputs were gone: the job waits until they are made again, and the attempt does not
        /// count (within a bound).
        lost_inputs: bool,
    },
    /// It was cancelled. If nobody asked for that, it is retried like an infrastructure error.
    Cancelled,
    /// The worker could not take it. Offered again, not counted (within a bound).
    Rejected,
}

/// Who is at fault for an infrastructure error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The worker: a retry avoids it.
    Worker,
    /// The inputs or where they come from: any worker is as good.
    Inputs,
    /// Not known: a retry avoids the worker.
    Unknown,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Compute the action of a job whose dependencies are done, look its result up, and answer
    /// with `Event::LookedUp`.
    LookUp {
        /// The job.
        job: JobRef,
    },
    /// Run a job on a worker.
    Assign {
        /// The attempt, to be named in reports.
        attempt: AttemptId,
        /// Which attempt of the job this is, from 1.
        number: u32,
        /// The job; others that joined it get the same outcome.
        job: JobRef,
        /// Where.
        worker: WorkerId,
        /// What is reserved: the job's request, with more memory after it ran out of it.
        resources: Resources,
    },
    /// An attempt that was reattached is now that of a job. Others may have joined it.
    Adopted {
        /// The attempt.
        attempt: AttemptId,
        /// The job.
        job: JobRef,
    },
    /// Stop an attempt. Its resources stay taken until `Event::AttemptEnded`.
    CancelAttempt {
        /// The attempt.
        attempt: AttemptId,
    },
    /// A job has ended. Exactly one of these a job.
    JobEnded {
        /// The job.
        job: JobRef,
        /// How.
        outcome: Outcome,
    },
    /// Outputs of a job that had ended before exist again.
    Remade {
        /// The job.
        job: JobRef,
        /// How.
        how: How,
    },
    /// Outputs of a job that had ended before are gone for good. If it was requested and not yet
    /// delivered, it never will be.
    RemakeFailed {
        /// The job.
        job: JobRef,
        /// Why; never `Succeeded`.
        outcome: Outcome,
    },
    /// The watchdog: for `stall_after` a job was queued although a worker had room for it. That is a
    /// mistake of the scheduler, to be reported; the job has got another chance.
    Stalled(Stall),
    /// All jobs of the build have ended, and all requested outputs are delivered or given up.
    /// The scheduler has forgotten the build. Cancelled attempts may still have to end.
    BuildEnded {
        /// The build.
        build: BuildId,
    },
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its outputs exist, or nobody needs them.
    Succeeded {
        /// How they came about.
        how: How,
    },
    /// A command failed in this attempt.
    Failed {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The job's time limit passed in this attempt.
    TimedOut {
        /// The attempt.
        attempt: AttemptId,
    },
    /// It could not be run or observed.
    InfraError {
        /// Why.
        reason: InfraReason,
    },
    /// A job that it depends on, directly or not, has failed.
    Skipped {
        /// Position of the job that failed.
        dependency: u32,
    },
    /// The build was cancelled, or stopped at a failure elsewhere in it.
    Cancelled,
    /// No worker that could ever take it was online for the whole queue time-out.
    NoWorker {
        /// Why none could.
        reason: NoWorkerReason,
    },
}

/// How outputs came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// This job was run.
    Executed {
        /// The attempt that succeeded.
        attempt: AttemptId,
    },
    /// An equal job was run for both.
    Joined {
        /// The attempt that succeeded.
        attempt: AttemptId,
    },
    /// Known when the build was submitted.
    Cached,
    /// Known when the dependencies were done (early cut-off).
    CutOff,
    /// Nothing requested needs it; it was not run.
    Unneeded,
}

/// Why a job ended in an infrastructure error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfraReason {
    /// Too many attempts went wrong; the last one was to blame on this.
    AttemptsExhausted {
        /// Attempts that counted.
        attempts: u8,
        /// Who was at fault in the last.
        blame: Blame,
    },
    /// Too many workers vanished while they ran it; it is held to be the cause.
    Quarantined {
        /// Workers that vanished.
        workers: u8,
    },
    /// Its inputs were lost in too many attempts.
    InputsLost,
    /// Too many workers rejected it.
    Rejected,
    /// Its outputs were lost more often than they may be made again.
    OutputsLost,
    /// It was killed for want of memory, with this reserved, and no worker offers twice as much
    /// or it had its second try.
    OutOfMemory {
        /// Bytes reserved in the last attempt.
        memory_bytes: u64,
    },
}

/// Why no online worker could ever take a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWorkerReason {
    /// None offers the properties.
    NoMatch,
    /// Some offer the properties, but none has so many resources.
    TooBig,
}
