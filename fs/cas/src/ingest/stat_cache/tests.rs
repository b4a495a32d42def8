use super::*;

const LONG_AGO_NS: i64 = 1_700_000_000_000_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(LONG_AGO_NS.cast_unsigned()) + Duration::from_secs(3600)
}

fn later(days: u64) -> SystemTime {
    now() + Duration::from_secs(days * 86_400)
}

fn file(inode: u64) -> FileIdentity {
    FileIdentity {
        device: u64::MAX - inode % 2,
        inode,
        size_bytes: 3,
        mtime_ns: LONG_AGO_NS,
        ctime_ns: LONG_AGO_NS,
    }
}

fn digest(text: &str) -> Digest {
    DigestFunction::Blake3.digest(text.as_bytes())
}

fn open(path: &Path, now: SystemTime) -> StatCache {
    StatCache::open(path, DigestFunction::Blake3, now)
}

/// A cache file that knows the files 1 to 3.
fn filled() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/stat.db");
    let cache = open(&path, now());
    for inode in 1..=3 {
        cache.remember(&file(inode), &digest("abc"), now());
    }
    assert_eq!(cache.save().unwrap(), 3);
    (directory, path)
}

#[test]
fn what_was_saved_is_known_to_the_next_process() {
    let (_directory, path) = filled();
    let cache = open(&path, now());
    for inode in 1..=3 {
        assert_eq!(cache.get(&file(inode)), Some(digest("abc")));
    }
    assert_eq!(cache.get(&file(4)), None);
    assert_eq!(cache.save().unwrap(), 0, "nothing is new");
}

#[test]
fn what_was_saved_is_not_forgotten_and_not_saved_again() {
    let (_directory, path) = filled();
    let cache = open(&path, now());
    cache.remember(&file(8), &digest("abc"), now());
    assert_eq!(cache.save().unwrap(), 1);
    assert_eq!(cache.get(&file(8)), Some(digest("abc")));
    assert_eq!(cache.save().unwrap(), 0);
}

#[test]
fn any_difference_of_identity_is_a_miss() {
    let (_directory, path) = filled();
    let cache = open(&path, now());
    let same = file(1);
    for other in [
        FileIdentity { device: 7, ..same },
        FileIdentity { inode: 2, ..same },
        FileIdentity { size_bytes: 4, ..same },
        FileIdentity { mtime_ns: same.mtime_ns + 1, ..same },
        FileIdentity { ctime_ns: same.ctime_ns + 1, ..same },
    ] {
        assert_eq!(cache.get(&other), None, "{other:?}");
    }
}

#[test]
fn another_function_is_another_entry() {
    let (_directory, path) = filled();
    let sha = StatCache::open(&path, DigestFunction::Sha1, now());
    assert_eq!(sha.get(&file(1)), None);
    let other = DigestFunction::Sha1.digest(b"abc");
    sha.remember(&file(1), &other, now());
    sha.remember(&file(2), &digest("abc"), now());
    assert_eq!(sha.save().unwrap(), 1);
    assert_eq!(StatCache::open(&path, DigestFunction::Sha1, now()).get(&file(1)), Some(other));
    assert_eq!(open(&path, now()).get(&file(1)), Some(digest("abc")));
}

#[test]
fn what_changed_just_before_hashing_is_not_remembered() {
    let cache = StatCache::in_memory(DigestFunction::Blake3);
    let changed = UNIX_EPOCH + Duration::from_nanos(LONG_AGO_NS.cast_unsigned());
    cache.remember(&file(1), &digest("abc"), changed + RACY_WINDOW);
    assert_eq!(cache.get(&file(1)), None);
    let touched = FileIdentity { ctime_ns: LONG_AGO_NS + 1, ..file(1) };
    let just_settled = changed + RACY_WINDOW + Duration::from_nanos(1);
    cache.remember(&touched, &digest("abc"), just_settled);
    assert_eq!(cache.get(&touched), None, "the ctime counts as well");
    cache.remember(&file(1), &digest("abc"), just_settled);
    assert_eq!(cache.get(&file(1)), Some(digest("abc")));
}

