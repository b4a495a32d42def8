//! Making room, and what must not go for it.

use std::fs;
use std::time::{Duration, SystemTime};

use distbuild_cas::{DiskStore, Eviction, FullReason, StoreConfig, StoreError};
use distbuild_proto::Digest;

use crate::{block, digest, files_below, open, open_sized, put};

/// A store that evicts only when it must.
fn tight(root: &std::path::Path, blocks: u64, low: f64) -> DiskStore {
    let config = StoreConfig {
        max_bytes: blocks * 4096,
        high_watermark: 1.0,
        low_watermark: low,
        min_free_bytes: 0,
        ..StoreConfig::new(root)
    };
    DiskStore::open(config).unwrap()
}

fn held(store: &DiskStore, blobs: &[Digest]) -> Vec<bool> {
    blobs.iter().map(|blob| store.contains(blob)).collect()
}

#[test]
fn the_blobs_used_least_recently_go_first() {
    let root = tempfile::tempdir().unwrap();
    let store = tight(root.path(), 10, 0.3);
    let blobs: Vec<_> = (0..10).map(|number| put(&store, &block(number))).collect();
    store.read(&blobs[0]).unwrap();
    assert_eq!(store.evict_to_low_watermark().unwrap(), Eviction::Done { freed_bytes: 7 * 4096 });
    assert_eq!(store.drain_evicted().digests, blobs[1..8]);
    let kept: Vec<_> = held(&store, &blobs);
    assert_eq!(kept.iter().filter(|kept| **kept).count(), 3);
    assert!(kept[0] && kept[8] && kept[9]);
    assert_eq!(files_below(&root.path().join("blake3")).len(), 3);
    assert_eq!(files_below(&root.path().join("tmp")).len(), 0);
}

#[test]
fn a_leased_blob_stays_until_its_last_lease_ends() {
    let root = tempfile::tempdir().unwrap();
    let store = tight(root.path(), 4, 0.0);
    let absent = digest(&block(9));
    let blob = put(&store, &block(1));
    let mut first = store.lease(&[absent]);
    first.extend(&[blob]);
    let second = store.lease(&[blob]);
    put(&store, &block(9));
    drop(first);
    put(&store, &block(2));
    store.evict_to_low_watermark().unwrap();
    assert_eq!(held(&store, &[blob, absent]), [true, false]);
    drop(second);
    store.evict_to_low_watermark().unwrap();
    assert!(!store.contains(&blob));
    assert_eq!(store.leased_blobs(), 0);
}

#[test]
fn a_write_makes_room_and_fails_when_everything_is_leased() {
    let root = tempfile::tempdir().unwrap();
    let store = tight(root.path(), 4, 1.0);
    let blobs: Vec<_> = (0..4).map(|number| put(&store, &block(number))).collect();
    let lease = store.lease(&blobs[..3]);
    let new = put(&store, &block(4));
    assert_eq!(held(&store, &blobs), [true, true, true, false]);
    let lease_of_new = store.lease(&[new]);
    let error = store.insert(&digest(&block(5)), &block(5), false).unwrap_err();
    assert!(matches!(error, StoreError::Full(FullReason::AllInUse)));
    drop(lease);
    put(&store, &block(5));
    assert!(store.contains(&new));
    drop(lease_of_new);
}

#[test]
fn room_is_set_aside_for_what_is_being_written() {
    let root = tempfile::tempdir().unwrap();
    let store = tight(root.path(), 2, 1.0);
    let one = store.writer(digest(&block(1)), false).unwrap();
    let _two = store.writer(digest(&block(2)), false).unwrap();
    assert!(matches!(store.writer(digest(&block(3)), false), Err(StoreError::Full(_))));
    drop(one);
    store.writer(digest(&block(3)), false).unwrap();
}

#[test]
fn a_store_above_its_high_watermark_shrinks_by_itself() {
    let root = tempfile::tempdir().unwrap();
    let store = open_sized(root.path(), 100 * 4096);
    for number in 0..1000 {
        put(&store, &block(number));
        assert!(store.used_bytes() <= 100 * 4096);
    }
    assert!(store.contains(&digest(&block(999))));
    assert!(!store.contains(&digest(&block(0))));
}

