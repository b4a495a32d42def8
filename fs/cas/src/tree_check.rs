//! Whole trees: is everything there that a root reaches, and keep it there.
//!
//! Both answers are remembered. A directory that was found **complete** is complete as long as no
//! blob leaves the store: the answer carries the store's generation. A **held** tree is pinned blob
//! by blob, each directory counted once for each lease and each held parent, so a second lease of
//! a tree, or of one that shares subtrees, touches only what is new. A tree whose last lease ends
//! stays held as *idle*: it costs memory, not room, since an eviction first drops all idle trees.
//!
//! A tree that is known to be complete can be **claimed**: leased by its root alone, without a look at
//! what it reaches. An eviction first turns claims into holds, and while one runs there are no new
//! claims. So a process that confirms ten thousand results and evicts nothing reads none of them;
//! [`crate::remembered`] brings what one process knew to the next.
//!
//! Damage beats leases. A held tree therefore remembers the count of damaged blobs at which it was
//! last found complete, and is walked again when that has grown.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;

use distbuild_proto::{Digest, Directory};
use lru::LruCache;

use crate::disk::{DiskStore, Shared};
use crate::error::StoreError;
use crate::index::Index;

/// How many missing blobs one answer names.
pub const MISSING_LISTED: usize = 1000;
/// How many directories' children are remembered.
const CHILDREN_REMEMBERED: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// How many complete directories are remembered, 100 bytes each.
const COMPLETE_REMEMBERED: NonZeroUsize = NonZeroUsize::new(262_144).expect("not zero");
/// Idle trees are dropped, oldest first, while more blobs than this are held; 100 bytes each.
const HELD_WITH_IDLE: usize = 1 << 20;
/// How many idle trees are kept.
const IDLE_KEPT: usize = 1024;

/// What a root lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// Nothing: every blob it reaches is there.
    Complete,
    /// These blobs.
    Missing(Missing),
}

/// Blobs that a tree reaches and the store does not hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{count} blobs of the tree are missing, among them {}", first(.digests))]
pub struct Missing {
    /// The first [`MISSING_LISTED`] of them, each once. What lies below a missing directory is not known.
    pub digests: Vec<Digest>,
    /// How many there are.
    pub count: u64,
}

/// Why a tree could not be leased.
#[derive(Debug, thiserror::Error)]
pub enum LeaseTreeError {
    /// It is not complete.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Keeps everything that a root reaches in the store until it is dropped.
#[derive(Debug)]
pub struct TreeLease {
    shared: Arc<Shared>,
    root: Digest,
    /// Of the root alone, unless an eviction has made a hold of it.
    claim: bool,
}

/// What is remembered of trees; see the module.
#[derive(Debug)]
pub(crate) struct Trees {
    children: LruCache<Digest, Arc<Children>>,
    complete: LruCache<Digest, u64>,
    held: HashMap<Digest, Held>,
    held_blobs: usize,
    idle: VecDeque<Digest>,
    /// Leases by the root alone.
    claimed: HashMap<Digest, u32>,
    /// Evictions that run.
    evictions: u32,
    /// Something is complete that the list on disk does not say.
    news: bool,
}

/// The digests in one directory.
#[derive(Debug, Default)]
struct Children {
    blobs: Box<[Digest]>,
    directories: Box<[Digest]>,
}

#[derive(Debug)]
struct Held {
    /// Leases of this directory as a root, and held parents, by occurrence.
    references: u32,
    /// The number of damaged blobs at which it was last found complete, if it ever was.
    complete_at: Option<u64>,
    idle: bool,
    children: Arc<Children>,
}

impl DiskStore {
    /// Whether the store holds everything that a directory reaches. Costs one look-up if that was
    /// known and nothing left the store since.
    ///
    /// # Errors
    /// A blob that should be a directory is something else; the disk failed.
    pub fn complete(&self, root: &Digest) -> Result<Completeness, StoreError> {
        self.shared.complete(root)
    }

