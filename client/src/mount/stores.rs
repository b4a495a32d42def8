//! `Stores`: blobs in stores on this machine that somebody else runs.
//!
//! The stores are read by path and never opened as stores: an open store keeps all others from
//! evicting, and whoever looks must not fill the disk of a worker. A blob is hashed when it is first
//! opened; the open file stays what it was, even if the store evicts it meanwhile. Damage is shown as an error
//! and left for the owner of the store to put aside.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distbuild_cas::Layout;
use distbuild_fs::contents::{BlobKey, BlobKind, Done};
use distbuild_fs::inspect::Unknown;
use distbuild_fs::{Contents, ViewId, Want, WantError};
use distbuild_proto::digest::to_hex;
use distbuild_proto::{Digest, DigestFunction};
use nix::fcntl::OFlag;
use parking_lot::Mutex;

use super::holdings::{Complaints, Held, Holdings, MAX_LISTED};

/// Files that are remembered as verified; beyond that, all are hashed anew.
const MAX_VERIFIED: usize = 65_536;
/// Read at once while hashing.
const CHUNK_BYTES: usize = 256 << 10;

/// Blobs in the stores of others; a blob is taken from the first that has it.
#[derive(Debug)]
pub(super) struct Stores {
    layouts: Vec<Layout>,
    verified: Mutex<HashMap<Digest, FileState>>,
    complaints: Complaints,
}

/// What a file is as long as nobody has touched it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Stores {
    pub(super) fn new(layouts: Vec<Layout>) -> Self {
        Self { layouts, verified: Mutex::default(), complaints: Complaints::default() }
    }

    /// A place of blobs, if there is any.
    pub(super) fn first_root(&self) -> PathBuf {
        self.layouts.first().map(|layout| layout.root().to_owned()).unwrap_or_default()
    }

    /// The files that may hold a blob, of both modes.
    fn paths(&self, digest: Digest, executable: bool) -> impl Iterator<Item = PathBuf> {
        let modes = [executable, !executable];
        self.layouts
            .iter()
            .flat_map(move |layout| modes.map(|mode| layout.blob_path(&digest, mode)))
    }

    /// Hashes an open file unless this very file was hashed before.
    fn verify(&self, file: &File, digest: &Digest) -> io::Result<bool> {
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() != digest.size_bytes() {
            return Ok(false);
        }
        let state = FileState {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        if self.verified.lock().get(digest) == Some(&state) {
            return Ok(true);
        }
        if hash(file, digest)? != *digest {
            return Ok(false);
        }
        let mut verified = self.verified.lock();
        if verified.len() >= MAX_VERIFIED {
            verified.clear();
        }
        verified.insert(*digest, state);
        Ok(true)
    }
}

