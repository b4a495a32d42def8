//! Writing, reading and reopening.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Barrier;

use distbuild_cas::{Layout, StoreError};
use distbuild_proto::DigestFunction;

use crate::{block, digest, files_below, open, open_sized, put};

#[test]
fn a_store_keeps_its_contents_and_its_identity_when_it_is_opened_again() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let (id, blob) = (*store.id(), put(&store, b"kept"));
    drop(store);
    let store = open(root.path());
    assert_eq!(*store.id(), id);
    assert_eq!(store.read(&blob).unwrap(), &b"kept"[..]);
    let elsewhere = tempfile::tempdir().unwrap();
    assert_ne!(*open(elsewhere.path()).id(), id);
}

#[test]
fn the_two_variants_are_two_files_with_their_own_modes() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blob = put(&store, b"#!/bin/sh\n");
    let plain = store.prepare(&blob, false).unwrap();
    let executable = store.prepare(&blob, true).unwrap();
    let layout = Layout::new(root.path());
    assert_eq!(plain, layout.blob_path(&blob, false));
    assert_eq!(executable, layout.blob_path(&blob, true));
    let (plain, executable) = (fs::metadata(plain).unwrap(), fs::metadata(executable).unwrap());
    assert_eq!(plain.permissions().mode() & 0o7777, 0o444);
    assert_eq!(executable.permissions().mode() & 0o7777, 0o555);
    assert_ne!(plain.ino(), executable.ino());
    assert_eq!(store.used_bytes(), 8192);
}

#[test]
fn the_plain_variant_is_made_from_the_executable_one_too() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blob = digest(b"tool");
    store.insert(&blob, b"tool", true).unwrap();
    let mut text = String::new();
    store.open_file(&blob, false).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "tool");
    assert_eq!(store.known_blobs(), 1);
}

#[test]
fn the_empty_blob_has_files_when_they_are_needed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let empty = DigestFunction::Sha256.digest(b"");
    for executable in [true, false] {
        let file = store.open_file(&empty, executable).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert_eq!(file.metadata().unwrap().mode() & 0o111 != 0, executable);
    }
    store.open_bytes(&empty).unwrap();
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let before = files_below(root.path());
    let blob = digest(b"half of it");
    let mut writer = store.writer(blob, false).unwrap();
    writer.write_all(b"half").unwrap();
    assert!(!store.contains(&blob));
    drop(writer);
    assert_eq!(files_below(root.path()), before);
    assert_eq!(store.used_bytes(), 0);
}

#[test]
fn a_writer_checks_size_and_hash() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blob = digest(b"right");
    let mut short = store.writer(blob, false).unwrap();
    short.write_chunk(b"rig").unwrap();
    assert!(matches!(short.commit(), Err(StoreError::Mismatch { .. })));
    let mut wrong = store.writer(blob, false).unwrap();
    wrong.write_chunk(b"wrong").unwrap();
    assert!(matches!(wrong.commit(), Err(StoreError::Mismatch { .. })));
    let mut long = store.writer(blob, false).unwrap();
    assert!(matches!(long.write_chunk(b"right!"), Err(StoreError::TooLong { .. })));
    assert!(long.write_all(b"right and more").is_err());
    assert!(!store.contains(&blob));
    let mut right = store.writer(blob, true).unwrap();
    right.write_all(b"ri").unwrap();
    right.write_all(b"ght").unwrap();
    right.commit().unwrap();
    assert_eq!(store.read(&blob).unwrap(), &b"right"[..]);
}

#[test]
fn ten_writers_of_one_blob_all_succeed_and_it_is_stored_once() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (open(root.path()), open(root.path()));
    let data = vec![b'x'; 300_000];
    let blob = digest(&data);
    let together = Barrier::new(10);
    std::thread::scope(|scope| {
        for number in 0..10 {
            let store = if number % 2 == 0 { &one } else { &two };
            let (data, together) = (&data, &together);
            scope.spawn(move || {
                let mut writer = store.writer(blob, false).unwrap();
                for chunk in data.chunks(100_000) {
                    together.wait();
                    writer.write_chunk(chunk).unwrap();
                }
                writer.commit().unwrap();
                assert!(store.contains(&blob));
            });
        }
    });
    drop((one, two));
    assert_eq!(files_below(&root.path().join("blake3")).len(), 1);
    assert_eq!(files_below(&root.path().join("tmp")).len(), 0);
    assert_eq!(open(root.path()).read(&blob).unwrap(), data);
}

#[test]
fn what_a_dead_process_left_is_removed_and_what_a_live_one_writes_is_not() {
    let root = tempfile::tempdir().unwrap();
    let left = root.path().join("tmp/4194304-dead");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("0"), "half").unwrap();
    fs::write(root.path().join("tmp/stray"), "").unwrap();
    let store = open(root.path());
    assert!(!left.exists() && !root.path().join("tmp/stray").exists());
    let blob = digest(b"alive");
    let mut writer = store.writer(blob, false).unwrap();
    writer.write_all(b"ali").unwrap();
    let other = open(root.path());
    writer.write_all(b"ve").unwrap();
    writer.commit().unwrap();
    assert!(other.contains(&blob));
}

#[test]
fn a_blob_that_another_process_stored_is_found() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (open(root.path()), open(root.path()));
    let blob = digest(b"shared");
    assert!(!two.contains(&blob));
    put(&one, b"shared");
    assert!(two.contains(&blob));
    assert_eq!(two.read(&blob).unwrap(), &b"shared"[..]);
}

#[test]
fn a_scan_finds_what_is_there_and_leaves_other_peoples_files_alone() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    for number in 0..10 {
        put(&store, &block(number));
    }
    let tool = digest(&block(3));
    store.prepare(&tool, true).unwrap();
    drop(store);
    let foreign = root.path().join("blake3/readme");
    fs::write(&foreign, "hello").unwrap();
    let store = open(root.path());
    assert_eq!(store.known_blobs(), 0);
    assert!(store.contains(&tool));
    let report = store.spawn_scan().unwrap().join().unwrap().unwrap();
    assert_eq!((report.files, report.foreign, report.damaged), (11, 1, 0));
    assert_eq!((store.known_blobs(), store.used_bytes()), (10, 11 * 4096));
    assert_eq!(store.scan().unwrap(), report);
    assert!(foreign.exists());
}

#[test]
fn a_blob_larger_than_the_limit_is_read_as_a_file_only() {
    let root = tempfile::tempdir().unwrap();
    let config = distbuild_cas::StoreConfig {
        max_read_bytes: 10,
        ..distbuild_cas::StoreConfig::new(root.path())
    };
    let store = distbuild_cas::DiskStore::open(config).unwrap();
    let blob = put(&store, b"eleven byte");
    assert!(matches!(store.read(&blob), Err(StoreError::TooLarge { limit_bytes: 10, .. })));
    store.open_bytes(&blob).unwrap();
}

#[test]
fn a_blob_larger_than_the_store_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = open_sized(root.path(), 4096);
    let data = vec![1; 4097];
    let error = store.insert(&digest(&data), &data, false).unwrap_err();
    assert!(matches!(error, StoreError::Full(distbuild_cas::FullReason::LargerThanStore)));
}