    /// Leases everything that a directory reaches, if all of it is there.
    ///
    /// # Errors
    /// What is missing, or as [`Self::complete`].
    pub fn lease_tree(&self, root: &Digest) -> Result<TreeLease, LeaseTreeError> {
        // Reads the directories before the trees are locked.
        if let Completeness::Missing(missing) = self.shared.complete(root)? {
            return Err(missing.into());
        }
        let mut lacking = Lacking::default();
        let held = self.shared.hold(root, &mut lacking);
        let lease = TreeLease { shared: self.shared.clone(), root: *root, claim: false };
        held?;
        // Something may have left between the look and the hold; not after it.
        match lacking.completeness() {
            Completeness::Complete => Ok(lease),
            Completeness::Missing(missing) => {
                // Or what was known of it was wrong, and so may be what is known of others.
                self.shared.count_damage();
                Err(missing.into())
            }
        }
    }
}

impl DiskStore {
    /// Leases a tree as [`Self::lease_tree`] does, but takes what is known of it for granted: blobs that
    /// somebody has removed by hand since are missed by who reads them.
    ///
    /// # Errors
    /// As for [`Self::lease_tree`].
    pub fn claim_tree(&self, root: &Digest) -> Result<TreeLease, LeaseTreeError> {
        if self.shared.claim(root) {
            return Ok(TreeLease { shared: self.shared.clone(), root: *root, claim: true });
        }
        self.lease_tree(root)
    }
}

impl TreeLease {
    /// The root of the leased tree.
    pub fn root(&self) -> &Digest {
        &self.root
    }
}

impl Drop for TreeLease {
    fn drop(&mut self) {
        self.shared.release_tree(&self.root, self.claim);
        self.shared.released();
    }
}

impl Trees {
    pub(crate) fn new() -> Self {
        Self {
            children: LruCache::new(CHILDREN_REMEMBERED),
            complete: LruCache::new(COMPLETE_REMEMBERED),
            held: HashMap::new(),
            held_blobs: 0,
            idle: VecDeque::new(),
            claimed: HashMap::new(),
            evictions: 0,
            news: false,
        }
    }

    /// Takes over what was complete when the store was opened; the tree used last comes first.
    pub(crate) fn recall(&mut self, roots: Vec<Digest>, generation: u64) {
        for root in roots.into_iter().rev() {
            self.complete.put(root, generation);
        }
    }

    /// What is complete at this generation, the tree used last first; none if there is no news.
    pub(crate) fn news(&mut self, generation: u64, most: usize) -> Option<Vec<Digest>> {
        let complete = self.complete.iter().filter(|(_, at)| **at == generation);
        std::mem::take(&mut self.news).then(|| complete.take(most).map(|(root, _)| *root).collect())
    }

    #[cfg(test)]
    pub(crate) fn claims(&self, root: &Digest) -> u32 {
        self.claimed.get(root).copied().unwrap_or(0)
    }

    /// Whether the tree is known to be complete at this generation and count of damages.
    pub(crate) fn known_complete(&mut self, root: &Digest, generation: u64, damage: u64) -> bool {
        self.complete.get(root) == Some(&generation)
            || self.held.get(root).is_some_and(|held| held.complete_at == Some(damage))
    }

    /// Takes one reference away from a directory; without any, from what it holds, too.
    fn release(&mut self, root: &Digest, index: &mut Index) {
        let mut left = vec![*root];
        while let Some(digest) = left.pop() {
            let Some(held) = self.held.get_mut(&digest) else {
                continue;
            };
            held.references = held.references.saturating_sub(1);
            if held.references > 0 {
                continue;
            }
            if let Some(held) = self.held.remove(&digest) {
                index.unpin(&digest);
                held.children.blobs.iter().for_each(|blob| index.unpin(blob));
                self.held_blobs = self.held_blobs.saturating_sub(1 + held.children.blobs.len());
                left.extend_from_slice(&held.children.directories);
            }
        }
    }

