//! A directory on the user's machine, read strictly beneath itself.
//!
//! Every open goes through `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`: the kernel, and
//! not a check that could be raced, keeps a path from leaving the root. Nothing here follows a
//! symlink, opens a special file for reading, or writes.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use distbuild_proto::{Digest, DigestFunction, Name, PathError, RelPath};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

/// How often a file that changes while it is hashed is hashed again before that is an error.
const HASH_ATTEMPTS: usize = 3;

/// Size of the pieces in which files are read.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// The device that holds the file.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When its contents changed last, in ns since 1970; below zero is before.
    pub mtime_ns: i64,
    /// When its inode changed last, in ns since 1970; no program can set it at will.
    pub ctime_ns: i64,
}

impl FileIdentity {
    pub(super) fn of(stat: &FileStat) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.wrapping_mul(1_000_000_000) + nanos;
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: nanos(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// A regular file as `stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileMeta {
    pub(super) identity: FileIdentity,
    /// Whether its owner may execute it.
    pub(super) executable: bool,
}

/// What a name in a directory is.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    File(FileMeta),
    /// With its target, read after the identity.
    Symlink(Bytes, FileIdentity),
    Directory,
    /// What it is, in words.
    Special(&'static str),
}

/// What a listing says about a name before anything is asked about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    Other,
}

/// A file whose contents have been read once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hashed {
    pub(super) meta: FileMeta,
    pub(super) digest: Digest,
}

/// Why a file could not be hashed.
#[derive(Debug)]
pub(super) enum HashFailure {
    /// It changed, whenever it was read.
    Changed,
    Io(io::Error),
}

impl From<Errno> for HashFailure {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// The root of a tree that is read.
#[derive(Debug)]
pub(super) struct SourceRoot {
    path: PathBuf,
    fd: OwnedFd,
}

impl SourceRoot {
    /// Opens a directory; `path` itself may lead through symlinks, what lies beneath may not.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty())?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// The path for people to read.
    pub(super) fn display_path(&self, path: &RelPath) -> PathBuf {
        if path.is_root() { self.path.clone() } else { self.path.join(path.as_path()) }
    }

    fn open_beneath(&self, path: &RelPath, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        if path.is_root() {
            openat2(&self.fd, c".", how)
        } else {
            openat2(&self.fd, path.as_bytes(), how)
        }
    }

    /// A regular file for reading. A pipe that took its place does not block the open.
    pub(super) fn open_file(&self, path: &RelPath) -> nix::Result<OwnedFd> {
        self.open_beneath(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
    }

    /// A directory whose children can be asked for by name.
    pub(super) fn directory(&self, path: &RelPath) -> io::Result<OwnedFd> {
        Ok(self.open_beneath(path, OFlag::O_PATH | OFlag::O_DIRECTORY)?)
    }

    /// A directory whose names can be listed as well.
    pub(super) fn listing(&self, path: &RelPath) -> io::Result<Dir> {
        let fd = self.open_beneath(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        Ok(Dir::from_fd(fd)?)
    }

    /// The digest of a file's contents, together with the identity under which they were read.
    pub(super) fn hash_file(
        &self,
        path: &RelPath,
        function: DigestFunction,
        buffer: &mut Vec<u8>,
    ) -> Result<Hashed, HashFailure> {
        for _ in 0..HASH_ATTEMPTS {
            let fd = self.open_file(path)?;
            let Some(before) = file_meta(&fstat(&fd)?) else {
                return Err(HashFailure::Changed);
            };
            let size_bytes = before.identity.size_bytes;
            let wanted = usize::try_from(size_bytes).unwrap_or(READ_BYTES).clamp(1, READ_BYTES);
            if buffer.len() < wanted {
                buffer.resize(wanted, 0);
            }
            let mut hasher = function.hasher();
            while hasher.size_bytes() < size_bytes {
                match nix::unistd::read(&fd, buffer) {
                    Ok(0) => break,
                    Ok(count) => hasher.update(&buffer[..count]),
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            let digest = hasher.finish();
            if file_meta(&fstat(&fd)?) == Some(before) && digest.size_bytes() == size_bytes {
                return Ok(Hashed { meta: before, digest });
            }
        }
        Err(HashFailure::Changed)
    }
}

/// What is known of a regular file; nothing if it is none.
pub(super) fn file_meta(stat: &FileStat) -> Option<FileMeta> {
    let regular = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
    regular.then(|| FileMeta {
        identity: FileIdentity::of(stat),
        executable: stat.st_mode & Mode::S_IXUSR.bits() != 0,
    })
}

/// What an open file or directory is.
pub(super) fn identity(open: impl AsFd) -> io::Result<FileIdentity> {
    Ok(FileIdentity::of(&fstat(open)?))
}

/// What `name` in `directory` is; nothing if there is no such name.
pub(super) fn look_up(directory: impl AsFd, name: &[u8]) -> io::Result<Option<Entry>> {
    let stat = match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if let Some(meta) = file_meta(&stat) {
        return Ok(Some(Entry::File(meta)));
    }
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    Ok(Some(match kind {
        SFlag::S_IFDIR => Entry::Directory,
        SFlag::S_IFLNK => {
            let target = readlinkat(&directory, name)?.into_vec();
            Entry::Symlink(target.into(), FileIdentity::of(&stat))
        }
        SFlag::S_IFIFO => Entry::Special("a named pipe"),
        SFlag::S_IFSOCK => Entry::Special("a socket"),
        SFlag::S_IFCHR => Entry::Special("a character device"),
        SFlag::S_IFBLK => Entry::Special("a block device"),
        _ => Entry::Special("a file of an unknown kind"),
    }))
}

/// The names of a directory, sorted; each once, even if a rename during the listing showed one
/// twice.
pub(super) fn list(directory: &mut Dir) -> io::Result<Vec<(Name, Option<Kind>)>> {
    let mut names = Vec::new();
    for entry in directory.iter() {
        let entry = entry?;
        let name = CStr::to_bytes(entry.file_name());
        if name == b"." || name == b".." {
            continue;
        }
        let kind = entry.file_type().map(|kind| match kind {
            nix::dir::Type::Directory => Kind::Directory,
            _ => Kind::Other,
        });
        let name = Name::new(name).map_err(|error: PathError| io::Error::other(error))?;
        names.push((name, kind));
    }
    names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    names.dedup_by(|(a, _), (b, _)| a == b);
    Ok(names)
}
