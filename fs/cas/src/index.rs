//! What the store knows of its files without asking the disk.
//!
//! An entry says which variants of a blob are there and whether their bytes were hashed in the life
//! of this process; what was hashed is remembered with the file's identity, so that a file that was
//! touched since is told from one that was not. The order of the entries is the order of last use. The index is a cache of the
//! disk and may know less than it: a blob without an entry may still be there, an entry without a
//! file is removed when the file is found missing. Every change of a blob's name on disk happens
//! under the lock around the index, so the two never disagree for a thread that holds it.
//!
//! Does no I/O.

use std::collections::{HashMap, VecDeque};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use distbuild_proto::Digest;
use lru::LruCache;

use crate::layout::Variant;

/// How many removed blobs are remembered until somebody asks; 48 bytes each.
const REMOVED_KEPT: usize = 65_536;
/// What files take on disk comes in blocks of this many bytes.
const BLOCK_BYTES: u64 = 4096;

/// The file whose bytes were hashed, as it was then: whoever changes the bytes, changes this, and
/// giving the modification time back changes the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    inode: u64,
    size_bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    pub(crate) fn of(file: &Metadata) -> Self {
        Self {
            inode: file.ino(),
            size_bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// What is known of one file of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Nothing: ask the disk.
    Unknown,
    /// The file is there and has the right size.
    Present,
    /// The bytes were hashed by this process, too, when the file was this one. Whoever hands the
    /// bytes out compares.
    Verified(Identity),
}

/// One blob of which at least one file is there.
#[derive(Debug)]
pub(crate) struct Entry {
    variants: [Presence; 2],
    /// Seconds since 1970 at which the file's own time stamp was last brought up to date.
    stamped_at: u64,
}

impl Entry {
    /// Takes in what is known of a file and says how many bytes that adds to what is used. That a
    /// file is there does not take away from what was known of it.
    fn learn(&mut self, digest: &Digest, variant: Variant, presence: Presence) -> u64 {
        let known = &mut self.variants[variant as usize];
        let news = *known == Presence::Unknown && presence != Presence::Unknown;
        if news || presence != Presence::Present {
            *known = presence;
        }
        if news { allocated_bytes(digest) } else { 0 }
    }
}

/// Blobs that left the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// The blobs, oldest removal first.
    pub digests: Vec<Digest>,
    /// How many removals before these were not kept because nobody asked for so long; if not zero,
    /// whoever mirrors the store's contents must compare anew.
    pub lost: u64,
}

/// The index; see the module.
#[derive(Debug)]
pub(crate) struct Index {
    entries: LruCache<Digest, Entry>,
    pins: HashMap<Digest, u32>,
    used_bytes: u64,
    reserved_bytes: u64,
    removed: VecDeque<Digest>,
    removed_lost: u64,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            entries: LruCache::unbounded(),
            pins: HashMap::new(),
            used_bytes: 0,
            reserved_bytes: 0,
            removed: VecDeque::new(),
            removed_lost: 0,
        }
    }

    /// What is known of a file; counts as a use of the blob.
    pub(crate) fn presence(&mut self, digest: &Digest, variant: Variant) -> Presence {
        match self.entries.get(digest) {
            Some(entry) => entry.variants[variant as usize],
            None => Presence::Unknown,
        }
    }

    /// Notes that a file is there; its time stamp is `stamped_at` if this is news.
    pub(crate) fn record(
        &mut self,
        digest: &Digest,
        variant: Variant,
        presence: Presence,
        stamped_at: u64,
    ) {
        let entry = self
            .entries
            .get_or_insert_mut(*digest, || Entry { variants: [Presence::Unknown; 2], stamped_at });
        self.used_bytes += entry.learn(digest, variant, presence);
    }

    /// Notes a file that a scan found: no use of the blob, and a blob without an entry becomes the
    /// one used least recently.
    pub(crate) fn record_as_oldest(&mut self, digest: &Digest, variant: Variant, stamped_at: u64) {
        if let Some(entry) = self.entries.peek_mut(digest) {
            self.used_bytes += entry.learn(digest, variant, Presence::Present);
        } else {
            self.record(digest, variant, Presence::Present, stamped_at);
            self.entries.demote(digest);
        }
    }

    pub(crate) fn knows(&self, digest: &Digest, variant: Variant) -> bool {
        self.entries
            .peek(digest)
            .is_some_and(|entry| entry.variants[variant as usize] != Presence::Unknown)
    }

    /// Whether the file's time stamp is older than `interval_s`; if so it counts as renewed.
    pub(crate) fn stamp_is_due(&mut self, digest: &Digest, now: u64, interval_s: u64) -> bool {
        let Some(entry) = self.entries.peek_mut(digest) else {
            return false;
        };
        let due = now.saturating_sub(entry.stamped_at) >= interval_s;
        if due {
            entry.stamped_at = now;
        }
        due
    }

    /// The identity of a file changed from one to another by our own doing.
    pub(crate) fn follow(
        &mut self,
        digest: &Digest,
        variant: Variant,
        from: Identity,
        to: Identity,
    ) {
        if let Some(entry) = self.entries.peek_mut(digest)
            && entry.variants[variant as usize] == Presence::Verified(from)
        {
            entry.variants[variant as usize] = Presence::Verified(to);
        }
    }

    /// Forgets one file. Says whether the blob has no file left that we know of.
    pub(crate) fn forget(&mut self, digest: &Digest, variant: Variant) -> bool {
        let Some(entry) = self.entries.peek_mut(digest) else {
            self.log_removal(digest);
            return true;
        };
        let known = &mut entry.variants[variant as usize];
        if *known != Presence::Unknown {
            *known = Presence::Unknown;
            self.used_bytes = self.used_bytes.saturating_sub(allocated_bytes(digest));
        }
        let gone = entry.variants == [Presence::Unknown; 2];
        if gone {
            self.entries.pop(digest);
            self.log_removal(digest);
        }
        gone
    }

    /// The blob used least recently that nobody has pinned, with the files it has. Pinned ones
    /// that are met count as used now, so a pass looks at each once; `budget` bounds the pass.
    pub(crate) fn oldest_unpinned(&mut self, budget: &mut usize) -> Option<(Digest, [bool; 2])> {
        while *budget > 0 {
            *budget -= 1;
            let (digest, entry) = self.entries.peek_lru()?;
            let digest = *digest;
            if !self.pins.contains_key(&digest) {
                return Some((digest, entry.variants.map(|known| known != Presence::Unknown)));
            }
            self.entries.promote(&digest);
        }
        None
    }

    /// Puts the blob out of the way of an eviction that cannot remove it.
    pub(crate) fn promote(&mut self, digest: &Digest) {
        self.entries.promote(digest);
    }

    pub(crate) fn pin(&mut self, digest: &Digest) {
        *self.pins.entry(*digest).or_insert(0) += 1;
    }

    pub(crate) fn unpin(&mut self, digest: &Digest) {
        if let Some(count) = self.pins.get_mut(digest) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(digest);
            }
        }
    }

    pub(crate) fn pinned(&self) -> usize {
        self.pins.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What the known files take on disk.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// What files and unfinished files take together.
    pub(crate) fn claimed_bytes(&self) -> u64 {
        self.used_bytes + self.reserved_bytes
    }

    pub(crate) fn reserve(&mut self, bytes: u64) {
        self.reserved_bytes += bytes;
    }

    pub(crate) fn release(&mut self, bytes: u64) {
        self.reserved_bytes = self.reserved_bytes.saturating_sub(bytes);
    }

    fn log_removal(&mut self, digest: &Digest) {
        if self.removed.len() == REMOVED_KEPT {
            self.removed.pop_front();
            self.removed_lost += 1;
        }
        self.removed.push_back(*digest);
    }

    pub(crate) fn drain_removed(&mut self) -> Evicted {
        Evicted {
            digests: self.removed.drain(..).collect(),
            lost: std::mem::take(&mut self.removed_lost),
        }
    }
}

