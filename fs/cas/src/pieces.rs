//! Large blobs in pieces: how they are cut, and how each piece is verified on its own.
//!
//! A BLAKE3 hash is the root of a binary tree over chunks of 1 KiB. Pieces are cut where whole
//! subtrees end, so each has a chaining value, and the values of all pieces merge to the blob's hash.
//! Whoever has a list of values that merges to the digest therefore knows of every single piece
//! whether it is right, before any other has come. The list of a gigabyte is 32 KiB.
//!
//! Blobs of other functions are cut at the same places; what their pieces hold is known only when all
//! are there. See `blake3::hazmat` for the arithmetic.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use distbuild_proto::{Digest, DigestFunction};

/// Size of a piece in bytes; the last one of a blob may be shorter. A power of two.
pub const PIECE_BYTES: u64 = 1 << 20;
/// Pieces of one blob at most; those of a blob beyond 64 GiB are longer instead.
pub const MAX_PIECES: u64 = 1 << 16;
/// Length of a chaining value.
const VALUE_BYTES: usize = 32;
/// How much of a file is read at once while its pieces are hashed.
const READ_BYTES: usize = 256 << 10;
/// Threads that hash one file at most.
const HASHING_THREADS: usize = 4;

/// How a blob is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    size_bytes: u64,
    piece_bytes: u64,
}

impl Pieces {
    /// The pieces of a blob of this size.
    pub fn of(size_bytes: u64) -> Self {
        let piece_bytes = size_bytes.div_ceil(MAX_PIECES).next_power_of_two().max(PIECE_BYTES);
        Self { size_bytes, piece_bytes }
    }

    /// How many there are; none for an empty blob.
    pub fn count(&self) -> usize {
        self.size_bytes.div_ceil(self.piece_bytes) as usize
    }

    /// The bytes of a piece; empty beyond the last.
    pub fn range(&self, piece: usize) -> Range<u64> {
        let start = (piece as u64).saturating_mul(self.piece_bytes).min(self.size_bytes);
        start..start.saturating_add(self.piece_bytes).min(self.size_bytes)
    }

    /// Length of a piece in bytes; 0 beyond the last.
    pub fn len(&self, piece: usize) -> usize {
        let range = self.range(piece);
        (range.end - range.start) as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.size_bytes == 0
    }

    /// The pieces that these bytes lie in.
    pub fn touching(&self, bytes: &Range<u64>) -> Range<usize> {
        let end = bytes.end.min(self.size_bytes);
        let start = bytes.start.min(end);
        (start / self.piece_bytes) as usize..end.div_ceil(self.piece_bytes) as usize
    }
}

/// The chaining values of a BLAKE3 blob's pieces, known to merge to its digest. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceHashes {
    pieces: Pieces,
    /// Two at least.
    values: Arc<[ChainingValue]>,
}

/// Why a list proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Pieces of such a blob cannot be verified one by one: another function, or one piece only.
    #[error("{0} has no pieces that can be verified by themselves")]
    NotDivisible(Digest),
    /// A list of another length.
    #[error("{bytes} bytes of piece hashes came for {digest}, which has {pieces} pieces")]
    Length {
        /// The blob.
        digest: Digest,
        /// What came.
        bytes: usize,
        /// Pieces of the blob.
        pieces: usize,
    },
    /// The values do not merge to the digest.
    #[error("the piece hashes that came are not those of {0}")]
    Mismatch(Digest),
}

impl PieceHashes {
    /// Whether the pieces of such a blob can be verified one by one.
    pub fn exist_for(digest: &Digest) -> bool {
        digest.function() == DigestFunction::Blake3 && Pieces::of(digest.size_bytes()).count() > 1
    }

    /// Takes a list, as [`to_bytes`](Self::to_bytes) gives it, if it is that of this blob.
    ///
    /// # Errors
    /// It is not, or the blob has none.
    pub fn prove(digest: &Digest, bytes: &[u8]) -> Result<Self, ProofError> {
        if !Self::exist_for(digest) {
            return Err(ProofError::NotDivisible(*digest));
        }
        let pieces = Pieces::of(digest.size_bytes());
        let (values, rest) = bytes.as_chunks::<VALUE_BYTES>();
        if values.len() != pieces.count() || !rest.is_empty() {
            let (bytes, pieces) = (bytes.len(), pieces.count());
            return Err(ProofError::Length { digest: *digest, bytes, pieces });
        }
        let hashes = Self { pieces, values: values.into() };
        match hashes.root() == *digest {
            true => Ok(hashes),
            false => Err(ProofError::Mismatch(*digest)),
        }
    }

    /// Hashes the file of a blob by several threads; none if the blob has no such list. The list is that
    /// of whatever the file holds: compare its [`root`](Self::root).
    ///
    /// # Errors
    /// The file cannot be read, or is shorter than the blob.
    pub(crate) fn of_file(file: &File, digest: &Digest) -> io::Result<Option<Self>> {
        if !Self::exist_for(digest) {
            return Ok(None);
        }
        let pieces = Pieces::of(digest.size_bytes());
        let mut values = vec![[0; VALUE_BYTES]; pieces.count()];
        let threads = thread::available_parallelism().map_or(1, usize::from).min(HASHING_THREADS);
        let share = values.len().div_ceil(threads);
        let hash = |(number, values): (usize, &mut [ChainingValue])| {
            hash_pieces(file, pieces, number * share, values)
        };
        thread::scope(|scope| {
            let mut shares = values.chunks_mut(share).enumerate();
            let own = shares.next();
            let others: Vec<_> = shares.map(|share| scope.spawn(move || hash(share))).collect();
            let own = own.map_or(Ok(()), hash);
            let panicked = |_| Err(io::Error::other("a hashing thread panicked"));
            others
                .into_iter()
                .fold(own, |all, other| all.and(other.join().unwrap_or_else(panicked)))
        })?;
        Ok(Some(Self { pieces, values: values.into() }))
    }

