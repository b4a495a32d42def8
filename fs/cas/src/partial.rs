//! `PartialBlob`: a large blob on its way, in pieces that come in any order and from several at once.
//!
//! The file has its length and its blocks from the beginning, under a temporary name, and counts to
//! the store's size. With the blob's [`PieceHashes`] a piece is compared before it is written, so what
//! [`put`](PartialBlob::put) has taken may be read from the file at once; without them nothing of it
//! may be read before [`commit`](PartialBlob::commit), which hashes the whole. After `commit` the same
//! file has the blob's name. Dropped before, it is gone; after a crash the next to open the store
//! removes it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use distbuild_proto::Digest;
use lru::LruCache;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;

use crate::disk::{DiskStore, Shared, open_regular};
use crate::error::StoreError;
use crate::evict::Wanted;
use crate::index::{Identity, Presence, allocated_bytes};
use crate::layout::Variant;
use crate::pieces::{PieceHashes, Pieces};
use crate::temporary::TemporaryFile;
use crate::verify::hash_file;
use crate::writer::{Reservation, make_temporary, set_mode};

/// Piece hashes that a store remembers at most, over all blobs: 16 MiB, for 512 GiB of blobs.
const REMEMBERED_HASHES: usize = 512 << 10;

/// A large blob on its way; see the module.
#[derive(Debug)]
pub struct PartialBlob {
    shared: Arc<Shared>,
    digest: Digest,
    variant: Variant,
    pieces: Pieces,
    proof: Option<PieceHashes>,
    file: File,
    path: PathBuf,
    state: Mutex<State>,
    _reservation: Reservation,
}

#[derive(Debug)]
struct State {
    /// Until it has the blob's name.
    temporary: Option<TemporaryFile>,
    pieces: Vec<Piece>,
    missing: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Missing,
    Writing,
    Held,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is in the file now.
    Taken,
    /// It was already, or is being written by somebody else.
    Known,
}

/// Why a piece was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Other bytes than the blob has there.
    #[error("piece {piece} of {digest} has other bytes")]
    Wrong {
        /// The blob.
        digest: Digest,
        /// Which of its pieces.
        piece: usize,
    },
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DiskStore {
    /// Begins a blob that comes in pieces. With `proof`, which must be of this digest, each piece is
    /// verified when it comes.
    ///
    /// # Errors
    /// No room for it, even after an eviction; a failing disk.
    pub fn partial(
        &self,
        digest: Digest,
        executable: bool,
        proof: Option<PieceHashes>,
    ) -> Result<PartialBlob, StoreError> {
        let shared = self.shared.clone();
        let reservation = shared.reserve(allocated_bytes(&digest), true)?;
        let (file, temporary) = make_temporary(&shared)?;
        let path = temporary.path().to_owned();
        allocate(&shared, &file, &path, digest.size_bytes())?;
        let pieces = Pieces::of(digest.size_bytes());
        let state = State {
            temporary: Some(temporary),
            pieces: vec![Piece::Missing; pieces.count()],
            missing: pieces.count(),
        };
        Ok(PartialBlob {
            shared,
            digest,
            variant: Variant::of(executable),
            pieces,
            proof,
            file,
            path,
            state: Mutex::new(state),
            _reservation: reservation,
        })
    }

    /// The piece hashes of a blob in the store, remembered or made by hashing the file; none if the
    /// pieces of such a blob cannot be verified one by one.
    ///
    /// # Errors
    /// Missing or damaged; the disk failed.
    pub fn piece_hashes(&self, digest: &Digest) -> Result<Option<PieceHashes>, StoreError> {
        if !PieceHashes::exist_for(digest) {
            return Ok(None);
        }
        let known = || self.shared.piece_hashes.lock().get(digest);
        if let Some(known) = known() {
            return Ok(Some(known));
        }
        // Those who ask meanwhile wait for the first, who hashes the file for all.
        let turn = self.shared.piece_hashes.lock().turn(digest);
        let _turn = turn.lock();
        match known() {
            Some(known) => Ok(Some(known)),
            None => self.shared.make_piece_hashes(digest).map(Some),
        }
    }
}

