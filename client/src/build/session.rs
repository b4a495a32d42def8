//! `Session`: one build from its first event to its last.
//!
//! One task owns everything: it takes events, errands that are done, troubles and signals as they come, and
//! sends the coordinator what they make necessary. It ends when the coordinator has said its last
//! word and nothing is left to be brought, or a bounded time after it was asked to end.

mod link;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distbuild_proto::Digest;
use distbuild_proto::wire::build_event::Body;
use distbuild_proto::wire::build_request::Body as Request;
use distbuild_proto::wire::{self, BuildEvents, Outcome};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Channel;

use link::{link_of, message_of};

use super::console;
use super::console::{visible, visible_lines};
use super::deliver::{Content, Deliveries, Done, Errand};
use super::events::EventFile;
use super::hints;
use super::lend::Lender;
use super::reconnect::{Link, Reconnector};
use super::record::{Record, succeeded};
use super::sources::Sources;
use super::submit::send;
use super::traffic::Traffic;
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress::{REFRESH, Screen};

/// How long the end of a build may take that was asked to end.
const END: Duration = Duration::from_secs(2);
/// How long outputs may still be brought after the coordinator's last word.
const LAST_ERRANDS: Duration = Duration::from_secs(60);
/// How often a job's outputs are made again because nobody has them any more.
const REMAKES: u32 = 3;

/// What a session works with.
pub(crate) struct Parts {
    pub(crate) record: Record,
    pub(crate) events: EventFile,
    pub(crate) screen: Screen,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) deliveries: Deliveries,
    /// What lies in the output directory, being found out.
    pub(crate) existing: JoinHandle<HashMap<u32, Digest>>,
    pub(crate) requests: mpsc::Sender<wire::BuildRequest>,
    /// None: a coordinator that is lost ends the build.
    pub(crate) reconnector: Option<Reconnector>,
    /// For bytes, not for control.
    pub(crate) bytes: Channel,
    /// The source root.
    pub(crate) source: PathBuf,
    pub(crate) sources: Sources,
    pub(crate) upload: bool,
}

/// A build that is over.
pub(crate) struct Ended {
    pub(crate) record: Record,
    pub(crate) outcome: Outcome,
    pub(crate) exit: Exit,
}

/// A running build.
pub(crate) struct Session {
    parts: Parts,
    /// How the build is known at the coordinator.
    build: Option<wire::BuildLender>,
    lender: Option<JoinHandle<()>>,
    uploader: Option<JoinHandle<()>>,
    /// The coordinator is away and is dialled.
    reconnecting: Option<JoinHandle<Result<Link, String>>>,
    /// The last event that was taken in.
    last_seq: u64,
    troubles: (mpsc::Sender<String>, mpsc::Receiver<String>),
    /// Infrastructure failed on this side.
    spoilt: bool,
    /// Something that was to be written down is not.
    untold: bool,
    cancelled: bool,
    /// The coordinator will say no more.
    silent: bool,
    deadline: Option<Instant>,
    /// What to say about jobs whose output is being fetched.
    awaited: HashMap<u32, Awaited>,
    /// Jobs whose outputs are in their places, which the coordinator is about to hear.
    delivered: Vec<u32>,
    /// Those of which it has been told, in case another one has to hear of them.
    told_delivered: Vec<u32>,
    remakes: HashMap<u32, u32>,
}

/// What belongs above and below what a job printed.
#[derive(Debug, Default)]
struct Awaited {
    text: String,
    /// The command that failed, if one did.
    failed: Option<u32>,
}