#[test]
fn what_was_forgotten_stays_forgotten() {
    let (_directory, path) = filled();
    let cache = open(&path, now());
    cache.forget(&file(2));
    assert_eq!(cache.get(&file(2)), None);
    cache.save().unwrap();
    let cache = open(&path, now());
    assert_eq!(cache.get(&file(2)), None);
    assert_eq!(cache.get(&file(3)), Some(digest("abc")));
}

#[test]
fn a_file_that_is_no_database_is_replaced() {
    let (_directory, path) = filled();
    fs::write(
        &path,
        b"not a database, but long enough to be looked at as if it were one".repeat(99),
    )
    .unwrap();
    let cache = open(&path, now());
    assert_eq!(cache.get(&file(1)), None);
    cache.remember(&file(1), &digest("abc"), now());
    assert_eq!(cache.save().unwrap(), 1);
    assert_eq!(open(&path, now()).get(&file(1)), Some(digest("abc")));
}

#[test]
fn a_truncated_or_overwritten_database_gives_no_wrong_digest() {
    for damage_at in (0..).step_by(509).take_while(|at| *at < 3 * 4096) {
        let (_directory, path) = filled();
        // Everything into the main file.
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "DELETE").unwrap();
        drop(connection);
        let mut bytes = fs::read(&path).unwrap();
        let Some(place) = bytes.get_mut(damage_at..) else { break };
        place.iter_mut().take(64).for_each(|byte| *byte ^= 0x5a);
        fs::write(&path, &bytes).unwrap();
        let cache = open(&path, now());
        for inode in 1..=3 {
            let found = cache.get(&file(inode));
            assert!(found.is_none() || found == Some(digest("abc")), "{damage_at}: {found:?}");
        }
    }
}

#[test]
fn a_damaged_row_is_a_miss() {
    let (_directory, path) = filled();
    let connection = Connection::open(&path).unwrap();
    let zeroes = vec![0_u8; 32];
    connection.execute("UPDATE files SET hash = ?1 WHERE inode = 2", [zeroes]).unwrap();
    drop(connection);
    let cache = open(&path, now());
    assert_eq!(cache.get(&file(2)), None);
    assert_eq!(cache.get(&file(1)), Some(digest("abc")));
}

#[test]
fn a_file_of_another_format_is_replaced() {
    let (_directory, path) = filled();
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert_eq!(open(&path, now()).get(&file(1)), None);
    assert_eq!(open(&path, now()).save().unwrap(), 0);
}

#[test]
fn a_damaged_file_that_another_process_uses_is_left_alone() {
    let (_directory, path) = filled();
    let _in_use = lock(&path, File::try_lock_shared).unwrap();
    fs::write(&path, [0x5a; 8192]).unwrap();
    assert_eq!(open(&path, now()).get(&file(1)), None);
    assert_eq!(fs::read(&path).unwrap(), [0x5a; 8192]);
}

#[test]
fn entries_unused_for_a_month_are_dropped_and_used_ones_kept() {
    let (_directory, path) = filled();
    let cache = open(&path, later(20));
    assert!(cache.get(&file(1)).is_some());
    assert_eq!(cache.save().unwrap(), 1, "the day of use is written again");
    let cache = open(&path, later(35));
    cache.remember(&file(9), &digest("new"), later(35));
    cache.save().unwrap();
    let cache = open(&path, later(35));
    assert!(cache.get(&file(1)).is_some());
    assert!(cache.get(&file(2)).is_none());
    assert!(cache.get(&file(9)).is_some());
}

#[test]
fn beyond_the_cap_the_least_recently_used_go() {
    let (_directory, path) = filled();
    let cache = open(&path, later(10));
    assert!(cache.get(&file(3)).is_some());
    cache.save().unwrap();
    let connection = connect(&path).unwrap();
    open(&path, later(10)).expire(&connection, 0, 1).unwrap();
    drop(connection);
    let cache = open(&path, later(10));
    assert_eq!(cache.loaded.len(), 1);
    assert!(cache.get(&file(3)).is_some());
}

#[test]
fn processes_that_save_at_once_lose_nothing() {
    let (_directory, path) = filled();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let cache = open(path, now());
                for inode in 0..50 {
                    cache.remember(&file(1000 + writer * 100 + inode), &digest("abc"), now());
                }
                cache.save().unwrap();
            });
        }
    });
    assert_eq!(open(&path, now()).loaded.len(), 203);
}
