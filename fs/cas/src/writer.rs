//! New blobs: written under a temporary name, hashed on the way, renamed when they are right.
//!
//! Room is set aside before the first byte. Any number of writers may write one blob at once; the
//! first to finish gives it its name, the others find it there and are done.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distbuild_proto::digest::Hasher;
use distbuild_proto::{Digest, DigestFunction};

use crate::disk::{DiskStore, Shared, is_empty_blob, open_regular};
use crate::error::{FullReason, StoreError};
use crate::evict::{Eviction, Wanted};
use crate::index::allocated_bytes;
use crate::layout::Variant;
use crate::temporary::TemporaryFile;
use crate::verify::{Checked, for_each_chunk};

nix::ioctl_write_int_bad!(
    /// Makes a file share the blocks of another one.
    clone_blocks,
    libc::FICLONE
);

/// How often room is made for one blob that others take before it does.
const EVICTIONS_FOR_ONE_BLOB: usize = 64;

/// How much is written at most before the disk is asked again how much is free. Others write there too, and a
/// disk that is full after all says so itself.
const UNLOOKED_BYTES: u64 = 16 << 20;

/// What may be written before the disk is asked again how much is free.
#[derive(Debug, Default)]
pub(crate) struct Unlooked(AtomicU64);

impl Unlooked {
    /// Whether so many bytes may be written without a look.
    fn spend(&self, bytes: u64) -> bool {
        let spend = |left: u64| left.checked_sub(bytes);
        self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }

    fn grant(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// Writes one blob into a store. Dropped without [`commit`](Self::commit), it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    draft: Draft,
    expected: Digest,
    variant: Variant,
}

impl BlobWriter {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// More bytes than the digest says, a full store, a failing disk.
    pub fn write_chunk(&mut self, data: &[u8]) -> Result<(), StoreError> {
        if self.draft.size_bytes() + data.len() as u64 > self.expected.size_bytes() {
            return Err(StoreError::TooLong { expected: self.expected });
        }
        self.draft.write(data)
    }

    /// Compares size and hash with the digest and, if they agree, makes the blob visible.
    ///
    /// # Errors
    /// Other bytes than the digest says, a failing disk. Nothing is left then.
    pub fn commit(self) -> Result<(), StoreError> {
        self.draft.finish(Some(&self.expected), self.variant, false).map(drop)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.write_chunk(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskStore {
    /// Begins to write a blob.
    ///
    /// # Errors
    /// No room for it, even after an eviction; a failing disk.
    pub fn writer(&self, expected: Digest, executable: bool) -> Result<BlobWriter, StoreError> {
        let draft = Draft::new(&self.shared, expected.function(), allocated_bytes(&expected))?;
        Ok(BlobWriter { draft, expected, variant: Variant::of(executable) })
    }

    /// Stores a blob from memory, if it is not there yet.
    ///
    /// # Errors
    /// Other bytes than the digest says, no room, a failing disk.
    pub fn insert(&self, digest: &Digest, data: &[u8], executable: bool) -> Result<(), StoreError> {
        let actual = digest.function().digest(data);
        if actual != *digest {
            return Err(StoreError::Mismatch { expected: *digest, actual });
        }
        let variant = Variant::of(executable);
        // What only the disk knows is written anew: its bytes were not compared yet.
        let known = self.shared.index.lock().presence(digest, variant);
        if (is_empty_blob(digest) && !executable)
            || self.shared.is_untouched(known, digest, variant)
        {
            return Ok(());
        }
        self.shared.insert(digest, data, variant)
    }
}

impl Shared {
    /// Stores bytes that have this digest.
    pub(crate) fn insert(
        self: &Arc<Self>,
        digest: &Digest,
        data: &[u8],
        variant: Variant,
    ) -> Result<(), StoreError> {
        let mut draft = Draft::new(self, digest.function(), allocated_bytes(digest))?;
        draft.write_unhashed(data)?;
        draft.set_mode(variant)?;
        self.publish(draft.temporary, Some(&draft.file), digest, variant, false)
    }

    /// Makes a variant from the other one: by sharing its blocks, once they are verified, where the
    /// file system can do that, else by a copy that is verified on the way.
    pub(crate) fn derive(
        self: &Arc<Self>,
        digest: &Digest,
        variant: Variant,
    ) -> Result<Checked, StoreError> {
        let path = self.layout.variant_path(digest, variant.other());
        let source = match open_regular(&path) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(digest, variant.other());
                return Ok(Checked::Gone);
            }
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        let mut draft = Draft::new(self, digest.function(), allocated_bytes(digest))?;
        if share_blocks(&source, &draft.file) {
            let known = self.index.lock().presence(digest, variant.other());
            if !self.is_untouched(known, digest, variant.other()) {
                match self.check(digest, variant.other())? {
                    Checked::Sound => {}
                    unsound => return Ok(unsound),
                }
            }
            draft.set_mode(variant)?;
            self.publish(draft.temporary, Some(&draft.file), digest, variant, false)?;
            return Ok(Checked::Sound);
        }
        for_each_chunk(&source, digest.size_bytes(), |chunk| draft.write(chunk))
            .map_err(|error: StoreError| error.at("read", &path))?;
        match draft.finish(Some(digest), variant, false) {
            Ok(_) => Ok(Checked::Sound),
            Err(StoreError::Mismatch { .. }) => {
                self.put_aside_file(digest, variant.other(), &source)?;
                Ok(Checked::Damaged)
            }
            Err(error) => Err(error),
        }
    }

    /// Sets room aside, evicting if there is none.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        bytes: u64,
        new_on_disk: bool,
    ) -> Result<Reservation, StoreError> {
        if bytes > self.config.max_bytes {
            return Err(StoreError::Full(FullReason::LargerThanStore));
        }
        let reservation = self.make_reservation(bytes)?;
        if new_on_disk {
            self.keep_disk_free(bytes)?;
        }
        Ok(reservation)
    }

    fn make_reservation(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        let granted = || Reservation { shared: self.clone(), bytes };
        let mut exhausted = false;
        for _ in 0..EVICTIONS_FOR_ONE_BLOB {
            let over = {
                let mut index = self.index.lock();
                let over = (index.claimed_bytes() + bytes).saturating_sub(self.config.max_bytes);
                if over == 0 {
                    index.reserve(bytes);
                    return Ok(granted());
                }
                over
            };
            if exhausted {
                break;
            }
            match self.free(Wanted::Bytes(over))? {
                // Other processes use the store: it may grow until they leave or the disk is full.
                Eviction::Postponed => {
                    self.index.lock().reserve(bytes);
                    return Ok(granted());
                }
                // Looks once more: somebody else may have given room back.
                Eviction::Done { freed_bytes } => exhausted = freed_bytes == 0,
            }
        }
        Err(StoreError::Full(FullReason::AllInUse))
    }

    /// Sees to it that the disk has room for so many bytes and the reserve.
    fn keep_disk_free(&self, bytes: u64) -> Result<(), StoreError> {
        if self.unlooked.spend(bytes) {
            return Ok(());
        }
        let needed = self.config.min_free_bytes.saturating_add(bytes);
        let available = self.disk_available()?;
        if available >= needed {
            self.unlooked.grant((available - needed).min(UNLOOKED_BYTES));
            return Ok(());
        }
        self.free(Wanted::Bytes(needed - available))?;
        if self.disk_available()? >= needed {
            return Ok(());
        }
        Err(StoreError::Full(FullReason::Disk))
    }
}

/// Room set aside for bytes that are on their way; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.index.lock().release(self.bytes);
    }
}

