//! `DiskStore`: one file a blob, on the local disk.
//!
//! **Model.** A blob is there when a file of the right name and size is; its bytes are hashed when
//! they are written and again at their first use in the life of a process; after that, only if the
//! file was touched since. Names appear by rename only, so a reader never sees a part of a blob.
//! The index in memory ([`crate::index`]) is filled by use and by a scan in the background; the
//! store serves before the scan is done. Several threads and several processes may use one folder
//! at once.
//!
//! **Power failure.** Nothing is synced. A rename may survive without the bytes: a torn file is
//! caught by the size check at first touch or by the hash at first use, put aside, and counts as
//! missing. The store is a cache; what must not be lost is kept elsewhere.
//!
//! **Never**: serves bytes that were not compared with their digest, follows a symbolic link,
//! removes a leased blob for lack of room, or waits for anything but the disk.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use distbuild_proto::{Digest, DigestFunction};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use parking_lot::Mutex;

use crate::config::StoreConfig;
use crate::error::StoreError;
use crate::evict::{Evictor, Wake};
use crate::index::{Evicted, Identity, Index, Presence};
use crate::layout::{Layout, Variant};
use crate::lock::ProcessLock;
use crate::partial::PieceHashCache;
use crate::remembered::Stamp;
use crate::store_id::StoreId;
use crate::temporary::{TemporaryFile, TemporaryFolder};
use crate::tree_check::Trees;
use crate::verify::Checked;
use crate::writer::Unlooked;

/// How often the time stamp of a blob in use is renewed; it orders the blobs after a restart.
const STAMP_INTERVAL: Duration = Duration::from_secs(3600);
/// How often a read looks again after it found that a file had been damaged or removed under it:
/// once for each variant and once for good measure.
const LOOKS: usize = 3;

/// A store on disk. Cheap to clone; all clones are one store.
#[derive(Clone, Debug)]
pub struct DiskStore {
    pub(crate) shared: Arc<Shared>,
    /// Stops the thread with the last clone.
    _evictor: Arc<Evictor>,
}

/// What the clones, the writers and the leases of one open store share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    pub(crate) layout: Layout,
    id: StoreId,
    // Before the lock: the folder is removed while the store is still held.
    pub(crate) temporary: TemporaryFolder,
    pub(crate) process_lock: ProcessLock,
    pub(crate) stamp: Stamp,
    /// Taken after `trees` where both are needed.
    pub(crate) index: Mutex<Index>,
    pub(crate) trees: Mutex<Trees>,
    pub(crate) piece_hashes: Mutex<PieceHashCache>,
    /// Grows with every blob that leaves the store.
    generation: AtomicU64,
    /// Grows with every blob that is put aside: leases do not protect from damage.
    damage: AtomicU64,
    pub(crate) wake: Wake,
    pub(crate) unlooked: Unlooked,
}