    /// Drops the idle tree that became idle first; says whether there was one.
    fn drop_oldest_idle(&mut self, index: &mut Index) -> bool {
        let Some(root) = self.idle.pop_front() else {
            return false;
        };
        if let Some(held) = self.held.get_mut(&root) {
            held.idle = false;
        }
        self.release(&root, index);
        true
    }
}

impl Shared {
    pub(crate) fn complete(&self, root: &Digest) -> Result<Completeness, StoreError> {
        // Before the walk: what leaves during it makes the answer old.
        let (generation, damage) = (self.generation(), self.damage());
        let mut lacking = Lacking::default();
        let mut seen = HashSet::from([*root]);
        let mut left = vec![*root];
        let mut walked = Vec::new();
        while let Some(digest) = left.pop() {
            if self.trees.lock().known_complete(&digest, generation, damage) {
                continue;
            }
            let Some(children) = self.children(&digest, &mut lacking)? else {
                continue;
            };
            for blob in &children.blobs {
                if seen.insert(*blob) && !self.contains(blob)? {
                    lacking.add(blob);
                }
            }
            let new = children.directories.iter().filter(|child| seen.insert(**child));
            left.extend(new.copied());
            walked.push(digest);
        }
        let answer = lacking.completeness();
        if answer == Completeness::Complete {
            let mut trees = self.trees.lock();
            for digest in walked {
                trees.news |= trees.complete.put(digest, generation) != Some(generation);
                if let Some(held) = trees.held.get_mut(&digest) {
                    held.complete_at = Some(damage);
                }
            }
        }
        Ok(answer)
    }

    /// Adds a reference to a tree, pinning what is not held yet. Whatever the outcome, the
    /// reference is there and is to be released.
    fn hold(&self, root: &Digest, lacking: &mut Lacking) -> Result<(), StoreError> {
        self.hold_in(&mut self.trees.lock(), root, lacking)
    }

    /// As [`Self::hold`], for who has locked the trees.
    fn hold_in(
        &self,
        trees: &mut Trees,
        root: &Digest,
        lacking: &mut Lacking,
    ) -> Result<(), StoreError> {
        let damage = self.damage();
        let mut left = vec![*root];
        let mut new = Vec::new();
        let mut outcome = Ok(());
        while let Some(digest) = left.pop() {
            if let Some(held) = trees.held.get_mut(&digest) {
                // An idle tree gives its reference to this lease.
                if held.idle {
                    held.idle = false;
                    trees.idle.retain(|idle| *idle != digest);
                } else {
                    held.references += 1;
                }
                continue;
            }
            self.index.lock().pin(&digest);
            let children = match self.children_in(trees, &digest, lacking) {
                Ok(children) => children.unwrap_or_default(),
                Err(error) => {
                    outcome = Err(error);
                    Arc::default()
                }
            };
            {
                let mut index = self.index.lock();
                children.blobs.iter().for_each(|blob| index.pin(blob));
            }
            for blob in &children.blobs {
                match self.contains(blob) {
                    Ok(true) => {}
                    Ok(false) => lacking.add(blob),
                    Err(error) => outcome = Err(error),
                }
            }
            left.extend_from_slice(&children.directories);
            trees.held_blobs += 1 + children.blobs.len();
            let held = Held { references: 1, complete_at: None, idle: false, children };
            trees.held.insert(digest, held);
            new.push(digest);
        }
        if outcome.is_ok() && lacking.missing.count == 0 {
            for digest in new {
                if let Some(held) = trees.held.get_mut(&digest) {
                    held.complete_at = Some(damage);
                }
            }
        }
        outcome
    }

    fn release_tree(&self, root: &Digest, claim: bool) {
        let damage = self.damage();
        let mut trees = self.trees.lock();
        let trees = &mut *trees;
        if let Some(count) = trees.claimed.get_mut(root).filter(|_| claim) {
            *count -= 1;
            if *count == 0 {
                trees.claimed.remove(root);
            }
            return;
        }
        let Some(held) = trees.held.get_mut(root) else {
            return;
        };
        if held.references == 1 && held.complete_at == Some(damage) {
            held.idle = true;
            trees.idle.push_back(*root);
        } else {
            trees.release(root, &mut self.index.lock());
        }
        while trees.idle.len() > IDLE_KEPT
            || (trees.held_blobs > HELD_WITH_IDLE && !trees.idle.is_empty())
        {
            trees.drop_oldest_idle(&mut self.index.lock());
        }
    }