/// A file that becomes a blob of whatever digest its bytes have.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    temporary: TemporaryFile,
    hasher: Hasher,
    reservation: Reservation,
}

impl Draft {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        function: DigestFunction,
        reserved_bytes: u64,
    ) -> Result<Self, StoreError> {
        let reservation = shared.reserve(reserved_bytes, true)?;
        let (file, temporary) = make_temporary(shared)?;
        Ok(Self { file, temporary, hasher: function.hasher(), reservation })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.hasher.size_bytes()
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.write_unhashed(data)?;
        self.hasher.update(data);
        Ok(())
    }

    fn write_unhashed(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let mut rest = data;
        let mut may_evict = true;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull && may_evict => {
                    may_evict = false;
                    self.reservation.shared.free(Wanted::Bytes(self.reservation.bytes))?;
                }
                Err(error) => return Err(StoreError::io("write", self.temporary.path(), error)),
            }
        }
        Ok(())
    }

    /// Makes the blob visible if it is what it should be, and pins it if asked to.
    pub(crate) fn finish(
        self,
        expected: Option<&Digest>,
        variant: Variant,
        pin: bool,
    ) -> Result<Digest, StoreError> {
        self.set_mode(variant)?;
        let actual = self.hasher.finish();
        if let Some(expected) = expected.filter(|expected| **expected != actual) {
            return Err(StoreError::Mismatch { expected: *expected, actual });
        }
        let shared = &self.reservation.shared;
        shared.publish(self.temporary, Some(&self.file), &actual, variant, pin)?;
        Ok(actual)
    }

    fn set_mode(&self, variant: Variant) -> Result<(), StoreError> {
        set_mode(&self.file, self.temporary.path(), variant)
    }
}

/// A new empty file that nobody else knows of, with the mode that most blobs have.
pub(crate) fn make_temporary(shared: &Shared) -> Result<(File, TemporaryFile), StoreError> {
    let path = shared.temporary.next_path();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(Variant::Plain.mode())
        .open(&path)
        .map_err(|source| StoreError::io("make", &path, source))?;
    Ok((file, TemporaryFile::new(path)))
}

/// Gives a file its mode. Most have it from the beginning, and to look is cheaper than to set it.
pub(crate) fn set_mode(file: &File, path: &Path, variant: Variant) -> Result<(), StoreError> {
    let is_right = |found: Metadata| found.permissions().mode() & 0o7777 == variant.mode();
    if file.metadata().is_ok_and(is_right) {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(variant.mode()))
        .map_err(|source| StoreError::io("set the mode of", path, source))
}

/// Makes `to` share the blocks of `from`. A file system that cannot leaves `to` as it was.
pub(crate) fn share_blocks(from: &File, to: &File) -> bool {
    use std::os::fd::AsRawFd;
    #[expect(unsafe_code, reason = "the ioctl has no safe wrapper")]
    // SAFETY: both descriptors are open for the length of the call, and the argument of FICLONE is
    // a descriptor, not a pointer.
    let done = unsafe { clone_blocks(to.as_raw_fd(), from.as_raw_fd()) };
    done.is_ok()
}
