//! The disk store and what is built on it, through the public interface alone.
#![expect(clippy::unwrap_used, reason = "what fails while a scene is set up fails the test")]

mod adopt;
mod collect;
mod damage;
mod disk;
mod evict;
mod filler;
mod materialize;
mod model;
mod partial;
mod suite;
mod tree;

use std::path::Path;

use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_proto::{Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name};

/// A store in `root` that takes small blobs and leaves no reserve on the disk.
fn open(root: &Path) -> DiskStore {
    open_sized(root, 64 << 20)
}

fn open_sized(root: &Path, max_bytes: u64) -> DiskStore {
    let config = StoreConfig { max_bytes, min_free_bytes: 0, ..StoreConfig::new(root) };
    DiskStore::open(config).unwrap()
}

fn digest(data: &[u8]) -> Digest {
    DigestFunction::Blake3.digest(data)
}

fn put(store: &DiskStore, data: &[u8]) -> Digest {
    let digest = digest(data);
    store.insert(&digest, data, false).unwrap();
    digest
}

/// Bytes of one block that differ by number.
fn block(number: u32) -> Vec<u8> {
    let mut data = vec![b'.'; 4096];
    data[..4].copy_from_slice(&number.to_le_bytes());
    data
}

fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

fn file(called: &str, digest: Digest) -> FileNode {
    FileNode { name: name(called), digest, executable: false }
}

/// Stores a directory of these children.
fn put_directory(
    store: &DiskStore,
    files: &[(&str, Digest)],
    directories: &[(&str, Digest)],
) -> Digest {
    let files = files.iter().map(|(called, digest)| file(called, *digest)).collect();
    let directories = directories
        .iter()
        .map(|(called, digest)| DirectoryNode { name: name(called), digest: *digest })
        .collect();
    let directory = Directory::new(files, directories, vec![]).unwrap();
    let (digest, blob) = directory.encode_with_digest(DigestFunction::Blake3);
    store.insert(&digest, &blob, false).unwrap();
    digest
}

/// All regular files below a folder.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => left.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}
