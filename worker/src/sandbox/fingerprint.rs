//! The toolchain's fingerprint: one name for everything of the host that jobs can see.
//!
//! It is a hash over the architecture, `/etc/os-release`, and of each visible directory the path,
//! size, executable bit and modification time (in seconds) of every regular file and the target of
//! every symlink. Files that are shown on their own, as `ld.so.cache`, count by their contents:
//! they are generated on each machine at another time. `__pycache__` is left out: it is written by
//! use. Two machines with the same packages, unpacked by a package manager that keeps time stamps,
//! have the same fingerprint; it never reads a compiler.
//!
//! # The memo
//!
//! The walk looks at every file; on a machine with 130 000 files and 15 000 directories it takes
//! some hundred milliseconds with a warm cache and far more with a cold one, and even a `stat` of
//! each directory takes 34 ms. A process that starts has no such time. So the last fingerprint is
//! kept in a small file, with the device, inode, size, mtime and ctime in nanoseconds of
//!
//! - every directory at most 3 levels below a visible one,
//! - every directory that holds an executable file or a shared library, at any depth (`cc1` lives
//!   deep),
//! - each of those files, and
//! - the databases of the usual package managers,
//!
//! about 5 500 `stat`s on that machine. It holds while all are unchanged. Package managers, `make
//! install` and compilers' installers create or rename files in at least one of those places, and a
//! compiler that is overwritten where it lies is seen by itself. What it misses: other files
//! (headers, `.a` and `.o` files, scripts without the executable bit) that are rewritten in place,
//! or whose mode or time is changed, where no entry of a watched directory is created, removed or
//! renamed; and any change that is confined to deep directories without executables and libraries
//! (a header edited by hand). Only a whole walk finds those.
//!
//! # While a worker runs
//!
//! [`Toolchain::recheck`] looks at the memo, and walks when it does not hold. What the spawner copied
//! at its start, jobs go on seeing as it was then, and so does the check: files that are shown on
//! their own keep the contents they had, while directories follow the host.

mod memo;

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use distbuild_proto::digest::{DigestFunction, Hasher, to_hex};
use parking_lot::{Condvar, Mutex};
use tracing::warn;

use self::memo::{Memo, Stamp, Watched, is_tool};
use super::config::SpawnerConfig;

/// How deep below a visible directory every directory is watched by the memo.
const WATCHED_DEPTH: usize = 3;
/// Digits of a fingerprint.
const HEX_DIGITS: usize = 32;
/// Changes when the meaning of a fingerprint or a memo does.
const VERSION: u64 = 2;
/// Threads beyond this add nothing: the kernel's directory cache is the limit.
const MAX_THREADS: usize = 8;

/// Where package managers note what is installed.
const PACKAGE_DATABASES: [&str; 5] = [
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/lib/apk/db/installed",
    "/var/lib/pacman/local",
];

/// The value of a worker's property `toolchain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// 32 lower-case hexadecimal digits.
    pub hex: String,
    /// Where it comes from.
    pub how: How,
}

/// Where a fingerprint comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was remembered, and nothing watched has changed.
    Memo,
    /// Every visible file was looked at.
    Computed,
}

/// What jobs of one worker see of its host, by name.
#[derive(Debug)]
pub struct Toolchain {
    scope: Scope,
    /// None while something is changing.
    memo: Option<Memo>,
    fingerprint: Fingerprint,
}

impl Toolchain {
    /// What jobs see under `config`; its fingerprint is from the memo at `memo_path` if that still
    /// holds.
    ///
    /// # Errors
    /// A visible directory that cannot be read for another reason than missing permission. Trouble
    /// with the memo is none: it is logged, and the walk is done.
    pub fn open(config: &SpawnerConfig, memo_path: &Path) -> io::Result<Self> {
        let scope = Scope::new(config)?;
        match Memo::load(memo_path) {
            Some(memo) if memo.holds(&scope.memo_key) => {
                let fingerprint = Fingerprint { hex: memo.hex.clone(), how: How::Memo };
                Ok(Self { scope, memo: Some(memo), fingerprint })
            }
            _ => Self::compute(scope, memo_path),
        }
    }

