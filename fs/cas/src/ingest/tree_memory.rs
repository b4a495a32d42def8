//! `TreeMemory`: the digests of the directories in one place, as long as nothing in them has changed.
//!
//! A directory is remembered with the identities of itself and of all that lies below it. A name that
//! comes, goes or is another's now changes the identity of the directory that it is in; new contents,
//! another mode or another link target change that of the file. While all identities are what they
//! were, the digest is, too, and it costs one `lstat` a name: nothing is listed, opened or read. The rule
//! of the stat cache about what changed just before holds here as well.
//!
//! Every place has a file of its own in one folder, which is replaced whole. It is a cache and never
//! more: what cannot be read, is damaged or is of another hash function remembers nothing.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::{Buf, BufMut, Bytes};
use distbuild_proto::{Digest, DigestFunction};
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, fstatat};

use super::output_tree::{OutputTreeError, read_tree};
use super::parallel;
use super::source::FileIdentity;
use super::stat_cache::{StatCache, settled};

const MAGIC: &[u8; 8] = b"dbplace1";
/// Places with a file in one folder; the one written first goes first.
const PLACES: usize = 64;
/// Directories with more names below them are not remembered.
const NAMES: usize = 4096;
/// What is remembered of one place, in bytes.
const PLACE_BYTES: usize = 64 << 20;
const CHECKSUM_BYTES: usize = 32;
const HASH_BYTES: usize = 32;

/// What is remembered of the directories of one place.
#[derive(Debug)]
pub struct TreeMemory {
    place: PathBuf,
    file: PathBuf,
    function: DigestFunction,
    known: HashMap<Bytes, Known>,
    news: bool,
}

/// A directory as it was when it was read.
#[derive(Clone, Debug)]
struct Known {
    digest: Digest,
    /// Of the directory and of all that lies below it, encoded.
    identities: Bytes,
}

/// Gathers the identities of what lies in a directory while it is read.
#[derive(Debug, Default)]
pub(super) struct Identities {
    encoded: Vec<u8>,
    names: usize,
    /// Of the latest change, in ns since 1970.
    latest_ns: i64,
}

impl TreeMemory {
    /// What is remembered in `folder` of the directories in `place`.
    pub fn open(folder: &Path, place: &Path, function: DigestFunction) -> Self {
        let name = DigestFunction::Blake3.digest(place.as_os_str().as_bytes());
        let file = folder.join(distbuild_proto::digest::to_hex(name.hash()));
        let known = fs::read(&file).ok().and_then(|list| parse(list.into(), function));
        let known = known.unwrap_or_default();
        Self { place: place.to_owned(), file, function, known, news: false }
    }

    /// The tree digest of each directory, whole and in the order given; several at once. The names are
    /// those of directories in the place; `cache` helps with the files of those that have changed.
    ///
    /// # Errors
    /// For each directory its own: it does not exist, cannot be read, or holds what no tree can.
    pub fn digest_trees(
        &mut self,
        names: &[impl AsRef<OsStr> + Sync],
        cache: &StatCache,
        now: SystemTime,
    ) -> Vec<Result<Digest, OutputTreeError>> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let place = open(&self.place, flags, Mode::empty());
        let settled = settled(now);
        let read = parallel::map(names, 8, Vec::new, |buffer: &mut Vec<u8>, name| {
            let name = name.as_ref();
            if let (Ok(place), Some(known)) = (&place, self.known.get(name.as_bytes()))
                && known.is_unchanged(place, name, buffer)
            {
                return (Ok(known.digest), None);
            }
            let mut identities = Identities::default();
            let digest =
                read_tree(&self.place.join(name), cache, now, buffer, Some(&mut identities));
            let lasts = identities.names <= NAMES && identities.latest_ns < settled;
            let identities = lasts.then(|| Bytes::from(identities.encoded));
            let known = digest.as_ref().ok().copied().zip(identities);
            (digest, Some(known.map(|(digest, identities)| Known { digest, identities })))
        });
        let mut digests = Vec::with_capacity(read.len());
        for (name, (digest, found)) in names.iter().zip(read) {
            let name = name.as_ref().as_bytes();
            match found {
                None => {}
                Some(None) => self.news |= self.known.remove(name).is_some(),
                Some(Some(known)) => {
                    self.news = true;
                    self.known.insert(Bytes::copy_from_slice(name), known);
                }
            }
            digests.push(digest);
        }
        digests
    }

    /// Writes what is new since the memory was opened or saved. Blocks on the disk.
    ///
    /// # Errors
    /// The file or its folder cannot be written; the next build looks at more.
    pub fn save(&mut self) -> io::Result<()> {
        if !self.news {
            return Ok(());
        }
        let mut list = head(self.function).to_vec();
        for (name, known) in &self.known {
            let entry = 2 + name.len() + 8 + HASH_BYTES + 4 + known.identities.len();
            if list.len() + entry > PLACE_BYTES {
                continue;
            }
            put_bytes(&mut list, name);
            list.put_u64_le(known.digest.size_bytes());
            let mut hash = [0; HASH_BYTES];
            hash[..known.digest.hash().len()].copy_from_slice(known.digest.hash());
            list.put_slice(&hash);
            // Far below the limit of one place.
            list.put_u32_le(known.identities.len() as u32);
            list.put_slice(&known.identities);
        }
        let checksum = DigestFunction::Blake3.digest(&list);
        list.put_slice(checksum.hash());
        let folder = self.file.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let draft = self.file.with_extension(format!("{}.tmp", std::process::id()));
        let written = fs::write(&draft, &list).and_then(|()| fs::rename(&draft, &self.file));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written?;
        self.news = false;
        trim(folder)
    }
}