fn hash(file: &File, digest: &Digest) -> io::Result<Digest> {
    let mut hasher = digest.function().hasher();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        if hasher.size_bytes() > digest.size_bytes() {
            return Ok(hasher.finish());
        }
        // By position: who gets the file reads it from its start.
        match file.read_at(&mut buffer, hasher.size_bytes()) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(bytes) => hasher.update(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

impl Contents for Stores {
    fn want(&self, _: Want, done: Done) {
        // Whether it is here is seen when it is opened, which may take the time of a hash.
        done(Ok(()));
    }

    fn open(&self, _: &Path, key: &BlobKey) -> Result<File, WantError> {
        let read =
            |path: &Path, error: io::Error| WantError::Read(format!("{}: {error}", path.display()));
        if key.digest == key.digest.function().digest(b"") {
            // No store needs to hold it.
            let nothing = Path::new("/dev/null");
            return File::open(nothing).map_err(|error| read(nothing, error));
        }
        let executable = key.kind == BlobKind::File { executable: true };
        let mut damaged = None;
        for path in self.paths(key.digest, executable) {
            let file = match open_regular(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(read(&path, error)),
            };
            if self.verify(&file, &key.digest).map_err(|error| read(&path, error))? {
                return Ok(file);
            }
            damaged = Some(path);
        }
        Err(match damaged {
            Some(path) => WantError::Damaged(format!("{} is something else", path.display())),
            None => WantError::Refused("it is not in the store".to_owned()),
        })
    }

    fn read_failed(&self, digest: Digest, _: Vec<ViewId>, why: &WantError) {
        self.complaints.tell(&digest, why);
    }
}

impl Holdings for Stores {
    fn find(&self, function: DigestFunction, hash: &[u8]) -> Result<Option<Held>, Unknown> {
        let nothing = function.digest(b"");
        if hash == nothing.hash() {
            return Ok(Some(held(nothing)));
        }
        for layout in &self.layouts {
            if let Some(digest) = find_in(layout, function, hash)? {
                return Ok(Some(held(digest)));
            }
        }
        Ok(None)
    }

    fn hashes(&self, function: DigestFunction) -> Result<Vec<String>, Unknown> {
        let mut hashes = BTreeSet::new();
        for fan in 0..=u8::MAX {
            for layout in &self.layouts {
                let digests = list_fan(layout, function, &to_hex(&[fan]))?;
                hashes.extend(digests.map(|digest| digest.hex()));
            }
            if hashes.len() >= MAX_LISTED {
                tracing::warn!(listed = MAX_LISTED, "a listing of blobs is cut short");
                break;
            }
        }
        Ok(hashes.into_iter().take(MAX_LISTED).collect())
    }

    fn met(&self, _: Digest, _: &Arc<[Digest]>) {}
}

fn held(digest: Digest) -> Held {
    Held { digest, within: Arc::default() }
}

/// The blob of a store that has this hash: its size stands in its name.
pub(super) fn find_in(
    layout: &Layout,
    function: DigestFunction,
    hash: &[u8],
) -> Result<Option<Digest>, Unknown> {
    let fan = to_hex(hash.get(..1).unwrap_or_default());
    let found = list_fan(layout, function, &fan)?.find(|digest| {
        let right_size = |path: PathBuf| {
            fs::symlink_metadata(path).is_ok_and(|found| found.len() == digest.size_bytes())
        };
        digest.hash() == hash
            && [false, true].into_iter().any(|mode| right_size(layout.blob_path(digest, mode)))
    });
    Ok(found)
}

/// The blobs of a store whose hash begins with these two digits. Files that are no blobs are passed over.
fn list_fan(
    layout: &Layout,
    function: DigestFunction,
    fan: &str,
) -> Result<impl Iterator<Item = Digest> + use<>, Unknown> {
    let folder = layout.root().join(function.name()).join(fan);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(Unknown(format!("failed to list {}: {error}", folder.display())));
        }
    };
    let fan = fan.to_owned();
    Ok(entries.into_iter().flatten().filter_map(move |entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let stem = name.strip_suffix(".x").unwrap_or(&name);
        let (rest, size) = stem.split_once('-')?;
        Digest::from_hex(function, &format!("{fan}{rest}"), size.parse().ok()?).ok()
    }))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    use distbuild_cas::{DiskStore, StoreConfig};

    use super::*;

    const FUNCTION: DigestFunction = DigestFunction::Sha256;

    struct Rig {
        directory: tempfile::TempDir,
        store: DiskStore,
        stores: Stores,
    }

    impl Rig {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let config = StoreConfig::new(directory.path().join("store"));
            let store = DiskStore::open(config).unwrap();
            let missing = Layout::new(directory.path().join("missing"));
            let stores = Stores::new(vec![missing, store.layout().clone()]);
            Self { directory, store, stores }
        }

        fn add(&self, data: &[u8], executable: bool) -> Digest {
            let digest = FUNCTION.digest(data);
            self.store.insert(&digest, data, executable).unwrap();
            digest
        }

        fn read(&self, digest: Digest) -> Result<Vec<u8>, WantError> {
            let kind = BlobKind::File { executable: false };
            let mut file = self.stores.open(Path::new(""), &BlobKey { digest, kind })?;
            let mut data = Vec::new();
            file.read_to_end(&mut data).unwrap();
            Ok(data)
        }
    }

    #[test]
    fn a_blob_is_found_by_its_hash_alone_whatever_its_mode() {
        let rig = Rig::new();
        let (plain, tool) = (rig.add(b"plain", false), rig.add(b"tool", true));
        for digest in [plain, tool] {
            let found = rig.stores.find(FUNCTION, digest.hash()).unwrap().unwrap();
            assert_eq!(found.digest, digest);
        }
        let mut listed = vec![plain.hex(), tool.hex()];
        listed.sort();
        assert_eq!(rig.stores.hashes(FUNCTION).unwrap(), listed);
        assert!(rig.stores.find(FUNCTION, FUNCTION.digest(b"other").hash()).unwrap().is_none());
        assert!(rig.stores.hashes(DigestFunction::Sha1).unwrap().is_empty());
    }

    #[test]
    fn bytes_are_served_from_the_start_and_only_if_they_are_what_the_name_says() {
        let rig = Rig::new();
        let digest = rig.add(b"contents", true);
        assert_eq!(rig.read(digest).unwrap(), b"contents");
        assert_eq!(rig.read(digest).unwrap(), b"contents");
        let path = rig.store.blob_path(&digest, true);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&path, b"CONTENTS").unwrap();
        assert!(matches!(rig.read(digest), Err(WantError::Damaged(_))));
        // It is not ours to be put aside.
        assert!(path.exists());
        File::options().append(true).open(&path).unwrap().write_all(b"!").unwrap();
        assert!(rig.stores.find(FUNCTION, digest.hash()).unwrap().is_none());
    }

    #[test]
    fn the_empty_blob_is_always_there() {
        let rig = Rig::new();
        let nothing = FUNCTION.digest(b"");
        assert_eq!(rig.read(nothing).unwrap(), b"");
        assert_eq!(rig.stores.find(FUNCTION, nothing.hash()).unwrap().unwrap().digest, nothing);
        assert!(matches!(rig.read(FUNCTION.digest(b"x")), Err(WantError::Refused(_))));
    }

    #[test]
    fn the_owner_of_the_store_can_evict_while_it_is_looked_at() {
        let rig = Rig::new();
        let digest = rig.add(b"contents", false);
        let kind = BlobKind::File { executable: false };
        let file = rig.stores.open(Path::new(""), &BlobKey { digest, kind }).unwrap();
        drop(rig.store);
        let root = rig.directory.path().join("store");
        let store =
            DiskStore::open(StoreConfig { max_bytes: 0, ..StoreConfig::new(root) }).unwrap();
        store.scan().unwrap();
        store.evict_to_low_watermark().unwrap();
        assert!(!store.contains(&digest));
        assert_eq!(file.metadata().unwrap().len(), 8);
    }
}
