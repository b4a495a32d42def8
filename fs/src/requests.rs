//! What the file system has asked its agent for and was not answered yet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::contents::{BlobKey, Done, Reads, WantError};

/// Open requests by their numbers.
#[derive(Default)]
pub(crate) struct Requests {
    /// In the order of asking.
    waiting: BTreeMap<u64, Request>,
    /// Those of which some has arrived; few, since only large blobs do that.
    arriving: BTreeMap<u64, Request>,
    next: u64,
}

struct Request {
    key: BlobKey,
    /// When it was asked for, or something last arrived.
    since: Instant,
    /// The agent knows that no read waits.
    idle: bool,
    done: Done,
}

impl Requests {
    /// Adds one; gives its number. Forgets those that are older than `deadline`: whoever waited for these
    /// has been told by now that nothing came.
    pub(crate) fn add(&mut self, key: BlobKey, done: Done, deadline: Duration) -> u64 {
        let now = Instant::now();
        let is_old = |request: &Request| now.duration_since(request.since) > deadline;
        while let Some(oldest) = self.waiting.first_entry()
            && is_old(oldest.get())
        {
            drop(oldest.remove());
        }
        self.arriving.retain(|_, request| !is_old(request));
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, Request { key, since: now, idle: false, done });
        number
    }

    /// The request is answered.
    pub(crate) fn take(&mut self, number: u64) -> Option<Done> {
        let request = self.waiting.remove(&number).or_else(|| self.arriving.remove(&number))?;
        Some(request.done)
    }

    /// Something of a blob has arrived; gives which blob it is.
    pub(crate) fn arrived(&mut self, number: u64) -> Option<BlobKey> {
        if let Some(request) = self.waiting.remove(&number) {
            self.arriving.insert(number, request);
        }
        let request = self.arriving.get_mut(&number)?;
        request.since = Instant::now();
        Some(request.key)
    }

    /// The requests for a blob that have to hear which reads wait for it: each is told once that
    /// there are none.
    pub(crate) fn concerned(&mut self, key: &BlobKey, reads: &Reads) -> Vec<u64> {
        let idle = *reads == Reads::Done;
        let tell = |(number, request): (&u64, &mut Request)| {
            let news = request.key == *key && !(idle && request.idle);
            if news {
                request.idle = idle;
            }
            news.then_some(*number)
        };
        self.arriving.iter_mut().filter_map(tell).collect()
    }

    /// Nothing will be answered any more.
    pub(crate) fn fail_all(self) {
        for request in self.waiting.into_values().chain(self.arriving.into_values()) {
            (request.done)(Err(WantError::Gone));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use distbuild_proto::DigestFunction;

    use super::*;
    use crate::contents::BlobKind;

    const LONG: Duration = Duration::from_secs(3600);

    fn key(name: &str) -> BlobKey {
        let digest = DigestFunction::Sha1.digest(name.as_bytes());
        BlobKey { digest, kind: BlobKind::File { executable: false } }
    }

    #[test]
    fn only_what_arrives_is_told_of_reads_and_of_their_end_once() {
        let mut requests = Requests::default();
        let [a, again, b] = ["a", "a", "b"].map(|it| requests.add(key(it), Box::new(|_| ()), LONG));
        let wait = Reads::Wait(0..1);
        assert!(requests.concerned(&key("a"), &wait).is_empty());
        assert_eq!((requests.arrived(a), requests.arrived(b)), (Some(key("a")), Some(key("b"))));
        assert_eq!(requests.concerned(&key("a"), &Reads::Done), [a]);
        assert!(requests.concerned(&key("a"), &Reads::Done).is_empty());
        requests.arrived(again);
        assert_eq!(requests.concerned(&key("a"), &Reads::Done), [again]);
        assert_eq!(requests.concerned(&key("a"), &wait), [a, again]);
        assert_eq!(requests.concerned(&key("a"), &wait), [a, again]);
        assert!(requests.take(a).is_some() && requests.take(a).is_none());
        assert_eq!(requests.arrived(a), None);
    }

    #[test]
    fn what_is_too_old_is_forgotten_and_the_rest_fails_in_the_end() {
        let mut requests = Requests::default();
        let (sender, results) = channel();
        let done = || {
            let sender = sender.clone();
            Box::new(move |result| sender.send(result).unwrap())
        };
        let old = [requests.add(key("a"), done(), LONG), requests.add(key("b"), done(), LONG)];
        requests.arrived(old[1]);
        requests.add(key("c"), done(), Duration::ZERO);
        assert!(old.iter().all(|number| requests.take(*number).is_none()));
        requests.fail_all();
        assert_eq!(results.try_iter().collect::<Vec<_>>(), [Err(WantError::Gone)]);
    }
}
