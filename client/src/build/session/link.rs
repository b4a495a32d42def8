//! The session's stream: what happens when it breaks, and when there is another one.

use distbuild_proto::wire::build_request::Body as Request;
use distbuild_proto::wire::{self, BuildEvents};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Streaming;

use super::{LAST_ERRANDS, Session};
use crate::build::reconnect::Link;

impl Session {
    /// The coordinator is there again.
    pub(super) async fn reattach(&mut self, link: Link) -> Streaming<BuildEvents> {
        self.parts.screen.note("the coordinator is back, the build goes on");
        self.parts.requests = link.requests;
        self.lend();
        self.parts.deliveries.attach();
        let jobs = std::mem::take(&mut self.told_delivered);
        self.delivered.extend(jobs);
        self.tell_delivered().await;
        if self.deadline.is_some() {
            self.tell(Request::Cancel(wire::CancelBuild {})).await;
        }
        link.events
    }

    /// The stream broke: comes back if it may. False: it may not.
    fn come_back(&mut self, why: &str) -> bool {
        let going_on = self.parts.record.ended.is_none() && self.deadline.is_none();
        let (Some(reconnector), Some(build)) = (self.parts.reconnector.clone(), self.build.clone())
        else {
            return false;
        };
        if !going_on {
            return false;
        }
        for task in [self.lender.take(), self.uploader.take()].into_iter().flatten() {
            task.abort();
        }
        self.parts.deliveries.detach();
        let seconds = reconnector.limit.as_secs();
        let text =
            format!("the coordinator is lost ({why}); waiting for it, for {seconds} s at most");
        self.parts.screen.note(&text);
        let wire::BuildLender { build_id, secret } = build;
        let resume = wire::ResumeBuild { build_id, secret, seq: self.last_seq, may_be_new: false };
        let heard = self.parts.record.heard();
        self.reconnecting = Some(tokio::spawn(reconnector.reconnect(resume, heard)));
        true
    }

    /// The coordinator's stream has ended.
    pub(super) fn hang_up(&mut self, error: Option<&str>) {
        let why = error.unwrap_or("it closed the connection");
        if !self.come_back(why) {
            self.give_up(why);
        }
    }

    /// Nothing more is heard from the coordinator.
    pub(super) fn give_up(&mut self, why: &str) {
        self.silent = true;
        let deadline = Instant::now() + LAST_ERRANDS;
        self.deadline = Some(self.deadline.map_or(deadline, |old| old.min(deadline)));
        if self.parts.record.ended.is_none() {
            self.spoilt = true;
            self.parts.deliveries.stop();
            if !self.cancelled {
                self.parts.screen.note(&format!("error: the coordinator is lost: {why}"));
            }
        }
    }
}

/// The next message, while there is a stream.
pub(super) async fn message_of(
    events: &mut Option<Streaming<BuildEvents>>,
) -> Result<Option<BuildEvents>, tonic::Status> {
    match events {
        Some(events) => events.message().await,
        None => std::future::pending().await,
    }
}

/// The next stream, while one is waited for.
pub(super) async fn link_of(
    reconnecting: &mut Option<JoinHandle<Result<Link, String>>>,
) -> Result<Link, String> {
    match reconnecting {
        Some(task) => task.await.unwrap_or_else(|error| Err(error.to_string())),
        None => std::future::pending().await,
    }
}
