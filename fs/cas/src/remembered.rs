//! Which trees were complete when the store was last closed, so that a process that lives for one build
//! need not look at every blob of every result again.
//!
//! **Model.** A store has a *stamp*, a random word in a file of its own. Whoever takes a blob's name away
//! puts another stamp in its place first, and, where other processes may look meanwhile, once more
//! afterwards. A list of complete trees carries the stamp that was there before the first of them was
//! looked at, and the boot of the machine: it holds as long as both are what they are. So a list is
//! void after an eviction, after a damaged blob, and after a power failure, which may take blobs
//! without a trace. It is a cache: what cannot be read or is damaged remembers nothing.
//!
//! Blobs that somebody removes by hand are not noticed here; who finds one missing voids all lists.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use distbuild_proto::{Digest, DigestFunction};
use parking_lot::Mutex;

use crate::disk::{DiskStore, Shared};
use crate::error::StoreError;
use crate::layout::Layout;
use crate::store_id::StoreId;
use crate::temporary::TemporaryFile;

/// The trees used last are remembered, so many; [`ENTRY_BYTES`] each.
const REMEMBERED: usize = 65_536;
const MAGIC: &[u8; 8] = b"dbtrees1";
const STAMP_BYTES: usize = 16;
/// Names one life of the operating system.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const BOOT_BYTES: usize = 36;
const HEAD_BYTES: usize = MAGIC.len() + BOOT_BYTES + STAMP_BYTES;
/// Function, size in bytes, hash.
const ENTRY_BYTES: usize = 1 + 8 + HASH_BYTES;
const HASH_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 32;

type StampWord = [u8; STAMP_BYTES];

/// The stamp of an open store.
#[derive(Debug)]
pub(crate) struct Stamp {
    file: File,
    /// The one that this process has seen or set last.
    known: Mutex<StampWord>,
}

impl Stamp {
    /// Reads the stamp; a store without one gets one.
    pub(crate) fn open(layout: &Layout) -> Result<Self, StoreError> {
        let path = layout.stamp();
        let open = || -> io::Result<Self> {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path)?;
            let mut known = [0; STAMP_BYTES];
            let stamp = match file.read_exact_at(&mut known, 0) {
                Ok(()) => Self { file, known: Mutex::new(known) },
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    let stamp = Self { file, known: Mutex::new(known) };
                    stamp.write()?;
                    stamp
                }
                Err(error) => return Err(error),
            };
            Ok(stamp)
        };
        open().map_err(|source| StoreError::io("open", &path, source))
    }

    /// Voids every list of complete trees that was ever written or is being made.
    pub(crate) fn renew(&self, layout: &Layout) {
        if let Err(error) = self.write() {
            tracing::warn!(%error, "failed to stamp the store");
            // Another way to the same end.
            let _ = fs::remove_file(layout.complete_trees());
        }
    }

    fn write(&self) -> io::Result<()> {
        let mut known = self.known.lock();
        *known = *StoreId::random().map_err(io::Error::other)?.as_bytes();
        self.file.write_all_at(&*known, 0)
    }

    /// The stamp, if nobody else has put another one in its place.
    fn unchanged(&self) -> Option<StampWord> {
        let known = *self.known.lock();
        let mut now = [0; STAMP_BYTES];
        self.file.read_exact_at(&mut now, 0).ok()?;
        (now == known).then_some(known)
    }
}

impl DiskStore {
    /// Remembers which trees are complete, for whoever opens the store next. Blocks on the disk.
    ///
    /// # Errors
    /// The list cannot be written; the earlier one stands as far as it still holds.
    pub fn remember_trees(&self) -> Result<(), StoreError> {
        let path = self.shared.layout.complete_trees();
        self.shared.save_trees().map_err(|source| StoreError::io("write", &path, source))
    }
}

impl Shared {
    /// Takes over what the last process to close the store knew.
    pub(crate) fn load_trees(&self) {
        let (Some(stamp), Ok(boot)) = (self.stamp.unchanged(), fs::read(BOOT_ID)) else { return };
        let Ok(list) = fs::read(self.layout.complete_trees()) else { return };
        let Some(digests) = parse(&list, &head(&boot, &stamp)) else { return };
        self.trees.lock().recall(digests, self.generation());
    }