impl DiskStore {
    /// Opens the store in `config.root`, making it if it is not there.
    ///
    /// Costs no more for a full store than for an empty one: see [`Self::scan`].
    ///
    /// # Errors
    /// The folder cannot be made, read or locked, or holds something else.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let layout = Layout::new(&config.root);
        make_folder(layout.root())?;
        let process_lock = ProcessLock::open(&layout)?;
        let id = StoreId::load_or_make(&layout)?;
        for function in DigestFunction::ALL {
            make_folder(&layout.function_folder(function))?;
        }
        make_folder(&layout.quarantine())?;
        let stamp = Stamp::open(&layout)?;
        let temporary = TemporaryFolder::open(&layout, &StoreId::random()?.to_string())?;
        let shared = Arc::new(Shared {
            config,
            layout,
            id,
            temporary,
            process_lock,
            stamp,
            index: Mutex::new(Index::new()),
            trees: Mutex::new(Trees::new()),
            piece_hashes: Mutex::new(PieceHashCache::new()),
            generation: AtomicU64::new(0),
            damage: AtomicU64::new(0),
            wake: Wake::default(),
            unlooked: Unlooked::default(),
        });
        shared.load_trees();
        let evictor = Arc::new(Evictor::start(&shared)?);
        Ok(Self { shared, _evictor: evictor })
    }

    /// The identity of the folder: stays when the store is closed and opened again.
    pub fn id(&self) -> &StoreId {
        &self.shared.id
    }

    /// Where the blobs lie.
    pub fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    /// Where the blob lies if the store holds it in that variant; says nothing about whether it does.
    pub fn blob_path(&self, digest: &Digest, executable: bool) -> PathBuf {
        self.shared.layout.blob_path(digest, executable)
    }

    /// Whether the store holds the blob. Counts as a use. The size has been checked, the bytes
    /// perhaps not yet; a failing disk counts as "no" and is logged.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.shared.contains(digest).unwrap_or_else(|error| {
            tracing::warn!(blob.digest = %digest, %error, "failed to look for a blob");
            false
        })
    }

    /// Whether the store holds the blob, not executable, with bytes that were verified and a file that was
    /// not touched since. Never reads it; a blob that is new to this process counts as not verified.
    pub fn is_verified(&self, digest: &Digest) -> bool {
        let known = self.shared.index.lock().presence(digest, Variant::Plain);
        matches!(known, Presence::Verified(_))
            && self.shared.is_untouched(known, digest, Variant::Plain)
    }

    /// The whole blob.
    ///
    /// # Errors
    /// Missing or damaged, or larger than `max_read_bytes`, or the disk failed.
    pub fn read(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        self.shared.read(digest)
    }

    /// Makes sure that the blob is there, in this variant and with verified bytes; gives its path.
    /// Who opens the path later holds a [lease](Self::lease) meanwhile.
    ///
    /// # Errors
    /// Missing or damaged; no room for the variant; the disk failed.
    pub fn prepare(&self, digest: &Digest, executable: bool) -> Result<PathBuf, StoreError> {
        self.shared.prepare(digest, Variant::of(executable))
    }

    /// The verified blob as a file open for reading, in this variant.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn open_file(&self, digest: &Digest, executable: bool) -> Result<File, StoreError> {
        let path = self.prepare(digest, executable)?;
        open_regular(&path).map_err(|source| self.shared.opening(digest, &path, source))
    }

    /// The verified blob as a file open for reading, whatever its mode: for who reads the bytes.
    ///
    /// # Errors
    /// Missing or damaged; the disk failed.
    pub fn open_bytes(&self, digest: &Digest) -> Result<File, StoreError> {
        let variant = self.shared.any_variant(digest)?.unwrap_or(Variant::Plain);
        self.open_file(digest, variant == Variant::Executable)
    }

    /// Hashes the files of the blob again, whatever is known of them.
    ///
    /// # Errors
    /// Missing, or damaged: then the damaged file has been put aside, and the blob may still be
    /// there in its other variant.
    pub fn verify(&self, digest: &Digest) -> Result<(), StoreError> {
        self.shared.verify(digest)
    }

    /// A number that grows whenever a blob leaves the store: what was complete at a generation is
    /// complete as long as it stays.
    pub fn generation(&self) -> u64 {
        self.shared.generation()
    }

    /// What the blobs known so far take on disk, in bytes. Exact once a scan is done.
    pub fn used_bytes(&self) -> u64 {
        self.shared.index.lock().used_bytes()
    }

    /// How many blobs are known so far. Exact once a scan is done.
    pub fn known_blobs(&self) -> usize {
        self.shared.index.lock().len()
    }

    /// The blobs that left the store, by eviction or damage, since this was last asked.
    pub fn drain_evicted(&self) -> Evicted {
        self.shared.index.lock().drain_removed()
    }
}

impl Shared {
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn damage(&self) -> u64 {
        self.damage.load(Ordering::Acquire)
    }

