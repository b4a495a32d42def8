//! Where a worker finds a blob: with peers, with a client, or in the coordinator.

use distbuild_proto::wire::located::Place;
use distbuild_proto::{Digest, wire};
use distbuild_sched::{AttemptId, JobRef};
use tokio::sync::mpsc;

use super::Core;
use crate::locator::{Answer, Session as SessionId};

/// A worker that waits for the answer about one blob.
#[derive(Debug)]
pub(crate) struct Waiter {
    index: u32,
    job: Option<JobRef>,
    /// Room for two answers a blob, so it is never full.
    reply: mpsc::Sender<wire::Located>,
}

impl Waiter {
    /// To say that there is no answer yet.
    fn notice(&self) -> Self {
        Self { index: self.index, job: None, reply: self.reply.clone() }
    }

    fn answer(self, place: Place) {
        let _ = self.reply.try_send(wire::Located { index: self.index, place: Some(place) });
    }
}

impl Core {
    pub(super) fn locate(
        &mut self,
        request: &wire::LocateRequest,
        reply: &mpsc::Sender<wire::Located>,
    ) {
        if self.park(request, reply) {
            return;
        }
        let attempt = self.attempts.get(&AttemptId(request.attempt));
        let job = attempt.map(|attempt| attempt.job);
        for (index, wanted) in request.blobs.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let waiter = Waiter { index, job, reply: reply.clone() };
            let Ok(digest) = Digest::try_from(wanted.digest.clone()) else {
                waiter.answer(Place::Lost("the digest is malformed".to_owned()));
                continue;
            };
            self.locate_one(request.session, digest, wanted, waiter);
        }
    }

    fn locate_one(
        &mut self,
        session: SessionId,
        digest: Digest,
        wanted: &wire::WantedBlob,
        waiter: Waiter,
    ) {
        if self.shared.metadata.get(&digest).is_some() || self.shared.store.contains(&digest) {
            return waiter.answer(Place::Coordinator(true));
        }
        if wanted.dep_plus_one > 0 {
            let place = self.locate_in_dep(session, wanted, waiter.job);
            return waiter.answer(place);
        }
        let failed = self.sessions.by_address(&wanted.failed_peers);
        if wanted.spare_client && !self.locator.is_held(&digest, session, &failed) {
            return waiter.answer(Place::Lost("only a client has it".to_owned()));
        }
        let now = self.now_ms();
        let notice = waiter.notice();
        match self.locator.ask(now, session, digest, &failed, waiter) {
            Some(answer) => self.answer_located(vec![(digest, answer)]),
            None => notice.answer(Place::Waits(true)),
        }
    }

    /// A blob of a dependency's outputs is where the whole output tree is.
    fn locate_in_dep(
        &self,
        session: SessionId,
        wanted: &wire::WantedBlob,
        job: Option<JobRef>,
    ) -> Place {
        let dep = wanted.dep_plus_one as usize - 1;
        let Some(root) = job.and_then(|job| self.dep_output(job, dep)) else {
            // Which does not mean that the outputs are lost: another attempt may know them.
            return Place::Peers(wire::Peers::default());
        };
        let holders = self.sessions_with(&root);
        let others = holders.iter().filter(|holder| **holder != session);
        let addresses: Vec<_> = others
            .clone()
            .filter_map(|holder| self.sessions.get(*holder))
            .map(|holder| holder.peer_address.clone())
            .filter(|address| !address.is_empty() && !wanted.failed_peers.contains(address))
            .collect();
        if !addresses.is_empty() {
            return Place::Peers(wire::Peers { addresses });
        }
        if others.count() > 0 {
            return Place::OutputTree(root.into());
        }
        Place::Lost(format!("no worker holds output tree {root} any more"))
    }

    /// Sessions whose stores hold an output tree.
    pub(super) fn sessions_with(&self, tree: &Digest) -> Vec<SessionId> {
        let Some(entry) = self.trees.get(tree) else {
            return Vec::new();
        };
        let of_store = |store| self.sessions.of_store(store).map(|(session, _)| session);
        entry.stores.iter().copied().filter_map(of_store).collect()
    }

    /// Passes on what the locator has decided.
    pub(super) fn answer_located(&mut self, answers: Vec<(Digest, Answer<Waiter>)>) {
        for (digest, answer) in answers {
            match answer {
                Answer::Holders(sessions, waiter) => {
                    let address = |session| {
                        self.sessions.get(session).map(|session| session.peer_address.clone())
                    };
                    let addresses = sessions.into_iter().filter_map(address).collect();
                    waiter.answer(Place::Peers(wire::Peers { addresses }));
                }
                Answer::Grant(waiter) => {
                    let place = match self.lender_of(&digest, waiter.job) {
                        Some(build_id) => Place::LenderBuild(build_id),
                        None => Place::Lost("no connected client has it".to_owned()),
                    };
                    waiter.answer(place);
                }
            }
        }
    }

    /// A running build whose client declared a blob; the asker's own if it did.
    fn lender_of(&self, digest: &Digest, job: Option<JobRef>) -> Option<String> {
        let own = job.and_then(|job| self.builds.get(&job.build));
        own.into_iter()
            .chain(self.builds.values())
            .find(|build| build.declared.contains(digest))
            .map(|build| build.public_id.clone())
    }

    pub(super) fn blobs_held(&mut self, session: SessionId, held: &wire::BlobsHeld) {
        let reachable =
            self.sessions.get(session).is_some_and(|session| !session.peer_address.is_empty());
        let Ok(digests) = distbuild_proto::convert::digests(&held.digests) else {
            return;
        };
        if reachable {
            let answers = self.locator.held(session, digests);
            self.answer_located(answers);
        } else {
            let now = self.now_ms();
            let answers = self.locator.redeemed_unreachably(now, session, digests);
            self.answer_located(answers);
        }
    }

    pub(super) fn blobs_evicted(&mut self, session: SessionId, evicted: &wire::BlobsEvicted) {
        if let Ok(digests) = distbuild_proto::convert::digests(&evicted.digests) {
            self.locator.evicted(session, digests);
        }
    }

    /// The client or the worker that wants to lend proves who it is.
    pub(super) fn may_lend(&self, request: &wire::LendRequest) -> bool {
        match &request.body {
            Some(wire::lend_request::Body::Build(lender)) => self
                .build_by_name(&lender.build_id)
                .and_then(|build| self.builds.get(&build))
                .is_some_and(|build| build.secret == lender.secret),
            Some(wire::lend_request::Body::Worker(lender)) => {
                self.sessions.secret(lender.session) == Some(&lender.secret)
            }
            Some(wire::lend_request::Body::Delivery(_)) | None => false,
        }
    }

    /// Forgets a store whose session has ended; finished jobs that relied on it alone are lost.
    pub(super) fn store_gone(&mut self, store: distbuild_sched::StoreId) {
        let mut lost = Vec::new();
        let mut emptied = Vec::new();
        for (root, entry) in &mut self.trees {
            if entry.stores.remove(&store) && entry.stores.is_empty() {
                lost.extend(entry.jobs.iter().copied());
                emptied.push(*root);
            }
        }
        for root in emptied {
            if self.trees.get(&root).is_some_and(|entry| entry.jobs.is_empty()) {
                self.trees.remove(&root);
            }
        }
        self.outputs_lost(lost);
    }

    /// Nobody has the outputs of these finished jobs any more.
    pub(super) fn outputs_lost(&mut self, jobs: Vec<JobRef>) {
        let now = self.now();
        for job in jobs {
            self.scheduler.handle(now, distbuild_sched::Event::OutputsLost { job });
        }
    }
}
