//! The fingerprint over small trees, and its memo.

use std::fs::{File, FileTimes, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, UNIX_EPOCH};

use tempfile::TempDir;

use super::*;

/// A toolchain of three levels whose files were all installed at one time.
struct Host {
    directory: TempDir,
    config: SpawnerConfig,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tools = directory.path().join("tools");
        let deep = tools.join("lib/gcc/target/12");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir_all(tools.join("a/b/c/include")).unwrap();
        let mut config = SpawnerConfig::new(Vec::new(), None);
        config.etc.clear();
        config.directories = vec![tools];
        let host = Self { directory, config };
        host.install("lib/gcc/target/12/cc1", "compiler", 0o755);
        host.install("a/b/c/include/stdio.h", "header", 0o644);
        symlink("lib/gcc/target/12/cc1", host.path("cc")).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.directories[0].join(name)
    }

    fn install(&self, name: &str, text: &str, mode: u32) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        self.date(name, 1_000_000_000);
    }

    fn date(&self, name: &str, seconds: u64) {
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        let file = File::options().write(true).open(self.path(name)).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }

    fn memo(&self) -> PathBuf {
        self.directory.path().join("memo")
    }

    fn computed(&self) -> String {
        let toolchain = Toolchain::walk(&self.config, &self.memo()).unwrap();
        let Fingerprint { how, hex } = toolchain.fingerprint().clone();
        assert_eq!((how, hex.len()), (How::Computed, 32));
        hex
    }

    /// Keeps a memo as a walk would have that came long after the last change.
    fn remember(&self) -> String {
        let scope = Scope::new(&self.config).unwrap();
        let hex = self.computed();
        let found = walk(&scope.roots, &[]).unwrap();
        let memo = Memo { key: scope.memo_key, hex: hex.clone(), watched: watched(found) };
        memo.save(&self.memo()).unwrap();
        hex
    }

    fn open(&self) -> Toolchain {
        Toolchain::open(&self.config, &self.memo()).unwrap()
    }

    fn how(&self) -> How {
        self.open().fingerprint().how
    }
}

#[test]
fn whatever_a_job_could_notice_changes_the_fingerprint() {
    let host = Host::new();
    let mut seen = vec![host.computed()];
    let mut expect_new = |what: &str| {
        let now = host.computed();
        assert!(!seen.contains(&now), "{what} went unnoticed");
        seen.push(now);
    };
    host.install("a/b/c/include/stdio.h", "longer header", 0o644);
    expect_new("a size");
    host.date("lib/gcc/target/12/cc1", 1_000_000_001);
    expect_new("a time");
    host.install("lib/gcc/target/12/cc1", "compiler", 0o644);
    expect_new("an executable bit");
    fs::remove_file(host.path("cc")).unwrap();
    expect_new("a missing symlink");
    symlink("elsewhere", host.path("cc")).unwrap();
    expect_new("another symlink target");
    fs::rename(host.path("a"), host.path("b")).unwrap();
    expect_new("a renamed directory");
    fs::create_dir(host.path("empty")).unwrap();
    expect_new("an empty directory");
}

#[test]
fn equal_toolchains_have_equal_fingerprints_whatever_the_order_of_creation() {
    let host = Host::new();
    let before = host.computed();
    for name in ["lib/gcc/target/12/cc1", "a/b/c/include/stdio.h"] {
        let (text, mode) = (fs::read_to_string(host.path(name)), host.path(name).metadata());
        fs::remove_file(host.path(name)).unwrap();
        host.install(name, &text.unwrap(), mode.unwrap().mode() & 0o777);
    }
    assert_eq!(host.computed(), before);
    assert_eq!(host.computed(), before);
}

#[test]
fn byte_code_caches_and_hidden_directories_do_not_count() {
    let mut host = Host::new();
    let before = host.computed();
    fs::create_dir(host.path("a/__pycache__")).unwrap();
    host.install("a/__pycache__/x.pyc", "", 0o644);
    fs::create_dir(host.path("state")).unwrap();
    host.install("state/file", "", 0o644);
    assert_ne!(host.computed(), before);
    host.config.hidden.push(host.path("state"));
    assert_eq!(host.computed(), before);
}

#[test]
fn a_memo_is_not_kept_while_things_are_changing() {
    let host = Host::new();
    host.computed();
    assert!(!host.memo().exists());
    assert_eq!(host.how(), How::Computed);
}

#[test]
fn a_memo_holds_until_a_watched_directory_changes() {
    let host = Host::new();
    let before = host.remember();
    let remembered = host.open();
    assert_eq!(*remembered.fingerprint(), Fingerprint { hex: before.clone(), how: How::Memo });

    // An installer replaces a compiler that lies deep: it is watched because it is executable.
    host.install("lib/gcc/target/12/cc1.new", "another compiler", 0o755);
    fs::rename(host.path("lib/gcc/target/12/cc1.new"), host.path("lib/gcc/target/12/cc1")).unwrap();
    let now = host.open().fingerprint().clone();
    assert_eq!(now.how, How::Computed);
    assert_ne!(now.hex, before);

    host.remember();
    fs::write(host.path("new tool"), "").unwrap();
    assert_eq!(host.how(), How::Computed);
}

/// The directory does not change when one of its files is written to.
#[test]
fn an_executable_or_library_that_is_rewritten_in_place_is_noticed() {
    let host = Host::new();
    host.install("a/b/c/libc.so.6", "library", 0o644);
    for name in ["lib/gcc/target/12/cc1", "a/b/c/libc.so.6"] {
        let before = host.remember();
        assert_eq!(host.how(), How::Memo);
        let directory = host.path(name).parent().unwrap().metadata().unwrap();
        fs::write(host.path(name), "another text").unwrap();
        let after = host.path(name).parent().unwrap().metadata().unwrap();
        assert_eq!(Stamp::from(&directory), Stamp::from(&after));
        let now = host.open().fingerprint().clone();
        assert_eq!(now.how, How::Computed, "{name}");
        assert_ne!(now.hex, before);
    }
}

#[test]
fn a_running_worker_notices_a_change_once() {
    let host = Host::new();
    let before = host.remember();
    let mut toolchain = host.open();
    assert!(!toolchain.recheck().unwrap());
    host.install("lib/gcc/target/12/cc1", "another compiler", 0o755);
    assert!(toolchain.recheck().unwrap());
    assert_ne!(toolchain.fingerprint().hex, before);
    assert!(!toolchain.recheck().unwrap());
    // What changes nothing that a job could notice makes it walk, and is no change.
    host.install("lib/gcc/target/12/cc1", "another compiler", 0o755);
    assert!(!toolchain.recheck().unwrap());
}

#[test]
fn a_walk_finds_what_the_memo_misses() {
    let host = Host::new();
    let before = host.remember();
    host.install("a/b/c/include/stdio.h", "edited by hand", 0o644);
    assert_eq!(host.how(), How::Memo);
    assert_ne!(host.computed(), before);
}

#[test]
fn a_damaged_memo_or_one_of_another_scope_is_ignored() {
    let mut host = Host::new();
    host.remember();
    host.config.hidden.push(host.path("a"));
    assert_eq!(host.how(), How::Computed);
    host.config.hidden.clear();
    host.remember();
    assert_eq!(host.how(), How::Memo);
    fs::write(host.memo(), "damaged").unwrap();
    assert_eq!(host.how(), How::Computed);
}
