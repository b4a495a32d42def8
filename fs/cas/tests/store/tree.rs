//! Completeness and leases of whole trees.

use std::fs;
use std::time::Instant;

use distbuild_cas::{Completeness, DiskStore, LeaseTreeError, StoreConfig, StoreError};
use distbuild_proto::{Digest, DigestFunction};

use crate::{digest, name, open, put, put_directory};

fn evicts_all(root: &std::path::Path) -> DiskStore {
    let config = StoreConfig { low_watermark: 0.0, min_free_bytes: 0, ..StoreConfig::new(root) };
    DiskStore::open(config).unwrap()
}

fn missing(answer: Completeness) -> Vec<Digest> {
    match answer {
        Completeness::Complete => Vec::new(),
        Completeness::Missing(missing) => missing.digests,
    }
}

/// `/a/shared/leaf`, `/b/shared/leaf`, `/own`.
fn diamond(store: &DiskStore) -> (Digest, Digest, Digest) {
    let leaf = put(store, b"leaf");
    let shared = put_directory(store, &[("leaf", leaf)], &[]);
    let side = put_directory(store, &[], &[("shared", shared)]);
    let own = put(store, b"own");
    let root = put_directory(store, &[("own", own)], &[("a", side), ("b", side)]);
    (root, side, leaf)
}

#[test]
fn a_tree_is_complete_when_everything_it_reaches_is_there() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let (absent, empty) = (digest(b"absent"), digest(b""));
    let inner = put_directory(&store, &[("empty", empty), ("absent", absent)], &[]);
    let tree = put_directory(&store, &[("x", absent)], &[("inner", inner), ("empty", empty)]);
    assert_eq!(missing(store.complete(&tree).unwrap()), [absent]);
    let Err(LeaseTreeError::Missing(lacks)) = store.lease_tree(&tree) else { panic!() };
    assert_eq!((lacks.count, lacks.digests.as_slice()), (1, &[absent][..]));
    assert_eq!(store.leased_blobs(), 0);
    put(&store, b"absent");
    assert_eq!(store.complete(&tree).unwrap(), Completeness::Complete);
    assert_eq!(missing(store.complete(&digest(b"no tree")).unwrap()), [digest(b"no tree")]);
    assert_eq!(store.complete(&empty).unwrap(), Completeness::Complete);
}

#[test]
fn a_leased_tree_survives_every_eviction_and_goes_when_it_is_released() {
    let root = tempfile::tempdir().unwrap();
    let store = evicts_all(root.path());
    let (tree, side, leaf) = diamond(&store);
    let other = put(&store, b"other");
    let (one, two) = (store.lease_tree(&tree).unwrap(), store.lease_tree(&tree).unwrap());
    let part = store.lease_tree(&side).unwrap();
    assert_eq!(*one.root(), tree);
    for lease in [one, two] {
        store.evict_to_low_watermark().unwrap();
        assert!(!store.contains(&other));
        assert_eq!(store.complete(&tree).unwrap(), Completeness::Complete);
        drop(lease);
    }
    store.evict_to_low_watermark().unwrap();
    assert_eq!(missing(store.complete(&tree).unwrap()), [tree]);
    assert_eq!(store.complete(&side).unwrap(), Completeness::Complete);
    drop(part);
    store.evict_to_low_watermark().unwrap();
    assert!(!store.contains(&leaf));
    assert_eq!((store.leased_blobs(), store.used_bytes()), (0, 0));
}

#[test]
fn an_idle_tree_costs_nothing_to_lease_again_and_no_room() {
    let root = tempfile::tempdir().unwrap();
    let store = evicts_all(root.path());
    let (tree, side, leaf) = diamond(&store);
    drop(store.lease_tree(&tree).unwrap());
    assert!(store.leased_blobs() > 0);
    // Taken from the idle tree, as a root and as a part of another one.
    let again = store.lease_tree(&tree).unwrap();
    drop(store.lease_tree(&side).unwrap());
    let above = put_directory(&store, &[], &[("tree", tree)]);
    drop(again);
    let above = store.lease_tree(&above).unwrap();
    store.evict_to_low_watermark().unwrap();
    assert!(store.contains(&leaf));
    drop(above);
    store.evict_to_low_watermark().unwrap();
    assert!(!store.contains(&leaf));
    assert_eq!(store.leased_blobs(), 0);
}

#[test]
fn an_answer_is_as_old_as_the_generation() {
    let root = tempfile::tempdir().unwrap();
    let store = evicts_all(root.path());
    let (tree, ..) = diamond(&store);
    assert_eq!(store.complete(&tree).unwrap(), Completeness::Complete);
    let generation = store.generation();
    store.evict_to_low_watermark().unwrap();
    assert!(store.generation() > generation);
    assert_eq!(missing(store.complete(&tree).unwrap()), [tree]);
}

#[test]
fn a_blob_that_is_no_directory_is_told_apart_from_a_missing_one() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let text = put(&store, b"\xff\xff\xff no directory");
    assert!(matches!(store.complete(&text), Err(StoreError::NotDirectory { .. })));
    let tree = put_directory(&store, &[], &[("text", text)]);
    assert!(matches!(
        store.lease_tree(&tree),
        Err(LeaseTreeError::Store(StoreError::NotDirectory { .. }))
    ));
    assert_eq!(store.leased_blobs(), 0);
}

#[test]
fn the_list_of_missing_blobs_is_bounded() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let names: Vec<_> = (0..3000).map(|number| format!("f{number}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), digest(name.as_bytes()))).collect();
    let tree = put_directory(&store, &files, &[]);
    let Completeness::Missing(missing) = store.complete(&tree).unwrap() else { panic!() };
    assert_eq!((missing.count, missing.digests.len()), (3000, distbuild_cas::MISSING_LISTED));
}

#[test]
fn a_second_look_at_a_large_tree_reads_no_disk_and_walks_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    // 50 directories of 200 files each that share 200 blobs.
    let blobs: Vec<_> = (0..200u32).map(|number| put(&store, &number.to_le_bytes())).collect();
    let mut directories = Vec::new();
    for number in 0..50 {
        let files = blobs
            .iter()
            .enumerate()
            .map(|(at, blob)| distbuild_proto::FileNode {
                name: name(&format!("{number}-{at}")),
                digest: *blob,
                executable: false,
            })
            .collect();
        let directory = distbuild_proto::Directory::new(files, vec![], vec![]).unwrap();
        let (digest, blob) = directory.encode_with_digest(DigestFunction::Blake3);
        store.insert(&digest, &blob, false).unwrap();
        directories.push((format!("d{number}"), digest));
    }
    let children: Vec<_> =
        directories.iter().map(|(name, digest)| (name.as_str(), *digest)).collect();
    let tree = put_directory(&store, &[], &children);
    let start = Instant::now();
    assert_eq!(store.complete(&tree).unwrap(), Completeness::Complete);
    drop(store.lease_tree(&tree).unwrap());
    let first = start.elapsed();
    // Behind the store's back, so only a look at the disk could see it.
    for (_, digest) in &children {
        fs::remove_file(store.blob_path(digest, false)).unwrap();
    }
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(store.complete(&tree).unwrap(), Completeness::Complete);
        drop(store.lease_tree(&tree).unwrap());
    }
    // A hundred second looks are cheaper than the first; by far, but a test is not a benchmark.
    assert!(start.elapsed() < first * 10, "{:?} against {first:?}", start.elapsed());
}