impl PartialBlob {
    /// The file, as long as it is partial.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the blob is cut.
    pub fn pieces(&self) -> Pieces {
        self.pieces
    }

    /// Whether what was put may be read before all is there.
    pub fn is_readable(&self) -> bool {
        self.proof.is_some()
    }

    /// Writes a piece, if it is right. Blocks on the disk; may be called by several threads.
    ///
    /// # Errors
    /// Other bytes, as far as that can be told, or a failing disk.
    pub fn put(&self, piece: usize, bytes: &[u8]) -> Result<Put, PutError> {
        let right = match &self.proof {
            Some(proof) => proof.is_piece(piece, bytes),
            None => piece < self.pieces.count() && bytes.len() == self.pieces.len(piece),
        };
        if !right {
            return Err(PutError::Wrong { digest: self.digest, piece });
        }
        {
            let mut state = self.state.lock();
            if state.pieces[piece] != Piece::Missing {
                return Ok(Put::Known);
            }
            state.pieces[piece] = Piece::Writing;
        }
        let written = self.file.write_all_at(bytes, self.pieces.range(piece).start);
        let mut state = self.state.lock();
        match written {
            Ok(()) => {
                state.pieces[piece] = Piece::Held;
                state.missing -= 1;
                Ok(Put::Taken)
            }
            Err(error) => {
                state.pieces[piece] = Piece::Missing;
                Err(StoreError::io("write", &self.path, error).into())
            }
        }
    }

    /// Whether every piece is there.
    pub fn is_whole(&self) -> bool {
        self.state.lock().missing == 0
    }

    /// Gives the file the blob's name, once every piece is there; hashes it before, unless each piece
    /// was verified.
    ///
    /// # Errors
    /// Pieces are missing, the bytes are not those of the digest, or the disk failed.
    pub fn commit(&self) -> Result<(), StoreError> {
        let temporary = {
            let mut state = self.state.lock();
            if state.missing > 0 {
                return Err(StoreError::Missing(self.digest));
            }
            state.temporary.take()
        };
        let Some(temporary) = temporary else { return Ok(()) };
        if self.proof.is_none() {
            let read = |source| StoreError::io("read", &self.path, source);
            let expected = self.digest;
            let actual = hash_file(&self.file, expected.function(), expected.size_bytes());
            let actual = actual.map_err(read)?;
            if actual != expected {
                return Err(StoreError::Mismatch { expected, actual });
            }
        }
        set_mode(&self.file, &self.path, self.variant)?;
        self.shared.publish(temporary, Some(&self.file), &self.digest, self.variant, false)?;
        if let Some(proof) = &self.proof {
            self.shared.piece_hashes.lock().put(self.digest, proof.clone());
        }
        Ok(())
    }
}

impl Shared {
    /// Hashes a stored blob piece by piece, which verifies it like any first use does.
    fn make_piece_hashes(&self, digest: &Digest) -> Result<PieceHashes, StoreError> {
        let missing = || StoreError::Missing(*digest);
        let variant = self.any_variant(digest)?.ok_or_else(missing)?;
        let path = self.layout.variant_path(digest, variant);
        let failed = |source| StoreError::io("hash", &path, source);
        let file = match open_regular(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(digest, variant);
                return Err(missing());
            }
            Err(error) => return Err(failed(error)),
        };
        // Before the first byte: what changes while it is hashed is hashed again.
        let identity = Identity::of(&file.metadata().map_err(failed)?);
        let hashes = PieceHashes::of_file(&file, digest).map_err(failed)?.ok_or_else(missing)?;
        if hashes.root() != *digest {
            self.put_aside_file(digest, variant, &file)?;
            return Err(StoreError::Damaged(*digest));
        }
        self.learn(digest, variant, Presence::Verified(identity));
        self.piece_hashes.lock().put(*digest, hashes.clone());
        Ok(hashes)
    }
}

