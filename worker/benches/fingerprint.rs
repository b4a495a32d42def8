//! How long the toolchain's fingerprint of this machine takes, by a walk and by its memo, beside
//! one `stat` of every visible directory: `cargo bench -p distbuild-worker --bench fingerprint`.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use distbuild_worker::sandbox::SpawnerConfig;
use distbuild_worker::sandbox::fingerprint::{How, Toolchain};

fn main() {
    let config = SpawnerConfig::new(Vec::new(), None);
    let directory = tempfile::tempdir().expect("a directory");
    let memo = directory.path().join("memo");

    let mut directories = Vec::new();
    for root in config.directories.iter().filter(|path| !path.is_symlink()) {
        collect(root, &mut directories);
    }
    let start = Instant::now();
    let found = directories.iter().filter(|path| path.symlink_metadata().is_ok()).count();
    println!("baseline: stat of {found} directories {:>8} µs", start.elapsed().as_micros());

    for _ in 0..3 {
        let start = Instant::now();
        let walked = Toolchain::walk(&config, &memo).expect("a walk");
        let walked = walked.fingerprint();
        println!("whole walk  {} {:>8} µs", walked.hex, start.elapsed().as_micros());
        let start = Instant::now();
        let again = Toolchain::open(&config, &memo).expect("a fingerprint");
        let again = again.fingerprint();
        assert_eq!(again.how, How::Memo, "something visible changed a moment ago");
        println!("from memo   {} {:>8} µs", again.hex, start.elapsed().as_micros());
    }
}

fn collect(path: &Path, directories: &mut Vec<PathBuf>) {
    directories.push(path.to_path_buf());
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), directories);
        }
    }
}