impl Session {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            build: None,
            lender: None,
            uploader: None,
            reconnecting: None,
            last_seq: 0,
            troubles: mpsc::channel(1),
            spoilt: false,
            untold: false,
            cancelled: false,
            silent: false,
            deadline: None,
            awaited: HashMap::new(),
            delivered: Vec::new(),
            told_delivered: Vec::new(),
            remakes: HashMap::new(),
        }
    }

    /// Whoever finds that something is wrong on this side tells here; the build then ends.
    pub(crate) fn troubles(&self) -> mpsc::Sender<String> {
        self.troubles.0.clone()
    }

    /// Runs the build to its end.
    pub(crate) async fn run(
        mut self,
        events: Streaming<BuildEvents>,
        interrupt: &Interrupt,
    ) -> Ended {
        let mut redraw = tokio::time::interval(REFRESH);
        redraw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut events = Some(events);
        while !(self.silent && self.parts.deliveries.is_idle()) {
            let deadline = self.deadline.unwrap_or_else(|| Instant::now() + LAST_ERRANDS);
            tokio::select! {
                message = message_of(&mut events), if !self.silent => match message {
                    Ok(Some(batch)) => self.take(batch).await,
                    Ok(None) => {
                        events = None;
                        self.hang_up(None);
                    }
                    Err(status) => {
                        events = None;
                        self.hang_up(Some(status.message()));
                    }
                },
                link = link_of(&mut self.reconnecting) => {
                    self.reconnecting = None;
                    match link {
                        Ok(link) => events = Some(self.reattach(link).await),
                        Err(why) => self.give_up(&why),
                    }
                }
                done = self.parts.deliveries.next() => self.done(done).await,
                Some(trouble) = self.troubles.1.recv() => self.spoil(&trouble).await,
                () = interrupt.first(), if !self.cancelled => self.cancel().await,
                () = tokio::time::sleep_until(deadline), if self.deadline.is_some() => break,
                _ = redraw.tick() => {
                    self.parts.screen.refresh(&self.parts.record, &self.parts.traffic);
                    self.parts.events.flush();
                    self.look_at_events();
                }
            }
        }
        self.end()
    }

    async fn take(&mut self, batch: BuildEvents) {
        let mut lines = String::new();
        for event in batch.events {
            if event.seq <= self.last_seq {
                continue;
            }
            if event.seq > self.last_seq + 1 {
                let text = format!("the coordinator left events out after {}", self.last_seq);
                return self.spoil(&text).await;
            }
            self.last_seq = event.seq;
            let Some(body) = &event.body else { continue };
            self.parts.record.apply(body);
            self.parts.events.write(&event, &self.parts.record);
            match event.body {
                Some(Body::BuildStarted(started)) => self.started(started).await,
                Some(Body::JobFinished(finished)) => {
                    self.job_finished(finished, &mut lines).await;
                }
                Some(Body::OutputsRemade(remade)) => self.remade(remade).await,
                Some(Body::JobWaiting(waiting)) => {
                    let name = visible(self.parts.record.plan().name(waiting.job));
                    let reason = visible_lines(&waiting.reason);
                    self.parts.screen.note(&format!("{name} waits: {reason}"));
                }
                _ => {}
            }
        }
        self.say(&mut lines);
        if self.parts.reconnector.is_some() {
            self.tell(Request::HeardSeq(self.last_seq)).await;
        }
        self.tell_delivered().await;
    }

    /// Tells what has been delivered meanwhile, in one message.
    async fn tell_delivered(&mut self) {
        if !self.delivered.is_empty() && self.reconnecting.is_none() {
            let jobs = std::mem::take(&mut self.delivered);
            if self.parts.reconnector.is_some() {
                self.told_delivered.extend(&jobs);
            }
            self.tell(Request::Delivered(wire::JobReports { jobs })).await;
        }
    }

    /// Writes gathered lines at once.
    fn say(&self, lines: &mut String) {
        if let Some(text) = lines.strip_suffix('\n') {
            self.parts.screen.note(text);
        }
        lines.clear();
    }

    async fn started(&mut self, started: wire::BuildStarted) {
        let (build_id, secret) = (started.build_id, started.lend_secret);
        self.build = Some(wire::BuildLender { build_id, secret });
        self.lend();
        let existing = (&mut self.parts.existing).await.unwrap_or_default();
        self.parts.deliveries.set_existing(existing);
    }

    /// Lends what this build declares.
    fn lend(&mut self) {
        let Some(build) = self.build.clone() else { return };
        let lender = Lender::new(
            self.parts.bytes.clone(),
            self.parts.sources.snapshot.clone(),
            self.parts.traffic.clone(),
            build,
            self.troubles.0.clone(),
        );
        if self.parts.upload {
            self.uploader = Some(tokio::spawn(lender.clone().upload()));
        }
        self.lender = Some(tokio::spawn(lender.lend()));
    }

    async fn job_finished(&mut self, finished: wire::JobFinished, lines: &mut String) {
        let (job, outcome) = (finished.job, finished.outcome());
        let failed = matches!(outcome, Outcome::Failed | Outcome::TimedOut);
        let broken = matches!(outcome, Outcome::InfraError | Outcome::NoWorker);
        let text = if failed {
            Some(console::failure(&self.parts.record, &finished))
        } else if broken || self.parts.screen.is_lines() {
            Some(console::line(&self.parts.record, &finished))
        } else {
            None
        };
        let Some(result) = finished.result else {
            return push_line(text, lines);
        };
        let failed = result.failed_command.filter(|_| outcome == Outcome::Failed);
        if prints_nothing(&result) {
            push_line(text, lines);
        } else if let Some((stdout, stderr)) = inline(&result) {
            push_line(text, lines);
            self.say(lines);
            // Reading what is in memory does not fail.
            let _ = self.parts.screen.print(stdout, stderr);
            if let Some(command) = failed {
                self.hint(job, command, &[stderr, stdout]);
            }
        } else {
            self.awaited.insert(job, Awaited { text: text.unwrap_or_default(), failed });
            self.parts.deliveries.add(Errand::Print { job, result: Box::new(result.clone()) });
        }
        if succeeded(outcome) && self.parts.record.plan().is_requested(job) {
            self.fetch_outputs(job, &result, finished.output_directories).await;
        }
    }

    async fn fetch_outputs(&mut self, job: u32, result: &wire::JobResult, directories: Vec<Bytes>) {
        let tree = result.output_root.as_ref().map(Digest::try_from);
        match tree {
            Some(Ok(tree)) if self.parts.deliveries.is_in_place(job, &tree) => {
                self.delivered.push(job);
            }
            Some(Ok(tree)) => self.parts.deliveries.add(Errand::Deliver { job, tree, directories }),
            Some(Err(error)) => self.spoil(&error.to_string()).await,
            None => {
                let name = self.parts.record.plan().name(job);
                let text = format!("the coordinator names no outputs of {name:?}");
                self.spoil(&text).await;
            }
        }
    }

    async fn remade(&mut self, remade: wire::OutputsRemade) {
        if succeeded(remade.outcome()) {
            if let Some(result) = remade.result
                && self.parts.record.plan().is_requested(remade.job)
            {
                self.fetch_outputs(remade.job, &result, Vec::new()).await;
            }
        } else {
            let name = visible(self.parts.record.plan().name(remade.job));
            let reason = visible_lines(&remade.reason);
            self.parts.screen.note(&format!("error: {name}: {reason}"));
        }
    }

    async fn done(&mut self, done: Done) {
        match done {
            Done::Delivered { job } => self.delivered.push(job),
            Done::Lost { job } => {
                let remakes = self.remakes.entry(job).or_default();
                *remakes += 1;
                if *remakes > REMAKES {
                    let name = self.parts.record.plan().name(job);
                    let text =
                        format!("the outputs of {name:?} were lost {REMAKES} times and more");
                    self.spoil(&text).await;
                } else {
                    self.tell(Request::OutputsMissing(wire::JobReport { job })).await;
                }
            }
            Done::Failed { reason } => self.spoil(&reason).await,
            Done::Printed { job, stdout, stderr } => self.printed(job, stdout, stderr),
            Done::Dropped => {}
        }
        self.tell_delivered().await;
    }

    fn printed(
        &mut self,
        job: u32,
        stdout: Result<Content, String>,
        stderr: Result<Content, String>,
    ) {
        let Awaited { mut text, failed } = self.awaited.remove(&job).unwrap_or_default();
        for (stream, content) in [("stdout", &stdout), ("stderr", &stderr)] {
            if let Err(error) = content {
                let name = self.parts.record.plan().name(job);
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&format!("{stream} of {name:?} is not shown: {error}"));
            }
        }
        if !text.is_empty() {
            self.parts.screen.note(&text);
        }
        let nothing = |_| Content::from(bytes::Bytes::new());
        let (stdout, stderr) = (stdout.unwrap_or_else(nothing), stderr.unwrap_or_else(nothing));
        let heads = failed.map(|_| [&stderr, &stdout].map(|it| it.head(hints::LOOKED_AT_BYTES)));
        if let Err(error) = self.parts.screen.print(stdout, stderr) {
            let name = self.parts.record.plan().name(job);
            let text = format!("what {name:?} printed is not shown to its end: {error}");
            self.parts.screen.note(&text);
        }
        if let (Some(command), Some([stderr, stdout])) = (failed, &heads) {
            self.hint(job, command, &[stderr, stdout]);
        }
    }

    /// Says what a job that failed may not have declared.
    fn hint(&self, job: u32, command: u32, printed: &[&[u8]]) {
        let Some(spec) = self.parts.record.plan().job(job) else { return };
        for printed in printed {
            for line in hints::lines(&self.parts.source, spec, command, printed) {
                self.parts.screen.note(&visible_lines(&line));
            }
        }
    }

    /// Events that cannot be written spoil how the build ends, and nothing before.
    fn look_at_events(&mut self) {
        if let Some(trouble) = self.parts.events.take_trouble() {
            self.parts.screen.note(&format!("error: {trouble}"));
            self.untold = true;
        }
    }

    /// Something is wrong on this side that no job can help: says so, and ends the build.
    async fn spoil(&mut self, trouble: &str) {
        if !self.spoilt {
            self.parts.screen.note(&format!("error: {trouble}"));
        }
        self.spoilt = true;
        self.ask_to_end().await;
    }

    async fn cancel(&mut self) {
        self.cancelled = true;
        self.parts.screen.note("cancelling; a second signal ends at once");
        self.ask_to_end().await;
    }

    async fn ask_to_end(&mut self) {
        if self.deadline.is_none() {
            self.deadline = Some(Instant::now() + END);
            self.parts.deliveries.stop();
            self.tell(Request::Cancel(wire::CancelBuild {})).await;
        }
    }

    /// Tells the coordinator; one that has gone away says so in its events.
    async fn tell(&self, request: Request) {
        let told = tokio::time::timeout(END, send(&self.parts.requests, request)).await;
        if !matches!(told, Ok(Ok(()))) {
            tracing::debug!("the coordinator takes no more messages");
        }
    }

    fn end(mut self) -> Ended {
        for task in [self.lender.take(), self.uploader.take()].into_iter().flatten() {
            task.abort();
        }
        if let Some(reconnecting) = self.reconnecting.take() {
            reconnecting.abort();
        }
        self.parts.screen.close();
        self.parts.events.flush();
        self.look_at_events();
        let mut record = self.parts.record;
        let cancelled = is_cancelled(self.cancelled, self.spoilt, record.ended);
        let left = if cancelled { Outcome::Cancelled } else { Outcome::InfraError };
        let spoilt = self.spoilt
            || self.untold
            || output::is_lost()
            || record.ended == Some(Outcome::InfraError);
        record.close(left);
        let exits = record.exits().chain(cancelled.then_some(Exit::CANCELLED));
        let exit = Exit::of_all(exits.chain(spoilt.then_some(Exit::INFRASTRUCTURE)));
        let outcome = outcome_of(exit, &record);
        Ended { record, outcome, exit }
    }
}

