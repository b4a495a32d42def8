//! Making room: the blobs used least recently go, but none that is leased.
//!
//! A thread of the store wakes when the store grows above the high watermark and removes down to
//! the low one. Leases of other processes cannot be seen here, so blobs are only removed while no
//! other process has the store open ([`crate::lock`]); until then eviction is postponed and the
//! store may grow above its limit, as far as the disk allows.
//!
//! A file loses its name under the lock around the index and its blocks later, outside it.

use std::fs;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use distbuild_proto::Digest;
use nix::sys::statvfs::statvfs;
use parking_lot::{Condvar, Mutex};

use crate::disk::{DiskStore, Shared};
use crate::error::StoreError;
use crate::index::{Index, allocated_bytes};
use crate::layout::Variant;
use crate::temporary::TemporaryFile;

/// After how long a postponed eviction is tried again.
const POSTPONED_RETRY: Duration = Duration::from_secs(30);
/// How often the index is held during one hold of the exclusive lock: who opens the store waits
/// that long.
const HOLDS_PER_LOCK: usize = 32;
/// About how many files go in one hold of the index.
const FILES_PER_HOLD: usize = 32;
/// How many entries are looked at in one hold of the index.
const LOOKS_PER_HOLD: usize = 2048;

/// How an eviction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// So much was removed, perhaps less than was wanted: the rest is leased.
    Done {
        /// What the removed files took on disk, in bytes.
        freed_bytes: u64,
    },
    /// Nothing was removed, because another process has the store open.
    Postponed,
}

/// How much is to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// So much, in bytes on disk.
    Bytes(u64),
    /// What is above the low watermark.
    LowWatermark,
}

impl DiskStore {
    /// Removes the blobs used least recently until the store is at its low watermark.
    ///
    /// # Errors
    /// The disk failed; single files that cannot be removed are logged and kept.
    pub fn evict_to_low_watermark(&self) -> Result<Eviction, StoreError> {
        self.shared.free(Wanted::LowWatermark)
    }
}

impl Shared {
    /// Removes blobs until enough is gone or only leased ones are left.
    pub(crate) fn free(&self, wanted: Wanted) -> Result<Eviction, StoreError> {
        let failed = |source| StoreError::io("lock", &self.layout.lock(), source);
        let mut freed_bytes = 0;
        let mut pass = None;
        let _evicting = self.begin_eviction();
        loop {
            let Some(mut exclusive) = self.process_lock.try_exclusive().map_err(failed)? else {
                if pass.is_none() {
                    return Ok(Eviction::Postponed);
                }
                break;
            };
            if exclusive.others_were_here().map_err(failed)? {
                self.scan()?;
            }
            self.drop_idle_trees();
            self.hold_claimed_trees();
            // Not before the first scan: only now is all known that there is.
            let (bytes, looks) = pass.get_or_insert_with(|| self.plan(wanted));
            if freed_bytes >= *bytes || *looks == 0 || self.wake.stopping() {
                break;
            }
            self.stamp.renew(&self.layout);
            freed_bytes += self.free_batch(*bytes - freed_bytes, looks);
        }
        if freed_bytes > 0 {
            tracing::info!(freed_bytes, "evicted blobs");
        }
        Ok(Eviction::Done { freed_bytes })
    }

    /// How many bytes are to go, and how many blobs there are to look at.
    fn plan(&self, wanted: Wanted) -> (u64, usize) {
        let index = self.index.lock();
        let bytes = match wanted {
            Wanted::Bytes(bytes) => bytes,
            Wanted::LowWatermark => index.used_bytes().saturating_sub(self.config.low_bytes()),
        };
        (bytes, index.len())
    }

    /// Removes a batch of blobs; `budget` is how many more of the index are looked at.
    fn free_batch(&self, wanted: u64, budget: &mut usize) -> u64 {
        let mut freed_bytes = 0;
        let mut holds = HOLDS_PER_LOCK;
        while freed_bytes < wanted && *budget > 0 && holds > 0 {
            holds -= 1;
            let mut looks = (*budget).min(LOOKS_PER_HOLD);
            *budget -= looks;
            let mut nameless = Vec::new();
            let mut index = self.index.lock();
            while freed_bytes < wanted && nameless.len() < FILES_PER_HOLD {
                let Some((digest, has)) = index.oldest_unpinned(&mut looks) else {
                    break;
                };
                freed_bytes += self.unname(&mut index, &digest, has, &mut nameless);
            }
            if index.len() == 0 {
                *budget = 0;
            }
            drop(index);
            *budget += looks;
        }
        freed_bytes
    }

    /// Takes the names of a blob's files away; says what the files take on disk.
    fn unname(
        &self,
        index: &mut Index,
        digest: &Digest,
        has: [bool; 2],
        nameless: &mut Vec<TemporaryFile>,
    ) -> u64 {
        let mut freed_bytes = 0;
        // Both, since a file that the index does not know of would make the blob come back.
        for variant in Variant::BOTH {
            let path = self.layout.variant_path(digest, variant);
            let away = self.temporary.next_path();
            match fs::rename(&path, &away) {
                Ok(()) => {
                    nameless.push(TemporaryFile::new(away));
                    freed_bytes += allocated_bytes(digest);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "failed to evict a blob");
                    index.promote(digest);
                    continue;
                }
            }
            if has[variant as usize] {
                index.forget(digest, variant);
            }
        }
        self.count_removal();
        freed_bytes
    }

    pub(crate) fn disk_available(&self) -> Result<u64, StoreError> {
        let root = self.layout.root();
        let disk = statvfs(root).map_err(|source| StoreError::io("look at", root, source))?;
        Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
    }
}

/// Wakes the evicting thread.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    state: Mutex<WakeState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WakeState {
    asked: bool,
    stop: bool,
}

impl Wake {
    pub(crate) fn wake(&self) {
        self.state.lock().asked = true;
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    pub(crate) fn stopping(&self) -> bool {
        self.state.lock().stop
    }

    /// Waits to be woken, or for `limit`; says whether to go on.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        while !state.asked && !state.stop {
            match limit {
                Some(limit) => {
                    if self.changed.wait_for(&mut state, limit).timed_out() {
                        break;
                    }
                }
                None => self.changed.wait(&mut state),
            }
        }
        state.asked = false;
        !state.stop
    }
}

/// The thread that evicts; ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Evictor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Evictor {
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let of_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("store-evict".to_owned())
            .spawn(move || evict_until_stopped(&of_thread))
            .map_err(|source| StoreError::io("start a thread for", shared.layout.root(), source))?;
        Ok(Self { shared: shared.clone(), thread: Some(thread) })
    }
}

impl Drop for Evictor {
    fn drop(&mut self) {
        self.shared.wake.stop();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the evicting thread of the store panicked");
        }
    }
}

fn evict_until_stopped(shared: &Shared) {
    let mut limit = None;
    while shared.wake.wait(limit) {
        limit = None;
        if shared.index.lock().used_bytes() <= shared.config.high_bytes() {
            continue;
        }
        match shared.free(Wanted::LowWatermark) {
            Ok(Eviction::Done { .. }) => {}
            Ok(Eviction::Postponed) => limit = Some(POSTPONED_RETRY),
            Err(error) => {
                tracing::warn!(%error, "failed to evict");
                limit = Some(POSTPONED_RETRY);
            }
        }
    }
}
