//! Is a result that the cache names still whole? Only the workers know.
//!
//! A cache entry is a claim: output tree and large outputs exist on the stores it names. Each check is
//! one message a worker for any number of claims; what a worker confirms it pins for the build. A
//! worker that does not answer in time confirms nothing.

use std::collections::{BTreeMap, BTreeSet};

use distbuild_proto::wire::{Decision, to_worker};
use distbuild_proto::{Digest, wire};
use distbuild_sched as sched;
use distbuild_sched::{JobRef, StoreId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::explain::Explained;
use super::observed::Observed;
use super::{Core, Message};
use crate::locator::Session as SessionId;
use crate::state::CachedResult;

/// Contents that a result says exist.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim {
    /// The output tree; none claims nothing.
    pub(crate) root: Option<Digest>,
    /// Beside it.
    pub(crate) blobs: Vec<Digest>,
    /// Names of the stores that may have them.
    pub(crate) holders: Vec<String>,
}

impl Claim {
    /// What a cached result claims.
    pub(crate) fn of(cached: &CachedResult) -> Self {
        let digest = |wire: &Option<wire::Digest>| {
            wire.as_ref().and_then(|digest| Digest::try_from(digest).ok())
        };
        let content = |content: &Option<wire::Content>| {
            content.as_ref().and_then(|content| digest(&content.blob))
        };
        let result = &cached.result;
        Self {
            root: digest(&result.output_root),
            blobs: [content(&result.stdout), content(&result.stderr)]
                .into_iter()
                .flatten()
                .collect(),
            holders: cached.holders.clone(),
        }
    }

    /// An empty tree and nothing beside it exist everywhere.
    fn is_trivial(&self) -> bool {
        self.blobs.is_empty() && self.root.is_none_or(|root| root.size_bytes() == 0)
    }
}

/// Where the outcome of a check goes.
pub(super) enum CheckReply {
    /// To a submission that waits.
    Submission(oneshot::Sender<Vec<Option<Vec<StoreId>>>>),
    /// To the core itself: results that may stand for these jobs.
    Jobs(Vec<Hit>),
}

/// A result that the cache names for a job.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(super) job: JobRef,
    pub(super) cached: CachedResult,
    pub(super) by: FoundBy,
}

/// How a result was found.
#[derive(Debug)]
pub(crate) enum FoundBy {
    /// By the action's key.
    Action,
    /// Nothing has changed of what the last of these runs looked at; of the others something has.
    Observed(Vec<wire::ComparedRun>),
}

/// Checks under way.
#[derive(Default)]
pub(super) struct Checks {
    open: BTreeMap<u64, Check>,
    /// Which check, and which of its claims, a request to a worker is about.
    requests: BTreeMap<u64, (u64, SessionId, Vec<usize>)>,
    last_check: u64,
    last_request: u64,
}

struct Check {
    claims: Vec<Claim>,
    found: Vec<Option<Vec<StoreId>>>,
    waiting: BTreeSet<u64>,
    deadline: Instant,
    reply: CheckReply,
}

impl Core {
    /// Asks the holders of claims whether they are whole.
    pub(super) fn check_claims(&mut self, build_id: &str, claims: Vec<Claim>, reply: CheckReply) {
        let mut by_session: BTreeMap<SessionId, Vec<usize>> = BTreeMap::new();
        let mut found = Vec::with_capacity(claims.len());
        for (at, claim) in claims.iter().enumerate() {
            found.push(claim.is_trivial().then(Vec::new));
            if claim.is_trivial() {
                continue;
            }
            for holder in &claim.holders {
                let store = self.sessions.store_id(holder);
                if let Some((session, _)) = self.sessions.of_store(store) {
                    by_session.entry(session).or_default().push(at);
                }
            }
        }
        self.checks.last_check += 1;
        let id = self.checks.last_check;
        let deadline = Instant::now() + self.shared.limits.tree_check;
        let mut check = Check { claims, found, waiting: BTreeSet::new(), deadline, reply };
        let mut messages = Vec::new();
        for (session, of) in by_session {
            self.checks.last_request += 1;
            let request = self.checks.last_request;
            let claims = of.iter().map(|at| wire_claim(&check.claims[*at])).collect();
            let build_id = build_id.to_owned();
            messages.push((session, wire::CheckTrees { request, claims, build_id }));
            check.waiting.insert(request);
            self.checks.requests.insert(request, (id, session, of));
        }
        self.checks.open.insert(id, check);
        for (session, message) in messages {
            self.send_to(session, to_worker::Body::CheckTrees(message));
        }
        self.finish_check_if_done(id);
    }

    pub(super) fn trees_checked(&mut self, session: SessionId, checked: &wire::TreesChecked) {
        let Some((check, _, of)) = self.checks.requests.remove(&checked.request) else {
            return;
        };
        let store = self.sessions.get(session).map(|session| session.store);
        if let Some(entry) = self.checks.open.get_mut(&check) {
            entry.waiting.remove(&checked.request);
            for (at, complete) in of.into_iter().zip(&checked.complete) {
                if *complete == 1
                    && let Some(store) = store
                {
                    entry.found[at].get_or_insert_default().push(store);
                }
            }
        }
        self.finish_check_if_done(check);
    }