    pub(crate) fn count_removal(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Damage is a removal too, and one that happens while other processes use the store.
    pub(crate) fn count_damage(&self) {
        self.stamp.renew(&self.layout);
        self.damage.fetch_add(1, Ordering::AcqRel);
        self.count_removal();
    }

    pub(crate) fn contains(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(is_empty_blob(digest) || self.any_variant(digest)?.is_some())
    }

    /// A variant that is there, verified if one is.
    pub(crate) fn any_variant(&self, digest: &Digest) -> Result<Option<Variant>, StoreError> {
        let (found, stamp) = {
            let mut index = self.index.lock();
            let mut found = None;
            for variant in Variant::BOTH {
                match self.locate(&mut index, digest, variant, found.is_none())? {
                    Presence::Verified(_) => {
                        found = Some(variant);
                        break;
                    }
                    Presence::Present => found = found.or(Some(variant)),
                    Presence::Unknown => {}
                }
            }
            (found, self.stamp_is_due(&mut index, digest))
        };
        if let (Some(variant), true) = (found, stamp) {
            self.stamp(digest, variant);
        }
        Ok(found)
    }

    /// What there is to know of a file, asking the disk if the index does not know and `ask` is set.
    pub(crate) fn locate(
        &self,
        index: &mut Index,
        digest: &Digest,
        variant: Variant,
        ask: bool,
    ) -> Result<Presence, StoreError> {
        let known = index.presence(digest, variant);
        if known != Presence::Unknown || !ask {
            return Ok(known);
        }
        let path = self.layout.variant_path(digest, variant);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Presence::Unknown),
            Err(error) => return Err(StoreError::io("look at", &path, error)),
        };
        if !metadata.is_file() || metadata.len() != digest.size_bytes() {
            self.put_aside(index, digest, variant);
            return Ok(Presence::Unknown);
        }
        index.record(digest, variant, Presence::Present, stamp_of(&metadata));
        Ok(Presence::Present)
    }

    pub(crate) fn read(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        if is_empty_blob(digest) {
            return Ok(Bytes::new());
        }
        let limit_bytes = self.config.max_read_bytes;
        if digest.size_bytes() > limit_bytes {
            return Err(StoreError::TooLarge { digest: *digest, limit_bytes });
        }
        let mut damaged = false;
        for _ in 0..LOOKS {
            let Some(variant) = self.any_variant(digest)? else {
                break;
            };
            let known = self.index.lock().presence(digest, variant);
            let path = self.layout.variant_path(digest, variant);
            let (data, identity) = match read_file(&path, digest.size_bytes()) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.forget(digest, variant);
                    continue;
                }
                Err(error) => return Err(StoreError::io("read", &path, error)),
            };
            let right_size = data.len() as u64 == digest.size_bytes();
            let verified = Presence::Verified(identity);
            if right_size && (known == verified || digest.function().digest(&data) == *digest) {
                // Not what is known already: it may have been renewed meanwhile.
                if known != verified {
                    self.learn(digest, variant, verified);
                }
                return Ok(data.into());
            }
            damaged = true;
            self.put_aside(&mut self.index.lock(), digest, variant);
            self.trim_quarantine();
        }
        Err(absent(digest, damaged))
    }

    pub(crate) fn prepare(
        self: &Arc<Self>,
        digest: &Digest,
        variant: Variant,
    ) -> Result<PathBuf, StoreError> {
        let mut damaged = false;
        for _ in 0..2 * LOOKS {
            let (wanted, other, stamp) = {
                let mut index = self.index.lock();
                let wanted = self.locate(&mut index, digest, variant, true)?;
                let ask = wanted == Presence::Unknown;
                let other = self.locate(&mut index, digest, variant.other(), ask)?;
                (wanted, other, self.stamp_is_due(&mut index, digest))
            };
            match (wanted, other) {
                (Presence::Verified(identity), _) => {
                    let path = self.layout.variant_path(digest, variant);
                    let Ok(found) = fs::symlink_metadata(&path) else {
                        self.forget(digest, variant);
                        continue;
                    };
                    if Identity::of(&found) != identity {
                        damaged |= self.check(digest, variant)? == Checked::Damaged;
                        continue;
                    }
                    if stamp {
                        self.stamp(digest, variant);
                    }
                    return Ok(path);
                }
                (Presence::Present, _) => {
                    damaged |= self.check(digest, variant)? == Checked::Damaged;
                }
                (Presence::Unknown, Presence::Unknown) if is_empty_blob(digest) => {
                    self.insert(digest, &[], variant)?;
                }
                (Presence::Unknown, Presence::Unknown) => break,
                (Presence::Unknown, _) => {
                    damaged |= self.derive(digest, variant)? == Checked::Damaged;
                }
            }
        }
        Err(absent(digest, damaged))
    }

    /// Gives a finished file with verified contents its name. Keeps what is there if that is good.
    /// Where it succeeds it pins the blob, if asked to, before anybody could evict it. `opened` is that file,
    /// where somebody has it open.
    pub(crate) fn publish(
        &self,
        file: TemporaryFile,
        opened: Option<&File>,
        digest: &Digest,
        variant: Variant,
        pin: bool,
    ) -> Result<(), StoreError> {
        let path = self.layout.variant_path(digest, variant);
        let used_bytes = {
            let mut index = self.index.lock();
            let known = index.presence(digest, variant);
            if self.is_untouched(known, digest, variant) {
                drop(file);
            } else {
                rename_into(file.path(), &path)?;
                file.renamed();
                // Not before: the rename itself is a change. Of an open file no path is looked up again.
                let found = match opened {
                    Some(opened) => opened.metadata(),
                    None => fs::symlink_metadata(&path),
                };
                let published = match found {
                    Ok(found) => Presence::Verified(Identity::of(&found)),
                    Err(_) => Presence::Present,
                };
                index.record(digest, variant, published, now());
            }
            if pin {
                index.pin(digest);
            }
            index.used_bytes()
        };
        if used_bytes > self.config.high_bytes() {
            self.wake.wake();
        }
        Ok(())
    }

    pub(crate) fn learn(&self, digest: &Digest, variant: Variant, presence: Presence) {
        let mut index = self.index.lock();
        // Not if it left the store meanwhile.
        if index.knows(digest, variant) {
            index.record(digest, variant, presence, 0);
        }
    }

    /// The file is gone although the index knew it.
    pub(crate) fn forget(&self, digest: &Digest, variant: Variant) {
        let mut index = self.index.lock();
        let path = self.layout.variant_path(digest, variant);
        // Somebody may have written it again since it was found missing.
        if fs::symlink_metadata(path).is_err() && index.knows(digest, variant) {
            tracing::warn!(blob.digest = %digest, "a blob was removed behind the store's back");
            self.forget_file(&mut index, digest, variant);
            self.count_damage();
        }
    }

    /// Notes that a file has no name any more, and learns whether the blob still has the other.
    pub(crate) fn forget_file(&self, index: &mut Index, digest: &Digest, variant: Variant) {
        let other = variant.other();
        if !index.knows(digest, other) && self.is_whole(digest, other) {
            index.record(digest, other, Presence::Present, now());
        }
        index.forget(digest, variant);
    }

    fn opening(&self, digest: &Digest, path: &Path, source: io::Error) -> StoreError {
        if source.kind() == io::ErrorKind::NotFound {
            return StoreError::Missing(*digest);
        }
        StoreError::io("open", path, source)
    }

    fn stamp_is_due(&self, index: &mut Index, digest: &Digest) -> bool {
        index.stamp_is_due(digest, now(), STAMP_INTERVAL.as_secs())
    }

    /// Renews a blob's time stamp; only the order of a later eviction hangs on it.
    pub(crate) fn stamp(&self, digest: &Digest, variant: Variant) {
        let path = self.layout.variant_path(digest, variant);
        let touch = || -> io::Result<(Identity, Identity)> {
            let before = Identity::of(&fs::symlink_metadata(&path)?);
            let (keep, now) = (TimeSpec::UTIME_OMIT, TimeSpec::UTIME_NOW);
            let flags = UtimensatFlags::NoFollowSymlink;
            utimensat(nix::fcntl::AT_FDCWD, &path, &keep, &now, flags)?;
            Ok((before, Identity::of(&fs::symlink_metadata(&path)?)))
        };
        // Locked, so that nobody takes our own touch for somebody else's.
        let mut index = self.index.lock();
        match touch() {
            Ok((before, after)) => index.follow(digest, variant, before, after),
            Err(error) => {
                tracing::debug!(blob.digest = %digest, %error, "failed to note a use of a blob");
            }
        }
    }
}