impl Known {
    /// Whether everything is what it was; `buffer` is scratch.
    fn is_unchanged(&self, place: &OwnedFd, name: &OsStr, buffer: &mut Vec<u8>) -> bool {
        let mut left = self.identities.clone();
        while left.has_remaining() {
            let Some((below, identity)) = get_bytes(&mut left).zip(get_identity(&mut left)) else {
                return false;
            };
            buffer.clear();
            buffer.extend_from_slice(name.as_bytes());
            if !below.is_empty() {
                buffer.push(b'/');
                buffer.extend_from_slice(&below);
            }
            let path = OsStr::from_bytes(buffer);
            let found = fstatat(place.as_fd(), path, AtFlags::AT_SYMLINK_NOFOLLOW);
            if !found.is_ok_and(|found| FileIdentity::of(&found) == identity) {
                return false;
            }
        }
        // A directory has an identity of its own at least.
        !self.identities.is_empty()
    }
}

impl Identities {
    /// Takes in what lies at a path below the directory, or the directory itself.
    pub(super) fn add(&mut self, path: &[u8], identity: &FileIdentity) {
        self.names += 1;
        self.latest_ns = self.latest_ns.max(identity.mtime_ns).max(identity.ctime_ns);
        if self.names > NAMES {
            return;
        }
        put_bytes(&mut self.encoded, path);
        self.encoded.put_u64_le(identity.device);
        self.encoded.put_u64_le(identity.inode);
        self.encoded.put_u64_le(identity.size_bytes);
        self.encoded.put_i64_le(identity.mtime_ns);
        self.encoded.put_i64_le(identity.ctime_ns);
    }
}

fn get_identity(from: &mut Bytes) -> Option<FileIdentity> {
    Some(FileIdentity {
        device: from.try_get_u64_le().ok()?,
        inode: from.try_get_u64_le().ok()?,
        size_bytes: from.try_get_u64_le().ok()?,
        mtime_ns: from.try_get_i64_le().ok()?,
        ctime_ns: from.try_get_i64_le().ok()?,
    })
}

/// A path has at most 4096 bytes.
fn put_bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    into.put_u16_le(bytes.len() as u16);
    into.put_slice(bytes);
}

fn get_bytes(from: &mut Bytes) -> Option<Bytes> {
    let len = usize::from(from.try_get_u16_le().ok()?);
    (len <= from.len()).then(|| from.split_to(len))
}

fn head(function: DigestFunction) -> [u8; 9] {
    let mut head = [function as u8; 9];
    head[..MAGIC.len()].copy_from_slice(MAGIC);
    head
}

fn parse(list: Bytes, function: DigestFunction) -> Option<HashMap<Bytes, Known>> {
    let body = list.slice(..list.len().checked_sub(CHECKSUM_BYTES)?);
    let head = head(function);
    if !body.starts_with(&head)
        || DigestFunction::Blake3.digest(&body).hash() != &list[body.len()..]
    {
        return None;
    }
    let mut left = body.slice(head.len()..);
    let mut known = HashMap::new();
    while left.has_remaining() {
        let name = get_bytes(&mut left)?;
        let size_bytes = left.try_get_u64_le().ok()?;
        let hash = (left.len() >= HASH_BYTES).then(|| left.split_to(HASH_BYTES))?;
        let digest = Digest::new(function, hash.get(..function.hash_len())?, size_bytes).ok()?;
        let len = left.try_get_u32_le().ok()? as usize;
        let identities = (len <= left.len()).then(|| left.split_to(len))?;
        known.insert(name, Known { digest, identities });
    }
    Some(known)
}

/// Removes the files written first while there are too many.
fn trim(folder: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.modified()?, entry.path()));
    }
    files.sort_unstable_by(|a, b| b.cmp(a));
    for (_, path) in files.into_iter().skip(PLACES) {
        match fs::remove_file(path) {
            // Another process trims, too.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