/// Gives a file its length and its blocks, so that the disk is not found full half-way.
fn allocate(shared: &Shared, file: &File, path: &Path, bytes: u64) -> Result<(), StoreError> {
    let len = i64::try_from(bytes).map_err(|_| StoreError::io("allocate", path, Errno::EFBIG))?;
    let allocate = || fallocate(file, FallocateFlags::empty(), 0, len);
    let allocated = match allocate() {
        Err(Errno::ENOSPC) => {
            shared.free(Wanted::Bytes(bytes))?;
            allocate()
        }
        first => first,
    };
    match allocated {
        // A file system that cannot: the length is enough.
        Err(Errno::EOPNOTSUPP) => {
            file.set_len(bytes).map_err(|source| StoreError::io("lengthen", path, source))
        }
        allocated => allocated.map_err(|source| StoreError::io("allocate", path, source)),
    }
}

/// Piece hashes of blobs, those used least recently forgotten first.
#[derive(Debug)]
pub(crate) struct PieceHashCache {
    lists: LruCache<Digest, PieceHashes>,
    hashes: usize,
    /// Lists that are being made, each held by who makes it and who waits for it.
    making: HashMap<Digest, Weak<Mutex<()>>>,
}

impl PieceHashCache {
    pub(crate) fn new() -> Self {
        Self { lists: LruCache::unbounded(), hashes: 0, making: HashMap::new() }
    }

    /// To be locked while the list of a blob is made.
    fn turn(&mut self, digest: &Digest) -> Arc<Mutex<()>> {
        self.making.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = self.making.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        self.making.insert(*digest, Arc::downgrade(&turn));
        turn
    }

    fn get(&mut self, digest: &Digest) -> Option<PieceHashes> {
        self.lists.get(digest).cloned()
    }

    fn put(&mut self, digest: Digest, list: PieceHashes) {
        self.hashes += list.count();
        if let Some(same) = self.lists.put(digest, list) {
            self.hashes -= same.count();
        }
        while self.hashes > REMEMBERED_HASHES
            && let Some((_, oldest)) = self.lists.pop_lru()
        {
            self.hashes -= oldest.count();
        }
    }
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;

    use crate::pieces::PIECE_BYTES;

    use super::*;

    #[test]
    fn who_makes_a_list_has_its_turn_alone_and_other_blobs_do_not_wait() {
        let mut cache = PieceHashCache::new();
        let digest = |text: &[u8]| DigestFunction::Blake3.digest(text);
        let first = cache.turn(&digest(b"a"));
        let held = first.lock();
        assert!(cache.turn(&digest(b"a")).try_lock().is_none());
        assert!(cache.turn(&digest(b"b")).try_lock().is_some());
        drop(held);
        assert!(cache.turn(&digest(b"a")).try_lock().is_some());
        drop(first);
        // What nobody makes any more is not kept.
        cache.turn(&digest(b"c"));
        assert_eq!(cache.making.len(), 1);
    }

    #[test]
    fn remembered_hashes_stay_below_their_limit() {
        let mut cache = PieceHashCache::new();
        let data = vec![0; 2 * PIECE_BYTES as usize];
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&data, 0).unwrap();
        let blob = DigestFunction::Blake3.digest(&data);
        let list = PieceHashes::of_file(&file, &blob).unwrap().unwrap();
        let digest = |number: usize| DigestFunction::Blake3.digest(&number.to_le_bytes());
        let fit = REMEMBERED_HASHES / list.count();
        for number in 0..fit + 2 {
            cache.put(digest(number), list.clone());
            cache.put(digest(number), list.clone());
        }
        assert_eq!((cache.lists.len(), cache.hashes), (fit, REMEMBERED_HASHES));
        assert!(cache.get(&digest(1)).is_none() && cache.get(&digest(2)).is_some());
    }
}