    /// As [`open`](Self::open), but from a whole walk, whatever the memo says; the memo is renewed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn walk(config: &SpawnerConfig, memo_path: &Path) -> io::Result<Self> {
        Self::compute(Scope::new(config)?, memo_path)
    }

    fn compute(scope: Scope, memo_path: &Path) -> io::Result<Self> {
        let (hex, memo) = compute(&scope)?;
        if let Some(memo) = &memo
            && let Err(error) = memo.save(memo_path)
        {
            warn!(path = %memo_path.display(), error = %error, "failed to keep the fingerprint");
        }
        Ok(Self { scope, memo, fingerprint: Fingerprint { hex, how: How::Computed } })
    }

    /// The fingerprint as it was found last.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Looks again, and says whether the fingerprint is another now. Takes milliseconds if nothing
    /// has changed, and a whole walk otherwise. The memo that is kept for later starts stays as it is.
    ///
    /// # Errors
    /// As [`open`](Self::open); then the fingerprint stays as it was.
    pub fn recheck(&mut self) -> io::Result<bool> {
        if self.memo.as_ref().is_some_and(|memo| memo.holds(&self.scope.memo_key)) {
            return Ok(false);
        }
        let (hex, memo) = compute(&self.scope)?;
        self.memo = memo;
        let changed = hex != self.fingerprint.hex;
        self.fingerprint = Fingerprint { hex, how: How::Computed };
        Ok(changed)
    }
}

/// The fingerprint from a whole walk, and what remembers it unless something is just changing.
fn compute(scope: &Scope) -> io::Result<(String, Option<Memo>)> {
    let started = SystemTime::now();
    let mut directories = walk(&scope.roots, &scope.hidden)?;
    directories.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let mut hasher = DigestFunction::Blake3.hasher();
    field(&mut hasher, &scope.key);
    for directory in &directories {
        field(&mut hasher, directory.path.as_os_str().as_bytes());
        field(&mut hasher, &directory.contents);
    }
    let mut hex = to_hex(hasher.finish().hash());
    hex.truncate(HEX_DIGITS);
    let memo = Memo { key: scope.memo_key, hex: hex.clone(), watched: watched(directories) };
    Ok((hex, memo.is_settled(started).then_some(memo)))
}

/// What a memo watches of the directories that a walk found, and what it watches in any case.
fn watched(directories: Vec<Found>) -> Vec<Watched> {
    let directories = directories.into_iter().filter(|directory| directory.watched);
    let directories = directories.map(|Found { path, stamp, tools, .. }| Watched {
        path,
        stamp: Some(stamp),
        tools,
    });
    directories.chain(PACKAGE_DATABASES.map(|path| Watched::place(Path::new(path)))).collect()
}

/// Adds bytes so that two fields are never taken for one.
fn field(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// What is looked at.
#[derive(Debug)]
struct Scope {
    roots: Vec<PathBuf>,
    hidden: Vec<PathBuf>,
    /// What enters the fingerprint besides the directories' contents.
    key: [u8; 32],
    /// What a memo must agree with.
    memo_key: [u8; 32],
}

impl Scope {
    fn new(config: &SpawnerConfig) -> io::Result<Self> {
        let hidden: Vec<PathBuf> = config.hidden.iter().chain(&config.sources).cloned().collect();
        let mut roots = Vec::new();
        let mut hasher = DigestFunction::Blake3.hasher();
        hasher.update(&VERSION.to_le_bytes());
        field(&mut hasher, std::env::consts::ARCH.as_bytes());
        field(&mut hasher, &fs::read("/etc/os-release").unwrap_or_default());
        for path in config.visible() {
            field(&mut hasher, path.as_os_str().as_bytes());
            let metadata = path.symlink_metadata()?;
            if metadata.is_symlink() {
                field(&mut hasher, fs::read_link(&path)?.as_os_str().as_bytes());
            }
            // Symlinks within the visible directories are walked once, under their real name.
            if path.is_file() {
                field(&mut hasher, &fs::read(&path)?);
            } else {
                roots.push(path.canonicalize()?);
            }
        }
        roots.sort_unstable();
        roots.dedup_by(|inner, outer| inner.starts_with(outer));
        let key = hash_of(&hasher);
        for path in &hidden {
            field(&mut hasher, path.as_os_str().as_bytes());
        }
        Ok(Self { roots, hidden, key, memo_key: hash_of(&hasher) })
    }
}

fn hash_of(hasher: &Hasher) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(hasher.clone().finish().hash());
    hash
}