    /// The blob that has these pieces.
    pub fn root(&self) -> Digest {
        let (left, right) = children(&self.values, self.pieces.size_bytes, &self.pieces);
        let hash = merge_subtrees_root(&left, &right, Mode::Hash);
        Digest::blake3(*hash.as_bytes(), self.pieces.size_bytes)
    }

    /// Whether these bytes are that piece.
    pub fn is_piece(&self, piece: usize, bytes: &[u8]) -> bool {
        let expected = self.values.get(piece);
        bytes.len() == self.pieces.len(piece)
            && expected.is_some_and(|expected| {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(self.pieces.range(piece).start);
                hasher.update(bytes).finalize_non_root() == *expected
            })
    }

    /// The values one after the other, 32 bytes each.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.values.as_flattened().to_vec()
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.values.len()
    }
}

/// The chaining value of neighbouring pieces that are a subtree of `len` bytes, but not the whole.
fn merge(values: &[ChainingValue], len: u64, pieces: &Pieces) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = children(values, len, pieces);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

/// The values of the two halves of several pieces that are a subtree.
fn children(values: &[ChainingValue], len: u64, pieces: &Pieces) -> (ChainingValue, ChainingValue) {
    let left_len = left_subtree_len(len);
    let (left, right) = values.split_at((left_len / pieces.piece_bytes) as usize);
    (merge(left, left_len, pieces), merge(right, len - left_len, pieces))
}

fn hash_pieces(
    file: &File,
    pieces: Pieces,
    first: usize,
    values: &mut [ChainingValue],
) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    for (piece, value) in (first..).zip(values) {
        let range = pieces.range(piece);
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(range.start);
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(READ_BYTES as u64) as usize;
            file.read_exact_at(&mut buffer[..len], at)?;
            hasher.update(&buffer[..len]);
            at += len as u64;
        }
        *value = hasher.finalize_non_root();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn hashes(data: &[u8]) -> PieceHashes {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(data).unwrap();
        let digest = DigestFunction::Blake3.digest(data);
        PieceHashes::of_file(&file, &digest).unwrap().unwrap()
    }

    /// Sizes at and around borders of pieces and of chunks.
    fn size() -> impl Strategy<Value = usize> {
        let piece = PIECE_BYTES as i64;
        (1..6_i64, prop_oneof![Just(0), -1025..1026_i64, 1..piece])
            .prop_map(move |(pieces, more)| (pieces * piece + more) as usize)
            .prop_filter("several pieces", |size| *size > PIECE_BYTES as usize)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_values_merge_to_the_digest_and_prove_each_piece(size in size(), seed: u8) {
            let data = bytes(size, seed);
            let digest = DigestFunction::Blake3.digest(&data);
            let made = hashes(&data);
            prop_assert_eq!(made.root(), digest);
            let proven = PieceHashes::prove(&digest, &made.to_bytes()).unwrap();
            let pieces = Pieces::of(size as u64);
            for piece in 0..pieces.count() {
                let range = pieces.range(piece);
                let piece_bytes = &data[range.start as usize..range.end as usize];
                prop_assert!(proven.is_piece(piece, piece_bytes));
                prop_assert!(!proven.is_piece(piece + 1, piece_bytes));
                prop_assert!(!proven.is_piece(piece, &piece_bytes[1..]));
            }
        }

        #[test]
        fn a_list_with_any_bit_flipped_proves_nothing(size in size(), at: prop::sample::Index) {
            let data = bytes(size, 0);
            let digest = DigestFunction::Blake3.digest(&data);
            let mut list = hashes(&data).to_bytes();
            let at = at.index(list.len());
            list[at] ^= 1;
            prop_assert_eq!(PieceHashes::prove(&digest, &list), Err(ProofError::Mismatch(digest)));
        }

        #[test]
        fn pieces_cover_the_blob_without_gap_or_overlap(size in 0..200_u64 << 30) {
            let pieces = Pieces::of(size);
            prop_assert!(pieces.count() as u64 <= MAX_PIECES);
            let mut end = 0;
            for piece in 0..pieces.count() {
                let range = pieces.range(piece);
                prop_assert_eq!(range.start, end);
                prop_assert!(range.end > range.start);
                prop_assert_eq!(pieces.touching(&range), piece..piece + 1);
                end = range.end;
            }
            prop_assert_eq!(end, size);
        }
    }

    #[test]
    fn a_list_of_another_length_or_for_another_function_is_refused() {
        let data = bytes(3 << 20, 1);
        let digest = DigestFunction::Blake3.digest(&data);
        let list = hashes(&data).to_bytes();
        for wrong in [&list[32..], &list[..list.len() - 1], &[]] {
            assert!(matches!(PieceHashes::prove(&digest, wrong), Err(ProofError::Length { .. })));
        }
        for other in [DigestFunction::Sha256.digest(&data), DigestFunction::Blake3.digest(b"x")] {
            let refused = PieceHashes::prove(&other, &list);
            assert_eq!(refused, Err(ProofError::NotDivisible(other)));
        }
    }
}