/// What a file of the blob takes on disk, in bytes.
pub(crate) fn allocated_bytes(digest: &Digest) -> u64 {
    digest.size_bytes().div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;

    use super::*;

    fn digest(number: u32) -> Digest {
        DigestFunction::Blake3.digest(&number.to_le_bytes())
    }

    fn record(index: &mut Index, number: u32) {
        index.record(&digest(number), Variant::Plain, Presence::Present, 0);
    }

    fn verified(path: &str) -> Presence {
        Presence::Verified(Identity::of(&std::fs::metadata(path).unwrap()))
    }

    #[test]
    fn what_is_verified_anew_takes_the_place_of_what_was_and_a_look_does_not() {
        let mut index = Index::new();
        let (blob, variant) = (digest(1), Variant::Plain);
        record(&mut index, 1);
        for known in [verified("/"), verified("/proc")] {
            index.record(&blob, variant, known, 0);
            record(&mut index, 1);
            index.record_as_oldest(&blob, variant, 0);
            assert_eq!(index.presence(&blob, variant), known);
        }
        assert_eq!(index.used_bytes(), 4096);
    }

    #[test]
    fn the_oldest_unpinned_blob_goes_first_and_pins_are_counted() {
        let mut index = Index::new();
        (0..3).for_each(|number| record(&mut index, number));
        index.pin(&digest(0));
        index.pin(&digest(0));
        index.unpin(&digest(0));
        let mut budget = 10;
        assert_eq!(index.oldest_unpinned(&mut budget).unwrap().0, digest(1));
        index.unpin(&digest(0));
        index.presence(&digest(1), Variant::Plain);
        assert_eq!(index.oldest_unpinned(&mut budget).unwrap().0, digest(2));
    }

    #[test]
    fn a_pass_over_pinned_blobs_ends() {
        let mut index = Index::new();
        (0..3).for_each(|number| {
            record(&mut index, number);
            index.pin(&digest(number));
        });
        assert_eq!(index.oldest_unpinned(&mut index.len().clone()), None);
    }

    #[test]
    fn both_files_of_a_blob_count_and_a_removal_is_told_once() {
        let mut index = Index::new();
        record(&mut index, 1);
        record(&mut index, 1);
        index.record(&digest(1), Variant::Executable, verified("/"), 0);
        assert_eq!(index.used_bytes(), 8192);
        assert!(!index.forget(&digest(1), Variant::Plain));
        assert!(index.forget(&digest(1), Variant::Executable));
        assert_eq!(index.used_bytes(), 0);
        assert_eq!(index.drain_removed().digests, [digest(1)]);
        assert!(index.drain_removed().digests.is_empty());
    }

    #[test]
    fn a_blob_found_by_the_scan_is_older_than_what_is_in_use() {
        let mut index = Index::new();
        record(&mut index, 1);
        index.record_as_oldest(&digest(3), Variant::Plain, 0);
        index.record_as_oldest(&digest(2), Variant::Plain, 0);
        let order: Vec<_> = std::iter::from_fn(|| {
            let (digest, _) = index.oldest_unpinned(&mut 1)?;
            index.forget(&digest, Variant::Plain);
            Some(digest)
        })
        .collect();
        assert_eq!(order, [digest(2), digest(3), digest(1)]);
    }
}
