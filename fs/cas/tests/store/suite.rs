//! What every store must do, run against the fake and the real one.

use distbuild_cas::{BlobStore, MemoryStore, StoreError};
use distbuild_proto::{Digest, DigestFunction};

fn every_store(check: impl Fn(&dyn BlobStore)) {
    check(&MemoryStore::new());
    let root = tempfile::tempdir().unwrap();
    check(&crate::open(root.path()));
}

#[test]
fn what_was_stored_is_read_back_under_every_function() {
    every_store(|store| {
        for function in DigestFunction::ALL {
            for data in [&b"x"[..], b"hello", &[0; 70_000]] {
                let digest = function.digest(data);
                assert!(!store.contains(&digest));
                assert!(matches!(store.read(&digest), Err(StoreError::Missing(_))));
                store.insert(&digest, data, false).unwrap();
                assert!(store.contains(&digest));
                assert_eq!(store.read(&digest).unwrap(), data);
            }
        }
    });
}

#[test]
fn equal_hashes_of_other_functions_or_sizes_are_other_blobs() {
    every_store(|store| {
        let digest = DigestFunction::Blake3.digest(b"abc");
        store.insert(&digest, b"abc", false).unwrap();
        let other = Digest::new(DigestFunction::Sha256, digest.hash(), 3).unwrap();
        let longer = Digest::new(DigestFunction::Blake3, digest.hash(), 4).unwrap();
        assert_eq!(store.missing(&[other, digest, longer]), [other, longer]);
    });
}

#[test]
fn bytes_that_are_not_what_the_digest_says_are_refused() {
    every_store(|store| {
        let digest = DigestFunction::Sha256.digest(b"abc");
        for wrong in [&b"abd"[..], b"ab", b"abcd", b""] {
            let error = store.insert(&digest, wrong, false).unwrap_err();
            assert!(matches!(error, StoreError::Mismatch { expected, .. } if expected == digest));
        }
        assert!(!store.contains(&digest));
    });
}

#[test]
fn the_empty_blob_is_always_there() {
    every_store(|store| {
        for function in DigestFunction::ALL {
            let empty = function.digest(b"");
            assert!(store.contains(&empty));
            assert!(store.read(&empty).unwrap().is_empty());
            store.insert(&empty, b"", false).unwrap();
            let no_blob = Digest::new(function, &vec![7; function.hash_len()], 0).unwrap();
            assert!(!store.contains(&no_blob));
            assert!(store.read(&no_blob).unwrap_err().is_missing());
        }
    });
}

#[test]
fn storing_a_blob_again_changes_nothing() {
    every_store(|store| {
        let digest = DigestFunction::Blake3.digest(b"again");
        for executable in [false, true, false, true] {
            store.insert(&digest, b"again", executable).unwrap();
        }
        assert_eq!(store.read(&digest).unwrap(), &b"again"[..]);
    });
}