/// Whether a build counts as cancelled: its user has said so here, or somebody at the coordinator has.
/// One that this side ended for a trouble does not, nor one whose coordinator went away.
fn is_cancelled(here: bool, spoilt: bool, said: Option<Outcome>) -> bool {
    here || (said == Some(Outcome::Cancelled) && !spoilt)
}

/// The outcome of a build that ends with this code.
fn outcome_of(exit: Exit, record: &Record) -> Outcome {
    match exit {
        Exit::CANCELLED => Outcome::Cancelled,
        Exit::INFRASTRUCTURE => Outcome::InfraError,
        Exit::NO_WORKER => Outcome::NoWorker,
        Exit::JOB_FAILED if record.count(Outcome::Failed) == 0 => Outcome::TimedOut,
        Exit::JOB_FAILED => Outcome::Failed,
        _ => Outcome::Executed,
    }
}

fn prints_nothing(result: &wire::JobResult) -> bool {
    let nothing = |content: &wire::Content| content.inline.is_empty() && content.blob.is_none();
    [&result.stdout, &result.stderr].into_iter().flatten().all(nothing)
}

fn push_line(text: Option<String>, lines: &mut String) {
    if let Some(text) = text {
        lines.push_str(&text);
        lines.push('\n');
    }
}

/// What a job printed, if all of it is at hand.
fn inline(result: &wire::JobResult) -> Option<(&[u8], &[u8])> {
    let is_blob = |content: &wire::Content| content.blob.is_some();
    if [&result.stdout, &result.stderr].into_iter().flatten().any(is_blob) {
        return None;
    }
    let stdout = result.stdout.as_ref().map_or(&[][..], |content| &content.inline);
    let stderr = result.stderr.as_ref().map_or(&[][..], |content| &content.inline);
    Some((stdout, stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_cancelled_by_its_user_or_by_the_word_of_the_coordinator_alone() {
        assert!(is_cancelled(true, false, None));
        assert!(is_cancelled(true, true, Some(Outcome::InfraError)));
        assert!(is_cancelled(false, false, Some(Outcome::Cancelled)));
        assert!(!is_cancelled(false, true, Some(Outcome::Cancelled)));
        assert!(!is_cancelled(false, false, Some(Outcome::InfraError)));
        assert!(!is_cancelled(false, true, None));
    }
}
