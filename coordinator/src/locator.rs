//! Who has which source blob, so that the client sends each about once.
//!
//! The first worker that asks for a blob which only a client can lend gets a *grant*: the right to
//! fetch it from the client before a deadline. Everybody else who asks meanwhile waits, and is sent
//! to a peer that has it. A grant that is not redeemed in time goes to the next in line. The table is
//! bounded and may forget holders; forgetting costs a second fetch, never a wrong answer.
//!
//! Pure: no clock, no channels. `W` is whatever the owner needs to answer a waiting request.

use std::collections::{BTreeMap, BTreeSet};

use distbuild_proto::Digest;

/// Holders that an answer names at most.
const PEERS_PER_ANSWER: usize = 3;

/// A worker session, as the registry numbers them.
pub(crate) type Session = u64;

/// What the locator says about one blob.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer<W> {
    /// These sessions have it; least burdened first.
    Holders(Vec<Session>, W),
    /// The asker may fetch it from a client; it has until the deadline.
    Grant(W),
}

#[derive(Debug)]
struct Entry<W> {
    /// Sessions that hold the blob, and how often each was named.
    holders: BTreeMap<Session, u32>,
    grant: Option<(Session, u64)>,
    waiting: Vec<(Session, W)>,
    last_used: u64,
}

impl<W> Default for Entry<W> {
    fn default() -> Self {
        Self { holders: BTreeMap::new(), grant: None, waiting: Vec::new(), last_used: 0 }
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Locator<W> {
    entries: BTreeMap<Digest, Entry<W>>,
    /// Least recently used first; entries that nobody waits for may go.
    by_use: BTreeSet<(u64, Digest)>,
    grants: BTreeSet<(u64, Digest)>,
    uses: u64,
    max_entries: usize,
    grant_ms: u64,
}

impl<W> Locator<W> {
    /// A table of at most `max_entries` blobs (about 200 bytes each); a grant lasts `grant_ms` plus
    /// a millisecond for each 8 KiB of the blob.
    pub(crate) fn new(max_entries: usize, grant_ms: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_use: BTreeSet::new(),
            grants: BTreeSet::new(),
            uses: 0,
            max_entries,
            grant_ms,
        }
    }

    /// Whether a session that asks would be sent to a holder at once.
    pub(crate) fn is_held(&self, digest: &Digest, session: Session, failed: &[Session]) -> bool {
        let others = |holder: &Session| *holder != session && !failed.contains(holder);
        self.entries.get(digest).is_some_and(|entry| entry.holders.keys().any(others))
    }

    /// A session asks for a blob; `failed` are holders that it has asked in vain. None: it waits.
    pub(crate) fn ask(
        &mut self,
        now_ms: u64,
        session: Session,
        digest: Digest,
        failed: &[Session],
        waiter: W,
    ) -> Option<Answer<W>> {
        self.touch(digest);
        let entry = self.entries.entry(digest).or_default();
        for holder in failed {
            entry.holders.remove(holder);
        }
        entry.holders.remove(&session);
        if !entry.holders.is_empty() {
            return Some(Answer::Holders(name_holders(entry), waiter));
        }
        match entry.grant {
            Some((granted, _)) if granted != session => {
                entry.waiting.push((session, waiter));
                None
            }
            _ => {
                self.grant(now_ms, session, digest);
                Some(Answer::Grant(waiter))
            }
        }
    }

    /// A session has blobs now; answers those who waited for them.
    pub(crate) fn held(
        &mut self,
        session: Session,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Vec<(Digest, Answer<W>)> {
        let mut answers = Vec::new();
        for digest in digests {
            self.touch(digest);
            let entry = self.entries.entry(digest).or_default();
            entry.holders.entry(session).or_default();
            if let Some((_, deadline)) = entry.grant.take() {
                self.grants.remove(&(deadline, digest));
            }
            for (_, waiter) in std::mem::take(&mut entry.waiting) {
                answers.push((digest, Answer::Holders(name_holders(entry), waiter)));
            }
        }
        answers
    }

    /// A session has blobs that no peer can fetch from it: its grants are redeemed, and the next who
    /// waits fetches for itself.
    pub(crate) fn redeemed_unreachably(
        &mut self,
        now_ms: u64,
        session: Session,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Vec<(Digest, Answer<W>)> {
        let mut answers = Vec::new();
        for digest in digests {
            let Some(entry) = self.entries.get_mut(&digest) else {
                continue;
            };
            if let Some((granted, deadline)) = entry.grant
                && granted == session
            {
                entry.grant = None;
                self.grants.remove(&(deadline, digest));
                answers.extend(self.regrant(now_ms, digest));
            }
        }
        answers
    }

    /// A session no longer has these.
    pub(crate) fn evicted(&mut self, session: Session, digests: impl IntoIterator<Item = Digest>) {
        for digest in digests {
            if let Some(entry) = self.entries.get_mut(&digest) {
                entry.holders.remove(&session);
            }
        }
    }

    /// A session has ended: it holds nothing, waits for nothing, and its grants go to the next.
    pub(crate) fn session_ended(
        &mut self,
        now_ms: u64,
        session: Session,
    ) -> Vec<(Digest, Answer<W>)> {
        let mut freed = Vec::new();
        for (digest, entry) in &mut self.entries {
            entry.holders.remove(&session);
            entry.waiting.retain(|(waiting, _)| *waiting != session);
            if let Some((granted, deadline)) = entry.grant
                && granted == session
            {
                entry.grant = None;
                freed.push((deadline, *digest));
            }
        }
        for grant in &freed {
            self.grants.remove(grant);
        }
        freed.into_iter().filter_map(|(_, digest)| self.regrant(now_ms, digest)).collect()
    }

    /// Grants that were not redeemed in time go to the next who waits.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<(Digest, Answer<W>)> {
        let mut answers = Vec::new();
        while let Some(&(deadline, digest)) = self.grants.first()
            && deadline <= now_ms
        {
            self.grants.pop_first();
            if let Some(entry) = self.entries.get_mut(&digest) {
                entry.grant = None;
            }
            answers.extend(self.regrant(now_ms, digest));
        }
        answers
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.grants.first().map(|(deadline, _)| *deadline)
    }

    fn regrant(&mut self, now_ms: u64, digest: Digest) -> Option<(Digest, Answer<W>)> {
        let entry = self.entries.get_mut(&digest)?;
        if entry.waiting.is_empty() {
            return None;
        }
        let (session, waiter) = entry.waiting.remove(0);
        self.grant(now_ms, session, digest);
        Some((digest, Answer::Grant(waiter)))
    }

    fn grant(&mut self, now_ms: u64, session: Session, digest: Digest) {
        let Some(entry) = self.entries.get_mut(&digest) else {
            return;
        };
        if let Some((_, deadline)) = entry.grant {
            self.grants.remove(&(deadline, digest));
        }
        let deadline = now_ms + self.grant_ms + digest.size_bytes() / 8192;
        entry.grant = Some((session, deadline));
        self.grants.insert((deadline, digest));
    }

    fn touch(&mut self, digest: Digest) {
        self.uses += 1;
        let entry = self.entries.entry(digest).or_default();
        self.by_use.remove(&(entry.last_used, digest));
        entry.last_used = self.uses;
        self.by_use.insert((self.uses, digest));
        if self.entries.len() > self.max_entries {
            let idle = |entry: &Entry<W>| entry.waiting.is_empty() && entry.grant.is_none();
            let oldest = self
                .by_use
                .iter()
                .take(16)
                .find(|(_, old)| *old != digest && self.entries.get(old).is_some_and(idle))
                .copied();
            if let Some(oldest) = oldest {
                self.by_use.remove(&oldest);
                self.entries.remove(&oldest.1);
            }
        }
    }
}

fn name_holders<W>(entry: &mut Entry<W>) -> Vec<Session> {
    let mut by_burden: Vec<_> =
        entry.holders.iter().map(|(session, named)| (*named, *session)).collect();
    by_burden.sort_unstable();
    by_burden.truncate(PEERS_PER_ANSWER);
    if let Some((_, first)) = by_burden.first()
        && let Some(named) = entry.holders.get_mut(first)
    {
        *named += 1;
    }
    by_burden.into_iter().map(|(_, session)| session).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use distbuild_proto::DigestFunction;

    fn blob() -> Digest {
        DigestFunction::Blake3.digest(b"source")
    }

    fn locator() -> Locator<&'static str> {
        Locator::new(100, 1000)
    }

    #[test]
    fn the_first_asker_fetches_and_the_others_are_sent_to_it() {
        let mut locator = locator();
        assert_eq!(locator.ask(0, 1, blob(), &[], "one"), Some(Answer::Grant("one")));
        assert_eq!(locator.ask(1, 2, blob(), &[], "two"), None);
        assert_eq!(locator.ask(2, 3, blob(), &[], "three"), None);
        let answers = locator.held(1, [blob()]);
        assert_eq!(
            answers,
            [
                (blob(), Answer::Holders(vec![1], "two")),
                (blob(), Answer::Holders(vec![1], "three"))
            ]
        );
        assert_eq!(locator.next_expiry(), None);
    }

    #[test]
    fn readers_are_spread_over_the_holders() {
        let mut locator = locator();
        locator.held(1, [blob()]);
        locator.held(2, [blob()]);
        let first = |answer| match answer {
            Some(Answer::Holders(holders, _)) => holders[0],
            other => panic!("{other:?}"),
        };
        let one = first(locator.ask(0, 7, blob(), &[], ""));
        let two = first(locator.ask(0, 8, blob(), &[], ""));
        assert_ne!(one, two);
    }

    #[test]
    fn a_grant_that_is_not_redeemed_goes_to_the_next_in_line() {
        let mut locator = locator();
        locator.ask(0, 1, blob(), &[], "one");
        locator.ask(0, 2, blob(), &[], "two");
        assert!(locator.expire(999).is_empty());
        assert_eq!(locator.expire(1000), [(blob(), Answer::Grant("two"))]);
    }

    #[test]
    fn a_session_that_ends_passes_its_grant_on_and_holds_nothing() {
        let mut locator = locator();
        locator.ask(0, 1, blob(), &[], "one");
        locator.ask(0, 2, blob(), &[], "two");
        assert_eq!(locator.session_ended(5, 1), [(blob(), Answer::Grant("two"))]);
        locator.held(2, [blob()]);
        locator.session_ended(6, 2);
        assert_eq!(locator.ask(7, 3, blob(), &[], "three"), Some(Answer::Grant("three")));
    }

    #[test]
    fn a_holder_that_was_asked_in_vain_is_forgotten() {
        let mut locator = locator();
        locator.held(1, [blob()]);
        assert_eq!(locator.ask(0, 2, blob(), &[1], "two"), Some(Answer::Grant("two")));
    }

    #[test]
    fn the_table_forgets_the_least_recently_used_beyond_its_bound() {
        let mut locator: Locator<()> = Locator::new(2, 1000);
        let blobs = [&b"a"[..], b"b", b"c"].map(|data| DigestFunction::Blake3.digest(data));
        for blob in blobs {
            locator.held(1, [blob]);
        }
        assert_eq!(locator.entries.len(), 2);
        assert_eq!(locator.ask(0, 2, blobs[0], &[], ()), Some(Answer::Grant(())));
    }
}