#[test]
fn nothing_is_evicted_while_another_process_has_the_store_open() {
    let root = tempfile::tempdir().unwrap();
    let store = tight(root.path(), 4, 0.0);
    let other = open(root.path());
    let blobs: Vec<_> = (0..8).map(|number| put(&store, &block(number))).collect();
    assert_eq!(store.evict_to_low_watermark().unwrap(), Eviction::Postponed);
    assert_eq!(held(&other, &blobs), [true; 8]);
    let theirs = put(&other, &block(100));
    drop(other);
    store.evict_to_low_watermark().unwrap();
    assert_eq!(files_below(&root.path().join("blake3")).len(), 0);
    assert!(!store.contains(&theirs));
}

#[test]
fn the_order_of_use_survives_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blobs: Vec<_> = (0..4).map(|number| put(&store, &block(number))).collect();
    // As if the blobs had last been used days ago, in another order.
    for (blob, days) in blobs.iter().zip([2, 4, 1, 3]) {
        let path = store.blob_path(blob, false);
        let at = SystemTime::now() - Duration::from_secs(days * 86_400);
        fs::File::open(path).unwrap().set_modified(at).unwrap();
    }
    drop(store);
    let store = tight(root.path(), 4, 0.5);
    assert!(store.contains(&blobs[1]));
    store.scan().unwrap();
    store.evict_to_low_watermark().unwrap();
    assert_eq!(held(&store, &blobs), [false, true, true, false]);
    let path = store.blob_path(&blobs[1], false);
    let stamped = fs::metadata(path).unwrap().modified().unwrap();
    assert!(stamped > SystemTime::now() - Duration::from_secs(3600));
}

#[test]
fn a_full_disk_is_told_apart_and_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let config = StoreConfig { min_free_bytes: u64::MAX / 2, ..StoreConfig::new(root.path()) };
    let store = DiskStore::open(config).unwrap();
    let error = store.insert(&digest(b"x"), b"x", false).unwrap_err();
    assert!(matches!(error, StoreError::Full(FullReason::Disk)));
    assert_eq!(files_below(&root.path().join("tmp")).len(), 0);
}

#[test]
fn what_is_leased_can_be_read_whatever_the_others_write() {
    let root = tempfile::tempdir().unwrap();
    let store = tight(root.path(), 24, 0.5);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..150 {
                    // Shared between the threads now and then.
                    let data = block((round * 7 + thread) % 40);
                    let blob = digest(&data);
                    let lease = store.lease(&[blob]);
                    store.insert(&blob, &data, false).unwrap();
                    assert_eq!(store.read(&blob).unwrap(), data);
                    let path = store.prepare(&blob, round % 3 == 0).unwrap();
                    assert_eq!(fs::read(path).unwrap(), data);
                    drop(lease);
                }
            });
        }
    });
    let used_bytes = store.used_bytes();
    let files = files_below(&root.path().join("blake3")).len() as u64;
    assert_eq!(files * 4096, used_bytes);
    assert!(used_bytes <= 24 * 4096);
}

/// Runs `scene` where a file system of so many bytes is mounted, for its thread alone.
fn on_a_small_disk(bytes: u64, scene: impl FnOnce(&std::path::Path) + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let options = format!("size={bytes}");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        scene(&path);
    });
    // The mount goes with the last thread that sees it.
    thread.join().unwrap();
}

#[test]
fn a_disk_that_fills_up_while_a_blob_is_written_makes_room_and_then_refuses() {
    on_a_small_disk(1 << 20, |root| {
        let store = open(root);
        let data = |number: u8| vec![number; 200 << 10];
        let blobs: Vec<_> = (0..4).map(|number| put(&store, &data(number))).collect();
        // Room is found at the start of this writer and taken by somebody else after it.
        let late = data(4);
        let mut writer = store.writer(digest(&late), false).unwrap();
        fs::write(root.join("somebody else's"), vec![0; 150 << 10]).unwrap();
        writer.write_chunk(&late).unwrap();
        writer.commit().unwrap();
        assert!(!store.contains(&blobs[0]));
        let _lease = store.lease(&[&blobs[..], &[digest(&late)]].concat());
        let error = store.insert(&digest(&data(5)), &data(5), false).unwrap_err();
        assert!(matches!(error, StoreError::Full(FullReason::Disk)), "{error}");
        assert_eq!(store.read(&digest(&late)).unwrap(), late);
        assert_eq!(files_below(&root.join("tmp")).len(), 0);
    });
}
