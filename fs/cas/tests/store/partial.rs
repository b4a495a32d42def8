//! Blobs that arrive in pieces.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use distbuild_cas::pieces::{PIECE_BYTES, PieceHashes, Pieces};
use distbuild_cas::{DiskStore, FullReason, PartialBlob, Put, PutError, StoreError};
use distbuild_proto::{Digest, DigestFunction};
use proptest::prelude::*;

use crate::{digest, files_below, open, open_sized};

const PIECE: usize = PIECE_BYTES as usize;

/// Bytes without two equal pieces.
fn bytes(len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// The list of a blob, as a store that holds it makes it.
fn proof(data: &[u8]) -> PieceHashes {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let digest = crate::put(&store, data);
    store.piece_hashes(&digest).unwrap().unwrap()
}

fn piece(data: &[u8], piece: usize) -> &[u8] {
    let range = Pieces::of(data.len() as u64).range(piece);
    &data[range.start as usize..range.end as usize]
}

fn put_all(partial: &PartialBlob, data: &[u8], order: &[usize]) {
    for &number in order {
        assert_eq!(partial.put(number, piece(data, number)).unwrap(), Put::Taken);
    }
}

fn unfinished(store: &DiskStore) -> usize {
    files_below(&store.layout().root().join("tmp")).len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn pieces_in_any_order_make_the_blob(
        size in (1..4_usize, prop_oneof![Just(0), 0..3_usize, Just(PIECE - 1), 1..PIECE])
            .prop_map(|(pieces, more)| pieces * PIECE + more),
        seed: u64,
        executable: bool,
        function in prop::sample::select(DigestFunction::ALL.to_vec()),
    ) {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let data = bytes(size);
        let digest = function.digest(&data);
        let proof = PieceHashes::exist_for(&digest).then(|| proof(&data));
        let partial = store.partial(digest, executable, proof).unwrap();
        let mut order: Vec<_> = (0..partial.pieces().count()).collect();
        order.sort_by_key(|number| (*number as u64 + 1).wrapping_mul(seed | 1));
        put_all(&partial, &data, &order);
        prop_assert!(partial.is_whole() && !store.contains(&digest));
        partial.commit().unwrap();
        drop(partial);
        let file = store.open_file(&digest, executable).unwrap();
        let mut stored = vec![0; size];
        file.read_exact_at(&mut stored, 0).unwrap();
        prop_assert_eq!(file.metadata().unwrap().len(), size as u64);
        prop_assert!(stored == data);
        prop_assert_eq!(unfinished(&store), 0);
    }
}

#[test]
fn a_piece_with_other_bytes_is_refused_and_never_written() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let data = bytes(3 * PIECE + 5);
    let partial = store.partial(digest(&data), false, Some(proof(&data))).unwrap();
    let mut wrong = piece(&data, 1).to_vec();
    wrong[77] ^= 1;
    for (number, wrong) in [(1, &wrong[..]), (0, piece(&data, 1)), (3, &data[..6]), (4, &[])] {
        let refused = partial.put(number, wrong);
        assert!(matches!(refused, Err(PutError::Wrong { piece, .. }) if piece == number));
    }
    let untouched = File::open(partial.path()).unwrap();
    let mut read = vec![1; data.len()];
    untouched.read_exact_at(&mut read, 0).unwrap();
    assert!(read.iter().all(|byte| *byte == 0));
    assert!(matches!(partial.commit(), Err(StoreError::Missing(_))));
    put_all(&partial, &data, &[1, 0, 3, 2]);
    assert_eq!(partial.put(1, piece(&data, 1)).unwrap(), Put::Known);
    partial.commit().unwrap();
    assert_eq!(store.read(&digest(&data)).unwrap(), data);
}

#[test]
fn what_was_put_can_be_read_and_the_file_stays_the_same_when_it_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let data = bytes(2 * PIECE + 1);
    let partial = store.partial(digest(&data), false, Some(proof(&data))).unwrap();
    assert!(partial.is_readable());
    let early = File::open(partial.path()).unwrap();
    put_all(&partial, &data, &[1]);
    let mut read = vec![0; PIECE];
    early.read_exact_at(&mut read, PIECE_BYTES).unwrap();
    assert_eq!(read, piece(&data, 1));
    put_all(&partial, &data, &[0, 2]);
    partial.commit().unwrap();
    let late = store.open_file(&digest(&data), false).unwrap().metadata().unwrap();
    assert_eq!(early.metadata().unwrap().ino(), late.ino());
}

#[test]
fn without_piece_hashes_wrong_bytes_are_found_at_the_end() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let data = bytes(PIECE + 9);
    let digest = DigestFunction::Sha256.digest(&data);
    let partial = store.partial(digest, false, None).unwrap();
    assert!(!partial.is_readable());
    let mut wrong = piece(&data, 0).to_vec();
    wrong[0] ^= 1;
    partial.put(0, &wrong).unwrap();
    partial.put(1, piece(&data, 1)).unwrap();
    assert!(matches!(partial.commit(), Err(StoreError::Mismatch { .. })));
    drop(partial);
    assert!(!store.contains(&digest));
    assert_eq!((unfinished(&store), files_below(&root.path().join("sha256")).len()), (0, 0));
}

#[test]
fn a_partial_blob_counts_to_the_size_of_the_store_until_it_is_dropped() {
    let root = tempfile::tempdir().unwrap();
    let store = open_sized(root.path(), 5 << 20);
    let data = bytes(3 << 20);
    let other = DigestFunction::Sha256.digest(&data);
    let partial = store.partial(digest(&data), false, None).unwrap();
    assert_eq!(unfinished(&store), 1);
    let full = store.partial(other, false, None);
    assert!(matches!(full, Err(StoreError::Full(FullReason::AllInUse))));
    drop(partial);
    assert_eq!(unfinished(&store), 0);
    assert!(store.partial(other, false, None).is_ok());
}

#[test]
fn what_a_dead_process_left_is_removed_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let left = root.path().join("tmp/1-dead");
    drop(open(root.path()));
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("0"), bytes(PIECE)).unwrap();
    let store = open(root.path());
    assert_eq!(unfinished(&store), 0);
}

#[test]
fn making_the_list_of_a_damaged_blob_puts_it_aside() {
    let root = tempfile::tempdir().unwrap();
    let data = bytes(2 * PIECE);
    let digest: Digest = crate::put(&open(root.path()), &data);
    let store = open(root.path());
    crate::damage::flip_a_bit(&store.blob_path(&digest, false));
    assert!(matches!(store.piece_hashes(&digest), Err(StoreError::Damaged(_))));
    assert!(!store.contains(&digest));
    assert!(matches!(store.piece_hashes(&digest), Err(StoreError::Missing(_))));
}
