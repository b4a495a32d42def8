//! The rules of GRAPH §1 and §3 about inputs, one by one, on real directories.

mod lending;
mod model;
mod outputs;
mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use distbuild_proto::{Child, DigestFunction, Directory};

use super::*;

/// A source root that is removed with its test.
struct Source {
    directory: tempfile::TempDir,
    excluded: Vec<PathBuf>,
    cache: Arc<StatCache>,
    now: SystemTime,
}

impl Source {
    /// An empty root, read at a time when all its files have been at rest for a minute.
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            excluded: Vec::new(),
            cache: Arc::new(StatCache::in_memory(DigestFunction::Blake3)),
            now: SystemTime::now() + Duration::from_secs(60),
        }
    }

    /// A root with files that hold their own paths; a name that ends in `/` is a directory.
    fn with(names: &[&str]) -> Self {
        let source = Self::new();
        for name in names {
            match name.strip_suffix('/') {
                Some(name) => fs::create_dir_all(source.at(name)).unwrap(),
                None => source.write(name, name),
            }
        }
        source
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn write(&self, path: &str, contents: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        symlink(target, self.at(path)).unwrap();
    }

    fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn jobs(&self, jobs: &[&[&str]]) -> Result<Snapshot, IngestError> {
        let jobs: Vec<Vec<InputPattern>> = jobs
            .iter()
            .map(|patterns| {
                let parse = |text: &&str| InputPattern::parse(text.as_bytes()).unwrap();
                patterns.iter().map(parse).collect()
            })
            .collect();
        Ingest::new(self.directory.path(), &self.excluded, Arc::clone(&self.cache))?
            .snapshot(&jobs, self.now)
    }

    /// What one job with these patterns sees.
    fn seen(&self, patterns: &[&str]) -> Vec<String> {
        let snapshot = self.jobs(&[patterns]).unwrap();
        shown(&snapshot, 0).into_iter().map(|(path, what)| path + &what).collect()
    }

    /// What is wrong with the inputs of one job.
    fn wrong(&self, patterns: &[&str]) -> Vec<String> {
        match self.jobs(&[patterns]) {
            Err(IngestError::Inputs(errors)) => errors.iter().map(InputError::to_string).collect(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("nothing is wrong with {patterns:?}"),
        }
    }
}

/// The tree of a job: `/` after a directory, `=hash` after a file, `*=hash` if it may be executed,
/// ` -> target` after a symlink.
fn shown(snapshot: &Snapshot, job: usize) -> BTreeMap<String, String> {
    let mut tree = BTreeMap::new();
    show(snapshot, &snapshot.roots()[job], "", &mut tree);
    tree
}

fn show(snapshot: &Snapshot, digest: &Digest, path: &str, tree: &mut BTreeMap<String, String>) {
    let blob = &snapshot.directories()[digest];
    let directory = Directory::decode(digest.function(), blob).unwrap();
    for child in directory.children() {
        let path = format!("{path}{}", child.name().as_bytes().escape_ascii());
        let what = match child {
            Child::File(file) => {
                let mark = if file.executable { "*" } else { "" };
                // Files that hold their own path need no hash to be told apart.
                match file.digest == digest.function().digest(path.as_bytes()) {
                    true => mark.to_owned(),
                    false => format!("{mark}={}", &file.digest.hex()[..8]),
                }
            }
            Child::Symlink(link) => format!(" -> {}", link.target.escape_ascii()),
            Child::Directory(below) => {
                show(snapshot, &below.digest, &format!("{path}/"), tree);
                "/".to_owned()
            }
        };
        tree.insert(path, what);
    }
}
