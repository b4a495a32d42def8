//! Which processes use a store: one open file description lock on `<root>/lock`.
//!
//! Every open store holds the lock shared; who removes blobs for lack of room needs it exclusive,
//! because the leases of another process are not visible here. Open file description locks and not
//! `flock`, because they convert from shared to exclusive atomically: an upgrade that is refused
//! leaves the shared lock in place, so nobody else can evict what we lease in between.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use parking_lot::{Mutex, MutexGuard};

use crate::error::StoreError;
use crate::layout::Layout;

/// The shared lock of one open store.
#[derive(Debug)]
pub(crate) struct ProcessLock {
    file: File,
    /// One upgrade at a time: a lock converts per file description, not per thread.
    upgrade: Mutex<Seen>,
}

/// What is known of other users of the store.
#[derive(Debug)]
struct Seen {
    /// Length of the lock file as far as this process knows why; who comes or goes adds a byte.
    length: u64,
    /// An upgrade was refused since then.
    refused: bool,
}

/// The store is ours alone until this is dropped.
pub(crate) struct Exclusive<'a> {
    lock: &'a ProcessLock,
    seen: MutexGuard<'a, Seen>,
}

impl ProcessLock {
    /// Takes the shared lock; waits while another process evicts a batch.
    pub(crate) fn open(layout: &Layout) -> Result<Self, StoreError> {
        let path = layout.lock();
        let open = || -> io::Result<Self> {
            let file =
                OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
            set(&file, libc::F_RDLCK, true)?;
            let length = file.metadata()?.len() + announce(&file);
            Ok(Self { file, upgrade: Mutex::new(Seen { length, refused: false }) })
        };
        open().map_err(|source| StoreError::io("lock", &path, source))
    }

    /// The exclusive lock, or `None` while other processes have the store open.
    pub(crate) fn try_exclusive(&self) -> io::Result<Option<Exclusive<'_>>> {
        let mut seen = self.upgrade.lock();
        match set(&self.file, libc::F_WRLCK, false) {
            Ok(()) => Ok(Some(Exclusive { lock: self, seen })),
            Err(Errno::EAGAIN | Errno::EACCES) => {
                seen.refused = true;
                Ok(None)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for ProcessLock {
    fn drop(&mut self) {
        announce(&self.file);
    }
}

impl Exclusive<'_> {
    /// Whether others have had the store open since this was last asked, so that it may hold
    /// blobs that our index does not know.
    pub(crate) fn others_were_here(&mut self) -> io::Result<bool> {
        let length = self.lock.file.metadata()?.len();
        let others = self.seen.refused || length != self.seen.length;
        self.lock.file.set_len(0)?;
        *self.seen = Seen { length: 0, refused: false };
        Ok(others)
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        // Going down to shared conflicts with nobody, so it neither waits nor fails.
        if let Err(errno) = set(&self.lock.file, libc::F_RDLCK, false) {
            tracing::error!(error = %errno, "failed to give back the exclusive lock of the store");
        }
    }
}

/// Tells those that hold the store open that somebody came or went; gives the bytes that were
/// added. A full disk must not keep a store from being opened (it is how room is made), so a
/// failure only means that the others may count some blobs late.
fn announce(mut file: &File) -> u64 {
    file.write(b".").map_or(0, |bytes| bytes as u64)
}

fn set(file: &File, kind: i32, wait: bool) -> Result<(), Errno> {
    let range = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        let argument =
            if wait { FcntlArg::F_OFD_SETLKW(&range) } else { FcntlArg::F_OFD_SETLK(&range) };
        match fcntl(file, argument) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_exclusive_only_while_nobody_else_has_it_open() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let first = ProcessLock::open(&layout).unwrap();
        assert!(!first.try_exclusive().unwrap().unwrap().others_were_here().unwrap());
        let second = ProcessLock::open(&layout).unwrap();
        assert!(first.try_exclusive().unwrap().is_none());
        assert!(second.try_exclusive().unwrap().is_none());
        drop(second);
        let mut exclusive = first.try_exclusive().unwrap().unwrap();
        assert!(exclusive.others_were_here().unwrap());
        assert!(!exclusive.others_were_here().unwrap());
    }
}
