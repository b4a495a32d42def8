//! Finished files enter the store by rename: their bytes are read once, to be hashed, and not copied.
//!
//! A file is taken over only if nobody else can change it any more: it has one name, nobody has it
//! open for writing, and it belongs to the store's owner, with the store's mode, *before* its bytes
//! are hashed. A file of which that is not true is copied; its bytes are hashed on the way.
//! Symbolic links are never followed, and only regular files are opened for their bytes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use distbuild_proto::{Digest, DigestFunction};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, fchown, getegid, geteuid, unlinkat};

use crate::disk::DiskStore;
use crate::error::StoreError;
use crate::index::allocated_bytes;
use crate::layout::Variant;
use crate::temporary::TemporaryFile;
use crate::verify::{for_each_chunk, hash_file};
use crate::writer::Draft;

/// A file that is to become a blob.
pub(crate) struct Candidate<'a> {
    /// The folder it is in.
    pub(crate) folder: BorrowedFd<'a>,
    /// Its name there.
    pub(crate) name: &'a OsStr,
    /// What errors call it.
    pub(crate) shown: &'a Path,
}

/// What a candidate is to become.
pub(crate) struct Wish<'a> {
    pub(crate) function: DigestFunction,
    /// If not given, its owner's permission to execute decides.
    pub(crate) executable: Option<bool>,
    pub(crate) expected: Option<&'a Digest>,
    /// Whether the blob is to be pinned as it appears; the caller owns the pin then.
    pub(crate) pin: bool,
}

/// What a candidate became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Adopted {
    pub(crate) digest: Digest,
    pub(crate) executable: bool,
}

impl DiskStore {
    /// Moves a finished file into the store, where it must have this digest.
    ///
    /// # Errors
    /// Not a regular file; other bytes than the digest says (the file stays, its owner and mode
    /// may have changed); no room; a failing disk.
    pub fn adopt_file(
        &self,
        path: &Path,
        digest: &Digest,
        executable: bool,
    ) -> Result<(), StoreError> {
        let wish = Wish {
            function: digest.function(),
            executable: Some(executable),
            expected: Some(digest),
            pin: false,
        };
        self.adopt(&at(path), &wish).map(drop)
    }

    /// Moves a finished file into the store, under the digest that its bytes have.
    ///
    /// # Errors
    /// Not a regular file; no room; a failing disk.
    pub fn hash_and_adopt(
        &self,
        path: &Path,
        function: DigestFunction,
        executable: bool,
    ) -> Result<Digest, StoreError> {
        let wish = Wish { function, executable: Some(executable), expected: None, pin: false };
        Ok(self.adopt(&at(path), &wish)?.digest)
    }

    /// Takes a file in.
    pub(crate) fn adopt(
        &self,
        candidate: &Candidate<'_>,
        wish: &Wish<'_>,
    ) -> Result<Adopted, StoreError> {
        let file = candidate.open()?;
        let metadata = file.metadata().map_err(|source| candidate.failed("look at", source))?;
        let executable = wish.executable.unwrap_or(metadata.mode() & 0o100 != 0);
        let variant = Variant::of(executable);
        let taken = match self.may_take(&file, &metadata)? {
            true => self.take(candidate, &file, wish, variant)?,
            false => None,
        };
        let digest = match taken {
            Some(digest) => digest,
            None => {
                let digest = self.copy(candidate, &metadata, wish, variant)?;
                unlinkat(candidate.folder, candidate.name, UnlinkatFlags::NoRemoveDir)
                    .map_err(|source| candidate.failed("remove", source))?;
                digest
            }
        };
        Ok(Adopted { digest, executable })
    }

    /// Whether the file can become ours as it is; makes it ours if so.
    fn may_take(&self, file: &File, metadata: &fs::Metadata) -> Result<bool, StoreError> {
        let root = self.layout().root();
        let store = fs::metadata(root).map_err(|source| StoreError::io("look at", root, source))?;
        if metadata.nlink() != 1 || metadata.dev() != store.dev() {
            return Ok(false);
        }
        let (user, group) = (geteuid(), getegid());
        let ours = metadata.uid() == user.as_raw() && metadata.gid() == group.as_raw();
        if !ours && fchown(file, Some(user), Some(group)).is_err() {
            return Ok(false);
        }
        Ok(true)
    }