    /// A session has ended: it answers nothing any more.
    pub(super) fn checks_of_ended(&mut self, session: SessionId) {
        let gone: Vec<_> = self
            .checks
            .requests
            .iter()
            .filter(|(_, (_, of, _))| *of == session)
            .map(|(request, _)| *request)
            .collect();
        for request in gone {
            let Some((check, _, _)) = self.checks.requests.remove(&request) else {
                continue;
            };
            if let Some(entry) = self.checks.open.get_mut(&check) {
                entry.waiting.remove(&request);
            }
            self.finish_check_if_done(check);
        }
    }

    pub(super) fn expire_checks(&mut self) {
        let now = Instant::now();
        let late: Vec<_> = self
            .checks
            .open
            .iter()
            .filter(|(_, check)| check.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            tracing::warn!("a worker did not say in time which trees it holds");
            if let Some(check) = self.checks.open.get_mut(&id) {
                for request in std::mem::take(&mut check.waiting) {
                    self.checks.requests.remove(&request);
                }
            }
            self.finish_check_if_done(id);
        }
    }

    fn finish_check_if_done(&mut self, id: u64) {
        if !self.checks.open.get(&id).is_some_and(|check| check.waiting.is_empty()) {
            return;
        }
        let Some(check) = self.checks.open.remove(&id) else {
            return;
        };
        for (claim, stores) in check.claims.iter().zip(&check.found) {
            if let (Some(root), Some(stores)) = (claim.root, stores) {
                self.trees.entry(root).or_default().stores.extend(stores);
            }
        }
        match check.reply {
            CheckReply::Submission(reply) => {
                let _ = reply.send(check.found);
            }
            CheckReply::Jobs(jobs) => self.checked(jobs.into_iter().zip(check.found)),
        }
    }

    /// Sends the look-ups that one round has gathered to the database.
    pub(super) fn send_lookups(&mut self) {
        if self.lookups.is_empty() {
            return;
        }
        let lookups = std::mem::take(&mut self.lookups);
        let state = self.shared.state.clone();
        self.spawn_message(async move {
            let keys = lookups.iter().map(|(_, key)| *key).collect();
            let found = state.actions(keys).await.unwrap_or_else(|error| {
                tracing::error!(%error, "failed to look actions up");
                vec![None; lookups.len()]
            });
            let answers = lookups.into_iter().map(|(job, _)| job).zip(found).collect();
            Message::LookedUp { answers }
        });
    }

    /// The database has answered: hits are checked, for the others records may know more.
    pub(super) fn looked_up(&mut self, answers: Vec<(JobRef, Option<CachedResult>)>) {
        let (mut hits, mut questions) = (Vec::new(), Vec::new());
        for (job, cached) in answers {
            match cached {
                Some(cached) => hits.push(Hit { job, cached, by: FoundBy::Action }),
                None => match self.question(job) {
                    Some(question) => questions.push(question),
                    None => {
                        self.explain(job, Decision::NotCompared, Default::default());
                        self.answer_miss(job);
                    }
                },
            }
        }
        self.check_hits(hits);
        if !questions.is_empty() {
            self.ask_records(questions);
        }
    }

    /// What commands looked at was compared: misses run, hits are checked first.
    pub(super) fn observed(&mut self, answers: Vec<Observed>) {
        let mut hits = Vec::new();
        for Observed { job, compared, cached } in answers {
            match cached {
                Some(cached) => hits.push(Hit { job, cached, by: FoundBy::Observed(compared) }),
                None => {
                    let why = Explained { compared, ..Default::default() };
                    self.explain(job, Decision::NotFound, why);
                    self.answer_miss(job);
                }
            }
        }
        self.check_hits(hits);
    }

    fn check_hits(&mut self, hits: Vec<Hit>) {
        let mut by_build: BTreeMap<sched::BuildId, Vec<Hit>> = BTreeMap::new();
        for hit in hits {
            by_build.entry(hit.job.build).or_default().push(hit);
        }
        for (build, hits) in by_build {
            let Some(build) = self.builds.get(&build) else {
                continue;
            };
            let build_id = build.public_id.clone();
            let claims = hits.iter().map(|hit| Claim::of(&hit.cached)).collect();
            self.check_claims(&build_id, claims, CheckReply::Jobs(hits));
        }
    }

    /// The workers have answered about hits by action or by what was looked at.
    fn checked(&mut self, hits: impl Iterator<Item = (Hit, Option<Vec<StoreId>>)>) {
        for (Hit { job, cached, by }, stores) in hits {
            let result = Some(cached.result.clone());
            let outputs_were_lost = stores.is_none();
            let (decision, compared) = match by {
                FoundBy::Action => (Decision::FoundByAction, Vec::new()),
                FoundBy::Observed(compared) => (Decision::FoundByObservedInputs, compared),
            };
            self.explain(job, decision, Explained { result, compared, outputs_were_lost });
            match stores {
                Some(holders) => {
                    let stood = decision == Decision::FoundByObservedInputs;
                    self.answer_hit(job, cached, holders, stood);
                }
                None => self.answer_miss(job),
            }
        }
    }
}

fn wire_claim(claim: &Claim) -> wire::TreeClaim {
    wire::TreeClaim {
        root: claim.root.map(Into::into),
        blobs: claim.blobs.iter().map(|digest| (*digest).into()).collect(),
    }
}