    fn save_trees(&self) -> io::Result<()> {
        // First the stamp: what goes from now on voids the list.
        let Some(stamp) = self.stamp.unchanged() else { return Ok(()) };
        let head = head(&fs::read(BOOT_ID)?, &stamp);
        let Some(digests) = self.trees.lock().news(self.generation(), REMEMBERED) else {
            return Ok(());
        };
        let mut list =
            Vec::with_capacity(head.len() + digests.len() * ENTRY_BYTES + CHECKSUM_BYTES);
        list.extend_from_slice(&head);
        for digest in &digests {
            let mut hash = [0; HASH_BYTES];
            hash[..digest.hash().len()].copy_from_slice(digest.hash());
            list.push(digest.function() as u8);
            list.extend_from_slice(&digest.size_bytes().to_le_bytes());
            list.extend_from_slice(&hash);
        }
        let checksum = DigestFunction::Blake3.digest(&list);
        list.extend_from_slice(checksum.hash());
        let file = TemporaryFile::new(self.temporary.next_path());
        fs::write(file.path(), &list)?;
        fs::rename(file.path(), self.layout.complete_trees())?;
        file.renamed();
        Ok(())
    }
}

fn head(boot: &[u8], stamp: &StampWord) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let (magic, rest) = head.split_at_mut(MAGIC.len());
    let (of_boot, of_stamp) = rest.split_at_mut(BOOT_BYTES);
    magic.copy_from_slice(MAGIC);
    let len = boot.len().min(BOOT_BYTES);
    of_boot[..len].copy_from_slice(&boot[..len]);
    of_stamp.copy_from_slice(stamp);
    head
}

/// The digests of a whole list under this head.
fn parse(list: &[u8], head: &[u8]) -> Option<Vec<Digest>> {
    let (body, checksum) = list.split_at_checked(list.len().checked_sub(CHECKSUM_BYTES)?)?;
    let entries = body.strip_prefix(head)?;
    if DigestFunction::Blake3.digest(body).hash() != checksum || entries.len() % ENTRY_BYTES != 0 {
        return None;
    }
    entries.chunks_exact(ENTRY_BYTES).map(entry).collect()
}

fn entry(bytes: &[u8]) -> Option<Digest> {
    let (function, rest) = bytes.split_first()?;
    let (size, hash) = rest.split_first_chunk()?;
    let function = DigestFunction::from_number(i32::from(*function)).ok()?;
    Digest::new(function, hash.get(..function.hash_len())?, u64::from_le_bytes(*size)).ok()
}

#[cfg(test)]
mod tests {
    use distbuild_proto::{Directory, FileNode, Name};

    use super::*;
    use crate::{Completeness, LeaseTreeError, StoreConfig};

    fn open(root: &std::path::Path) -> DiskStore {
        DiskStore::open(StoreConfig::new(root)).unwrap()
    }

    fn tree(store: &DiskStore, text: &str) -> (Digest, Digest) {
        let file = DigestFunction::Blake3.digest(text.as_bytes());
        store.insert(&file, text.as_bytes(), false).unwrap();
        let node = FileNode { name: Name::new(b"f").unwrap(), digest: file, executable: false };
        let directory = Directory::new(vec![node], vec![], vec![]).unwrap();
        let (root, blob) = directory.encode_with_digest(DigestFunction::Blake3);
        store.insert(&root, &blob, false).unwrap();
        (root, file)
    }

    /// Whether an opened store takes the tree to be complete without looking.
    fn is_remembered(store: &DiskStore, root: &Digest) -> bool {
        let shared = &store.shared;
        let (generation, damage) = (shared.generation(), shared.damage());
        shared.trees.lock().known_complete(root, generation, damage)
    }

