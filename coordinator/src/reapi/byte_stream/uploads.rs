//! Blobs that have begun to arrive: what of an upload is here outlives the call that brought it.
//!
//! A call that ends early leaves its draft under the name of the upload; the next call that names it goes on where it
//! stopped. A call that begins at the beginning has a draft of its own, so that equal uploads do not disturb each
//! other: the first to finish wins, and the others find the blob there.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use distbuild_cas::{BlobWriter, DiskStore, StoreError};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::{Compressor, WriteName};
use crate::reapi::{compression, status};

/// Uploads that write at a time; others wait. Each holds a window of 8 MiB at most, and two pieces.
const MAX_WRITING: usize = 128;
/// Drafts without a call; those left longest go first.
const MAX_LEFT: usize = 64;
/// How long a draft without a call is kept.
const KEPT: Duration = Duration::from_secs(600);

/// The uploads; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Uploads {
    store: DiskStore,
    writing: Arc<Semaphore>,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    /// The newest upload of each name.
    slots: HashMap<WriteName, Arc<Slot>>,
    /// Numbers the calls.
    calls: u64,
}

/// What of one upload is here.
#[derive(Debug)]
struct Slot {
    draft: Mutex<Option<Draft>>,
    committed_bytes: AtomicU64,
    /// What a client that asked was last told.
    told_bytes: AtomicU64,
    /// The call that writes; 0 for none.
    call: AtomicU64,
    /// When the last call ended.
    left_at: Mutex<Option<Instant>>,
}

enum Draft {
    Identity(Box<Counted>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Box<Counted>>>),
}

impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Draft({} bytes)", self.written().bytes)
    }
}

/// Counts what is written.
#[derive(Debug)]
struct Counted {
    writer: BlobWriter,
    bytes: u64,
    /// Bytes that come once more.
    skip: u64,
}