    /// Renames the file into the store. `None` if it has to be copied after all.
    fn take(
        &self,
        candidate: &Candidate<'_>,
        file: &File,
        wish: &Wish<'_>,
        variant: Variant,
    ) -> Result<Option<Digest>, StoreError> {
        file.set_permissions(fs::Permissions::from_mode(variant.mode()))
            .and_then(|()| file.set_modified(std::time::SystemTime::now()))
            .map_err(|source| candidate.failed("set mode and time of", source))?;
        if is_open_for_writing(file) {
            return Ok(None);
        }
        let digest = hash_file(file, wish.function, u64::MAX)
            .map_err(|source| candidate.failed("read", source))?;
        compare(wish.expected, &digest)?;
        let shared = &self.shared;
        let _room = shared.reserve(allocated_bytes(&digest), false)?;
        let temporary = shared.temporary.next_path();
        match renameat(candidate.folder, candidate.name, AT_FDCWD, &temporary) {
            Ok(()) => {}
            // One file system, mounted twice.
            Err(Errno::EXDEV) => return Ok(None),
            Err(source) => return Err(candidate.failed("move", source)),
        }
        let temporary = TemporaryFile::new(temporary);
        let (hashed, moved) = (file.metadata(), fs::symlink_metadata(temporary.path()));
        let same = match (hashed, moved) {
            (Ok(hashed), Ok(moved)) => {
                hashed.ino() == moved.ino() && moved.nlink() == 1 && moved.len() == hashed.len()
            }
            _ => false,
        };
        if !same {
            return Err(candidate.failed("move", io::Error::other("it was exchanged meanwhile")));
        }
        shared.publish(temporary, None, &digest, variant, wish.pin)?;
        Ok(Some(digest))
    }

    fn copy(
        &self,
        candidate: &Candidate<'_>,
        metadata: &fs::Metadata,
        wish: &Wish<'_>,
        variant: Variant,
    ) -> Result<Digest, StoreError> {
        let file = candidate.open()?;
        let mut draft = Draft::new(&self.shared, wish.function, metadata.len())?;
        for_each_chunk(&file, u64::MAX, |chunk| draft.write(chunk))
            .map_err(|error: StoreError| error.at("read", candidate.shown))?;
        draft.finish(wish.expected, variant, wish.pin)
    }
}

impl Candidate<'_> {
    /// Opens the file for reading if it is a regular one. Looks before it opens: opening some
    /// devices does something.
    fn open(&self) -> Result<File, StoreError> {
        let found = fstatat(self.folder, self.name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|source| self.failed("look at", source))?;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(StoreError::NotRegular(self.shown.to_owned()));
        }
        let flags = OFlag::O_RDONLY
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        let open = || openat(self.folder, self.name, flags, Mode::empty());
        let opened = match open() {
            // Not even its owner may read it; the mode is not kept anyway, but for one bit.
            Err(Errno::EACCES) => {
                let mode = Mode::from_bits_truncate(found.st_mode) | Mode::S_IRUSR;
                fchmodat(self.folder, self.name, mode, FchmodatFlags::NoFollowSymlink)
                    .and_then(|()| open())
            }
            opened => opened,
        };
        let file = File::from(opened.map_err(|source| self.failed("open", source))?);
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(file),
            Ok(_) => Err(StoreError::NotRegular(self.shown.to_owned())),
            Err(source) => Err(self.failed("look at", source)),
        }
    }

    fn failed(&self, operation: &'static str, source: impl Into<io::Error>) -> StoreError {
        StoreError::io(operation, self.shown, source)
    }
}

fn at(path: &Path) -> Candidate<'_> {
    Candidate { folder: AT_FDCWD, name: path.as_os_str(), shown: path }
}

fn compare(expected: Option<&Digest>, actual: &Digest) -> Result<(), StoreError> {
    match expected {
        Some(expected) if expected != actual => {
            Err(StoreError::Mismatch { expected: *expected, actual: *actual })
        }
        _ => Ok(()),
    }
}

/// Whether anybody has the file open, or mapped, for writing: the kernel grants a read lease on a
/// file only if nobody has. Where it grants none for another reason, the answer is yes.
fn is_open_for_writing(file: &File) -> bool {
    /// From `linux/fcntl.h`; the libc crate does not have it.
    const F_SETSIG: libc::c_int = 10;
    let fd = file.as_raw_fd();
    #[expect(unsafe_code, reason = "leases have no safe wrapper")]
    // SAFETY: the descriptor is open for the length of the calls and the arguments are integers.
    // The signal that tells of an open by somebody else is one that is ignored by default.
    unsafe {
        if libc::fcntl(fd, F_SETSIG, libc::SIGURG) < 0
            || libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) < 0
        {
            return true;
        }
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
    }
    false
}
