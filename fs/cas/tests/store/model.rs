//! Random histories of a disk store against a map.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use distbuild_cas::{DiskStore, StoreError};
use distbuild_proto::{Digest, DigestFunction};
use proptest::prelude::*;

use crate::{open, put_directory};

#[derive(Clone, Debug)]
enum Step {
    Insert { blob: u8, executable: bool },
    Wrong { blob: u8 },
    Abandon { blob: u8 },
    Adopt { blob: u8, executable: bool },
    Read { blob: u8 },
    Prepare { blob: u8, executable: bool },
    Damage { blob: u8 },
    Truncate { blob: u8 },
    Tree { blobs: BTreeSet<u8> },
    Scan,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let blob = 0..8u8;
    let step = prop_oneof![
        4 => (blob.clone(), any::<bool>())
            .prop_map(|(blob, executable)| Step::Insert { blob, executable }),
        1 => blob.clone().prop_map(|blob| Step::Wrong { blob }),
        1 => blob.clone().prop_map(|blob| Step::Abandon { blob }),
        2 => (blob.clone(), any::<bool>())
            .prop_map(|(blob, executable)| Step::Adopt { blob, executable }),
        4 => blob.clone().prop_map(|blob| Step::Read { blob }),
        3 => (blob.clone(), any::<bool>())
            .prop_map(|(blob, executable)| Step::Prepare { blob, executable }),
        1 => blob.clone().prop_map(|blob| Step::Damage { blob }),
        1 => blob.clone().prop_map(|blob| Step::Truncate { blob }),
        2 => prop::collection::btree_set(blob, 0..4).prop_map(|blobs| Step::Tree { blobs }),
        1 => Just(Step::Scan),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

fn contents(blob: u8) -> Vec<u8> {
    vec![b'a' + blob; 10 + usize::from(blob) * 1000]
}

fn digest(blob: u8) -> Digest {
    DigestFunction::ALL[usize::from(blob) % 3].digest(&contents(blob))
}

/// Overwrites both files of a blob and forgets, by opening the store again, that they were good.
fn spoil(store: DiskStore, root: &std::path::Path, blob: u8, bytes: &[u8]) -> DiskStore {
    for executable in [false, true] {
        let path = store.blob_path(&digest(blob), executable);
        if path.exists() {
            fs::write(path, bytes).unwrap();
        }
    }
    drop(store);
    open(root)
}

fn run(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let mut store = open(&root);
    let mut model: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Insert { blob, executable } => {
                store.insert(&digest(blob), &contents(blob), executable).unwrap();
                model.insert(blob, contents(blob));
            }
            Step::Wrong { blob } => {
                let error = store.insert(&digest(blob), b"something else", false).unwrap_err();
                assert!(matches!(error, StoreError::Mismatch { .. }));
            }
            Step::Abandon { blob } => {
                let mut writer = store.writer(digest(blob), false).unwrap();
                writer.write_chunk(&contents(blob)).unwrap();
            }
            Step::Adopt { blob, executable } => {
                let path = folder.path().join("finished");
                fs::write(&path, contents(blob)).unwrap();
                let function = digest(blob).function();
                let adopted = store.hash_and_adopt(&path, function, executable).unwrap();
                assert_eq!(adopted, digest(blob));
                model.insert(blob, contents(blob));
            }
            Step::Read { blob } => match (store.read(&digest(blob)), model.get(&blob)) {
                (Ok(read), Some(expected)) => assert_eq!(read, expected),
                (Err(error), None) => assert!(error.is_missing()),
                (read, expected) => panic!("{read:?} for {expected:?}"),
            },
            Step::Prepare { blob, executable } => {
                match (store.prepare(&digest(blob), executable), model.get(&blob)) {
                    (Ok(path), Some(expected)) => assert_eq!(fs::read(path).unwrap(), *expected),
                    (Err(error), None) => assert!(error.is_missing()),
                    (prepared, expected) => panic!("{prepared:?} for {expected:?}"),
                }
            }
            Step::Damage { blob } => {
                let mut bytes = contents(blob);
                bytes[3] ^= 64;
                store = spoil(store, &root, blob, &bytes);
                let _ = store.verify(&digest(blob));
                let _ = store.verify(&digest(blob));
                model.remove(&blob);
            }
            Step::Truncate { blob } => {
                store = spoil(store, &root, blob, &contents(blob)[1..]);
                model.remove(&blob);
            }
            Step::Tree { blobs } => {
                // One function a tree, so only the blobs of one function take part.
                let blobs: Vec<_> = blobs.into_iter().filter(|blob| blob % 3 == 2).collect();
                let names: Vec<_> = blobs.iter().map(|blob| format!("{blob}")).collect();
                let files: Vec<_> = names
                    .iter()
                    .zip(&blobs)
                    .map(|(name, blob)| (name.as_str(), digest(*blob)))
                    .collect();
                let tree = put_directory(&store, &files, &[]);
                let whole = blobs.iter().all(|blob| model.contains_key(blob));
                assert_eq!(store.lease_tree(&tree).is_ok(), whole);
            }
            Step::Scan => {
                store.scan().unwrap();
            }
            Step::Reopen => {
                drop(store);
                store = open(&root);
            }
        }
        for blob in 0..8 {
            assert_eq!(store.contains(&digest(blob)), model.contains_key(&blob), "blob {blob}");
        }
    }
    drop(store);
    assert_eq!(crate::files_below(&root.join("tmp")).len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_store_behaves_as_a_map(steps in steps()) {
        run(steps);
    }
}