/// One directory as the walk found it.
struct Found {
    path: PathBuf,
    /// Hash of all that counts of its entries.
    contents: [u8; 32],
    stamp: Stamp,
    /// Executables and shared libraries.
    tools: Vec<(OsString, Stamp)>,
    /// Whether the memo watches it.
    watched: bool,
}

/// Directories that are still to be read, shared by the walk's threads.
#[derive(Default)]
struct Pending {
    stack: Vec<(PathBuf, usize)>,
    /// Threads that are reading and may add to the stack.
    busy: usize,
    error: Option<io::Error>,
}

fn walk(roots: &[PathBuf], hidden: &[PathBuf]) -> io::Result<Vec<Found>> {
    let stack = roots.iter().map(|root| (root.clone(), 0)).collect();
    let pending = Mutex::new(Pending { stack, ..Pending::default() });
    let changed = Condvar::new();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let found = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| walk_some(&pending, &changed, hidden))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    match pending.into_inner().error {
        Some(error) => Err(error),
        None => Ok(found.into_iter().flatten().collect()),
    }
}

/// One thread's part: takes directories until there are none and nobody can add any.
fn walk_some(pending: &Mutex<Pending>, changed: &Condvar, hidden: &[PathBuf]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut shared = pending.lock();
    loop {
        if shared.error.is_some() {
            return found;
        }
        let Some((path, depth)) = shared.stack.pop() else {
            if shared.busy == 0 {
                return found;
            }
            changed.wait(&mut shared);
            continue;
        };
        shared.busy += 1;
        drop(shared);
        let mut below = Vec::new();
        let result = read_directory(path, depth, hidden, &mut below);
        shared = pending.lock();
        shared.busy -= 1;
        shared.stack.append(&mut below);
        match result {
            Ok(directory) => found.extend(directory),
            Err(error) => shared.error = Some(error),
        }
        changed.notify_all();
    }
}

/// Hashes one directory and notes those below it; `None` if it has just vanished.
fn read_directory(
    path: PathBuf,
    depth: usize,
    hidden: &[PathBuf],
    below: &mut Vec<(PathBuf, usize)>,
) -> io::Result<Option<Found>> {
    let (metadata, entries) = match (path.symlink_metadata(), fs::read_dir(&path)) {
        (Ok(metadata), Ok(entries)) => (metadata, Some(entries)),
        // Closed to this user: its name is all that counts.
        (Ok(metadata), Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            (metadata, None)
        }
        (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let mut records = Vec::new();
    let mut tools = Vec::new();
    for entry in entries.into_iter().flatten() {
        let entry = entry?;
        let name = entry.file_name();
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if metadata.is_dir() {
            let path = entry.path();
            if name != "__pycache__" && !hidden.contains(&path) {
                below.push((path, depth + 1));
            }
        } else if let Some(record) = record(&entry, &metadata)? {
            if is_tool(&name, &metadata) {
                tools.push((name.clone(), Stamp::from(&metadata)));
            }
            records.push((name, record));
        }
    }
    records.sort_unstable();
    let mut hasher = DigestFunction::Blake3.hasher();
    for (name, record) in &records {
        field(&mut hasher, name.as_bytes());
        field(&mut hasher, record);
    }
    let watched = !tools.is_empty() || depth <= WATCHED_DEPTH;
    let (contents, stamp) = (hash_of(&hasher), Stamp::from(&metadata));
    Ok(Some(Found { path, contents, stamp, tools, watched }))
}

/// What counts of a file or symlink; nothing of what is neither, which no toolchain has.
fn record(entry: &fs::DirEntry, metadata: &Metadata) -> io::Result<Option<Vec<u8>>> {
    if metadata.is_symlink() {
        let target = fs::read_link(entry.path())?;
        return Ok(Some([b"l", target.as_os_str().as_bytes()].concat()));
    }
    let kind = if metadata.mode() & 0o111 != 0 { b"x" } else { b"f" };
    let (size, time) = (metadata.size().to_le_bytes(), metadata.mtime().to_le_bytes());
    Ok(metadata.is_file().then(|| [kind.as_slice(), &size, &time].concat()))
}

#[cfg(test)]
#[path = "fingerprint_tests.rs"]
mod tests;