    #[test]
    fn what_was_complete_is_known_to_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let roots: Vec<_> = (0..3).map(|n| tree(&store, &n.to_string()).0).collect();
        for root in &roots[..2] {
            assert_eq!(store.complete(root).unwrap(), Completeness::Complete);
        }
        store.remember_trees().unwrap();
        drop(store);
        let store = open(folder.path());
        let known: Vec<_> = roots.iter().map(|root| is_remembered(&store, root)).collect();
        assert_eq!(known, [true, true, false]);
    }

    #[test]
    fn an_eviction_voids_what_was_remembered_before_and_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let (kept, _) = tree(&store, "kept");
        store.complete(&kept).unwrap();
        store.remember_trees().unwrap();
        let config = StoreConfig { max_bytes: 0, ..StoreConfig::new(folder.path()) };
        drop(store);
        let store = DiskStore::open(config).unwrap();
        assert!(is_remembered(&store, &kept));
        store.scan().unwrap();
        store.evict_to_low_watermark().unwrap();
        assert!(!is_remembered(&store, &kept));
        drop(store);
        assert!(!is_remembered(&open(folder.path()), &kept));
    }

    #[test]
    fn a_damaged_blob_voids_what_another_open_store_would_remember() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (open(folder.path()), open(folder.path()));
        let (whole, _) = tree(&one, "whole");
        let (_, file) = tree(&one, "damaged");
        one.complete(&whole).unwrap();
        one.remember_trees().unwrap();
        let path = two.blob_path(&file, false);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "DAMAGED").unwrap();
        two.verify(&file).unwrap_err();
        // Neither what was written before, nor what is written now by who does not know.
        assert!(!is_remembered(&open(folder.path()), &whole));
        one.remember_trees().unwrap();
        assert!(!is_remembered(&open(folder.path()), &whole));
    }

    #[test]
    fn a_list_that_is_cut_changed_or_of_another_boot_remembers_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let (root, _) = tree(&store, "x");
        store.complete(&root).unwrap();
        store.remember_trees().unwrap();
        let path = store.layout().complete_trees();
        let list = fs::read(&path).unwrap();
        drop(store);
        let mut other_boot = list.clone();
        other_boot[MAGIC.len()] ^= 1;
        let body = other_boot.len() - CHECKSUM_BYTES;
        let sum = DigestFunction::Blake3.digest(&other_boot[..body]);
        other_boot[body..].copy_from_slice(sum.hash());
        let mut changed = list.clone();
        changed[HEAD_BYTES + 20] ^= 1;
        for bad in [&list[..list.len() - 1], &list[..10], &[], &changed, &other_boot] {
            fs::write(&path, bad).unwrap();
            assert!(!is_remembered(&open(folder.path()), &root));
        }
        fs::write(&path, &list).unwrap();
        assert!(is_remembered(&open(folder.path()), &root));
    }

    #[test]
    fn a_claimed_tree_is_kept_by_an_eviction_and_given_back_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let (claimed, file) = tree(&store, "claimed");
        let (other, _) = tree(&store, "other");
        store.complete(&claimed).unwrap();
        store.remember_trees().unwrap();
        drop(store);
        let config = StoreConfig { max_bytes: 0, ..StoreConfig::new(folder.path()) };
        let store = DiskStore::open(config).unwrap();
        let lease = store.claim_tree(&claimed).unwrap();
        assert_eq!(store.leased_blobs(), 0, "nobody has looked what it reaches");
        store.scan().unwrap();
        store.evict_to_low_watermark().unwrap();
        assert!(store.contains(&claimed) && store.contains(&file));
        assert!(!store.contains(&other));
        drop(lease);
        store.evict_to_low_watermark().unwrap();
        assert!(!store.contains(&claimed) && !store.contains(&file));
    }

    #[test]
    fn a_lease_that_fails_leaves_a_claim_and_nothing_else_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let (root, _) = tree(&store, "x");
        store.complete(&root).unwrap();
        store.remember_trees().unwrap();
        drop(store);
        let store = open(folder.path());
        fs::remove_file(store.blob_path(&root, false)).unwrap();
        let claim = store.claim_tree(&root).unwrap();
        for _ in 0..2 {
            let lease = store.lease_tree(&root);
            assert!(matches!(lease, Err(LeaseTreeError::Missing(_))), "{lease:?}");
            assert_eq!(store.leased_blobs(), 0);
        }
        assert_eq!(store.shared.trees.lock().claims(&root), 1);
        drop(claim);
        assert_eq!(store.shared.trees.lock().claims(&root), 0);
    }

    #[test]
    fn a_tree_that_is_not_remembered_is_claimed_only_if_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let (root, file) = tree(&store, "x");
        fs::remove_file(store.blob_path(&file, false)).unwrap();
        let store = open(folder.path());
        let claim = store.claim_tree(&root);
        assert!(matches!(claim, Err(LeaseTreeError::Missing(_))));
    }
}