fn absent(digest: &Digest, damaged: bool) -> StoreError {
    if damaged { StoreError::Damaged(*digest) } else { StoreError::Missing(*digest) }
}

/// The empty blob is always there, and stored only when somebody needs a file of it.
pub(crate) fn is_empty_blob(digest: &Digest) -> bool {
    digest.size_bytes() == 0 && digest.function().digest(&[]) == *digest
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Seconds since 1970 at which the file was last stamped; a stamp from the future counts as now.
pub(crate) fn stamp_of(metadata: &fs::Metadata) -> u64 {
    u64::try_from(metadata.mtime()).unwrap_or(0).min(now())
}

/// Opens a regular file for reading; anything else is an error and is not waited for.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = open_unlooked(path)?;
    regular(&file)?;
    Ok(file)
}

fn open_unlooked(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn regular(file: &File) -> io::Result<fs::Metadata> {
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// The bytes of a file, and one more than `size_bytes` at most: enough to see that it is too long.
/// With what the file was before the first byte was read.
fn read_file(path: &Path, size_bytes: u64) -> io::Result<(Vec<u8>, Identity)> {
    let file = open_unlooked(path)?;
    let metadata = regular(&file)?;
    let mut data = Vec::with_capacity(size_bytes as usize + 1);
    (&file).take(size_bytes + 1).read_to_end(&mut data)?;
    Ok((data, Identity::of(&metadata)))
}

/// Renames to a name whose folder may not be there yet.
fn rename_into(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::io("rename to", to, source);
    match (fs::rename(from, to), to.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            make_folder(parent)?;
            fs::rename(from, to).map_err(failed)
        }
        (done, _) => done.map_err(failed),
    }
}

/// Makes a folder for its owner only: a digest is not a permission to read.
fn make_folder(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StoreError::io("make", path, source))
}