impl Write for Counted {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let again = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
        let new = &data[again..];
        self.writer.write_chunk(new)?;
        self.skip -= again as u64;
        self.bytes += new.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Draft {
    fn new(compressor: Compressor, to: Box<Counted>) -> Result<Self, Status> {
        Ok(match compressor {
            Compressor::Identity => Self::Identity(to),
            Compressor::Zstd => {
                let decoder = compression::decoder(to);
                Self::Zstd(Box::new(decoder.map_err(|error| of_write(error, "decompress"))?))
            }
        })
    }

    fn written(&self) -> &Counted {
        match self {
            Self::Identity(to) => to,
            Self::Zstd(decoder) => decoder.get_ref(),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Status> {
        match self {
            Self::Identity(to) => to.write_all(data),
            Self::Zstd(decoder) => decoder.write_all(data),
        }
        .map_err(|error| of_write(error, "write"))
    }

    /// A client that goes on begins a new frame, at a byte of the blob that is here or comes next.
    fn resumed(self, compressor: Compressor, offset: u64) -> Result<Self, Status> {
        let mut to = match self {
            Self::Identity(to) => to,
            Self::Zstd(decoder) => decoder.into_inner(),
        };
        to.skip = to.bytes.saturating_sub(offset);
        Self::new(compressor, to)
    }

    fn commit(self) -> Result<(), Status> {
        let to = match self {
            Self::Identity(to) => to,
            Self::Zstd(decoder) => decoder.finish().map_err(|error| of_write(error, "finish"))?,
        };
        to.writer.commit().map_err(|error| status::of_store(&error))
    }
}

/// What the store refused, or what is no frame.
fn of_write(error: io::Error, what: &str) -> Status {
    let text = format!("failed to {what} the upload: {error}");
    let of_store = error.into_inner().and_then(|inner| inner.downcast::<StoreError>().ok());
    of_store.map_or_else(|| status::invalid(text), |error| status::of_store(&error))
}

impl Uploads {
    pub(super) fn new(store: DiskStore) -> Self {
        let writing = Arc::new(Semaphore::new(MAX_WRITING));
        Self { store, writing, table: Arc::default() }
    }

    /// Tells a client how many bytes of the blob an upload has brought, for it to go on there; `None` if it has not
    /// begun, or not lately.
    pub(super) fn tell(&self, name: &WriteName) -> Option<u64> {
        let table = self.table.lock();
        table.slots.get(name).map(|slot| {
            let committed = slot.committed_bytes.load(Ordering::Acquire);
            slot.told_bytes.store(committed, Ordering::Release);
            committed
        })
    }

    /// Begins a call at an offset. Waits for its turn.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the upload is not there yet; the store is full or fails.
    pub(super) async fn begin(&self, name: WriteName, offset: u64) -> Result<Upload, Status> {
        let turn = self.writing.clone().acquire_owned().await;
        let turn = turn.map_err(|_| Status::unavailable("the coordinator is shutting down"))?;
        let uploads = self.clone();
        tokio::task::spawn_blocking(move || uploads.begin_now(name, offset, turn))
            .await
            .map_err(|error| status::of_thread(&error))?
    }

    fn begin_now(
        &self,
        name: WriteName,
        offset: u64,
        turn: OwnedSemaphorePermit,
    ) -> Result<Upload, Status> {
        self.drop_left(|left, now| now.duration_since(left) > KEPT);
        if offset > 0 {
            return self.resume(name, offset, turn);
        }
        let writer = match self.store.writer(name.digest, false) {
            Err(StoreError::Full(_)) => {
                // What nobody may come back for gives way.
                self.drop_left(|_, _| true);
                self.store.writer(name.digest, false)
            }
            other => other,
        };
        let writer = writer.map_err(|error| status::of_store(&error))?;
        let draft = Draft::new(name.compressor, Box::new(Counted { writer, bytes: 0, skip: 0 }))?;
        let mut table = self.table.lock();
        table.calls += 1;
        let call = table.calls;
        let slot = Arc::new(Slot {
            draft: Mutex::new(Some(draft)),
            committed_bytes: AtomicU64::new(0),
            told_bytes: AtomicU64::new(0),
            call: AtomicU64::new(call),
            left_at: Mutex::new(None),
        });
        table.slots.insert(name.clone(), slot.clone());
        drop(table);
        Ok(Upload { uploads: self.clone(), name, slot, call, _turn: turn })
    }

    /// Takes an upload over, also from a call that does not know yet that its client is gone: what that one still
    /// wrote after the client was told where to go on comes once more.
    fn resume(
        &self,
        name: WriteName,
        offset: u64,
        turn: OwnedSemaphorePermit,
    ) -> Result<Upload, Status> {
        let (slot, call) = {
            let mut table = self.table.lock();
            let slot = table.slots.get(&name).cloned().ok_or_else(|| out_of_step(offset, 0))?;
            let committed = slot.committed_bytes.load(Ordering::Acquire);
            if offset != committed && offset != slot.told_bytes.load(Ordering::Acquire) {
                return Err(out_of_step(offset, committed));
            }
            table.calls += 1;
            slot.call.store(table.calls, Ordering::Release);
            *slot.left_at.lock() = None;
            (slot, table.calls)
        };
        let upload = Upload { uploads: self.clone(), name, slot, call, _turn: turn };
        let mut draft = upload.slot.draft.lock();
        let found = draft.take().ok_or_else(taken_over)?;
        *draft = Some(found.resumed(upload.name.compressor, offset)?);
        drop(draft);
        Ok(upload)
    }

    /// Drops drafts that nobody writes and that are chosen, and those that are too many.
    fn drop_left(&self, chosen: impl Fn(Instant, Instant) -> bool) {
        let now = Instant::now();
        let mut table = self.table.lock();
        let mut left: Vec<_> = table
            .slots
            .iter()
            .filter_map(|(name, slot)| Some(((*slot.left_at.lock())?, name.clone())))
            .collect();
        left.sort_unstable_by_key(|(left_at, _)| *left_at);
        let too_many = left.len().saturating_sub(MAX_LEFT);
        let dropped: Vec<_> = left
            .into_iter()
            .enumerate()
            .filter(|(at, (left_at, _))| *at < too_many || chosen(*left_at, now))
            .filter_map(|(_, (_, name))| table.slots.remove(&name))
            .collect();
        // Files are removed without the lock.
        drop(table);
        drop(dropped);
    }
}

fn out_of_step(offset: u64, committed: u64) -> Status {
    status::invalid(format!(
        "write_offset {offset} of an upload of which {committed} bytes are here; ask with \
         QueryWriteStatus where to go on"
    ))
}

fn taken_over() -> Status {
    Status::aborted("another call goes on with this upload")
}

/// One call that writes. Dropped before its end, it leaves what has come for the next one.
#[derive(Debug)]
pub(super) struct Upload {
    uploads: Uploads,
    name: WriteName,
    slot: Arc<Slot>,
    call: u64,
    _turn: OwnedSemaphorePermit,
}

impl Upload {
    /// Writes the next bytes as they came; gives how many of the blob are here. Blocks.
    ///
    /// # Errors
    /// Bytes that are not the blob's, after which the upload is gone; another call that has taken it over.
    pub(super) fn write(&self, data: &[u8]) -> Result<u64, Status> {
        let mut slot = self.slot.draft.lock();
        let draft = self.mine(&mut slot)?;
        let written = draft.write(data);
        let bytes = draft.written().bytes;
        self.slot.committed_bytes.store(bytes, Ordering::Release);
        if let Err(error) = written {
            *slot = None;
            drop(slot);
            self.forget();
            return Err(error);
        }
        Ok(bytes)
    }

    /// Ends the upload: the blob is here, or nothing is. Blocks.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn finish(self) -> Result<(), Status> {
        let mut slot = self.slot.draft.lock();
        self.mine(&mut slot)?;
        let draft = slot.take();
        drop(slot);
        self.forget();
        draft.ok_or_else(taken_over)?.commit()
    }

    fn mine<'a>(&self, draft: &'a mut Option<Draft>) -> Result<&'a mut Draft, Status> {
        let is_mine = self.slot.call.load(Ordering::Acquire) == self.call;
        draft.as_mut().filter(|_| is_mine).ok_or_else(taken_over)
    }

    fn forget(&self) {
        let mut table = self.uploads.table.lock();
        if table.slots.get(&self.name).is_some_and(|slot| Arc::ptr_eq(slot, &self.slot)) {
            table.slots.remove(&self.name);
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let table = self.uploads.table.lock();
        if self.slot.call.load(Ordering::Acquire) == self.call {
            *self.slot.left_at.lock() = Some(Instant::now());
        }
        drop(table);
    }
}