    /// Leases a tree by its root, if it is known to be complete and nothing is about to go.
    fn claim(&self, root: &Digest) -> bool {
        let (generation, damage) = (self.generation(), self.damage());
        let mut trees = self.trees.lock();
        let known = trees.evictions == 0 && trees.known_complete(root, generation, damage);
        if known {
            *trees.claimed.entry(*root).or_insert(0) += 1;
        }
        known
    }

    /// From here on until the end of what this returns nobody claims a tree.
    pub(crate) fn begin_eviction(&self) -> Evicting<'_> {
        self.trees.lock().evictions += 1;
        Evicting(self)
    }

    /// Pins what claimed trees reach.
    pub(crate) fn hold_claimed_trees(&self) {
        let mut trees = self.trees.lock();
        for (root, count) in std::mem::take(&mut trees.claimed) {
            for _ in 0..count {
                // What is missing cannot be pinned; who reads it finds out.
                if let Err(error) = self.hold_in(&mut trees, &root, &mut Lacking::default()) {
                    tracing::warn!(tree.root = %root, %error, "failed to pin a tree");
                }
            }
        }
    }

    /// Lets everything go that no lease needs.
    pub(crate) fn drop_idle_trees(&self) {
        let mut trees = self.trees.lock();
        let mut index = self.index.lock();
        while trees.drop_oldest_idle(&mut index) {}
    }

    fn children(
        &self,
        digest: &Digest,
        lacking: &mut Lacking,
    ) -> Result<Option<Arc<Children>>, StoreError> {
        if let Some(children) = self.trees.lock().children.get(digest).cloned() {
            return self.if_there(digest, children, lacking);
        }
        let children = self.load_children(digest, lacking)?;
        if let Some(children) = &children {
            self.trees.lock().children.put(*digest, children.clone());
        }
        Ok(children)
    }

    /// As [`Self::children`], for who has locked the trees.
    fn children_in(
        &self,
        trees: &mut Trees,
        digest: &Digest,
        lacking: &mut Lacking,
    ) -> Result<Option<Arc<Children>>, StoreError> {
        match trees.children.get(digest).cloned() {
            Some(children) => self.if_there(digest, children, lacking),
            None => self.load_children(digest, lacking),
        }
    }

    /// A directory whose children are known may have left the store all the same.
    fn if_there(
        &self,
        digest: &Digest,
        children: Arc<Children>,
        lacking: &mut Lacking,
    ) -> Result<Option<Arc<Children>>, StoreError> {
        if self.contains(digest)? {
            return Ok(Some(children));
        }
        lacking.add(digest);
        Ok(None)
    }

    fn load_children(
        &self,
        digest: &Digest,
        lacking: &mut Lacking,
    ) -> Result<Option<Arc<Children>>, StoreError> {
        let blob = match self.read(digest) {
            Ok(blob) => blob,
            Err(error) if error.is_missing() => {
                lacking.add(digest);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let directory = Directory::decode(digest.function(), &blob)
            .map_err(|source| StoreError::NotDirectory { digest: *digest, source })?;
        Ok(Some(Arc::new(Children {
            blobs: directory.files().iter().map(|file| file.digest).collect(),
            directories: directory.directories().iter().map(|node| node.digest).collect(),
        })))
    }
}

/// An eviction that runs.
pub(crate) struct Evicting<'a>(&'a Shared);

impl Drop for Evicting<'_> {
    fn drop(&mut self) {
        self.0.trees.lock().evictions -= 1;
    }
}

/// Collects what is missing.
#[derive(Default)]
struct Lacking {
    missing: Missing,
}

impl Lacking {
    fn add(&mut self, digest: &Digest) {
        self.missing.count += 1;
        if self.missing.digests.len() < MISSING_LISTED {
            self.missing.digests.push(*digest);
        }
    }

    fn completeness(self) -> Completeness {
        match self.missing.count {
            0 => Completeness::Complete,
            _ => Completeness::Missing(self.missing),
        }
    }
}

fn first(digests: &[Digest]) -> String {
    digests.first().map(Digest::to_string).unwrap_or_default()
}
