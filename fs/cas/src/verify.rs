//! Comparing stored bytes with their names, and what happens to those that differ.
//!
//! A damaged file is moved to `quarantine`, where a person can look at it, and the blob counts as
//! missing from then on, leased or not: bytes that are wrong are not kept for anybody.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use distbuild_proto::{Digest, DigestFunction};

use crate::disk::{Shared, is_empty_blob, open_regular};
use crate::error::StoreError;
use crate::index::{Identity, Index, Presence};
use crate::layout::Variant;

/// What the hash of a file said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// The bytes are those that the name says.
    Sound,
    /// They are not; the file has been put aside.
    Damaged,
    /// There is no file.
    Gone,
}

/// How much is read at once while hashing, in bytes.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

impl Shared {
    pub(crate) fn verify(&self, digest: &Digest) -> Result<(), StoreError> {
        let mut damaged = false;
        let mut found = is_empty_blob(digest);
        for variant in Variant::BOTH {
            let known = self.locate(&mut self.index.lock(), digest, variant, true)?;
            if known == Presence::Unknown {
                continue;
            }
            match self.check(digest, variant)? {
                Checked::Sound => found = true,
                Checked::Damaged => damaged = true,
                Checked::Gone => {}
            }
        }
        match (damaged, found) {
            (true, _) => Err(StoreError::Damaged(*digest)),
            (false, true) => Ok(()),
            (false, false) => Err(StoreError::Missing(*digest)),
        }
    }

    /// Hashes one file, and notes or puts aside accordingly.
    pub(crate) fn check(&self, digest: &Digest, variant: Variant) -> Result<Checked, StoreError> {
        let path = self.layout.variant_path(digest, variant);
        let failed = |source| StoreError::io("verify", &path, source);
        let file = match open_regular(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(digest, variant);
                return Ok(Checked::Gone);
            }
            Err(error) => return Err(failed(error)),
        };
        // Before the first byte: what changes while it is hashed is hashed again.
        let identity = Identity::of(&file.metadata().map_err(failed)?);
        let found = hash_file(&file, digest.function(), digest.size_bytes()).map_err(failed)?;
        if found == *digest {
            self.learn(digest, variant, Presence::Verified(identity));
            return Ok(Checked::Sound);
        }
        self.put_aside_file(digest, variant, &file)?;
        Ok(Checked::Damaged)
    }

    /// Whether a file of the right size is there, whatever the index says.
    pub(crate) fn is_whole(&self, digest: &Digest, variant: Variant) -> bool {
        fs::symlink_metadata(self.layout.variant_path(digest, variant))
            .is_ok_and(|found| found.is_file() && found.len() == digest.size_bytes())
    }

    /// Whether the file is there and still the one whose bytes were hashed.
    pub(crate) fn is_untouched(&self, known: Presence, digest: &Digest, variant: Variant) -> bool {
        let Presence::Verified(identity) = known else { return false };
        fs::symlink_metadata(self.layout.variant_path(digest, variant))
            .is_ok_and(|found| identity == Identity::of(&found))
    }

    /// Puts the file aside that `opened` is, unless the name belongs to a newer one by now.
    pub(crate) fn put_aside_file(
        &self,
        digest: &Digest,
        variant: Variant,
        opened: &File,
    ) -> Result<(), StoreError> {
        let path = self.layout.variant_path(digest, variant);
        let inode = opened.metadata().map_err(|e| StoreError::io("look at", &path, e))?.ino();
        {
            let mut index = self.index.lock();
            if fs::symlink_metadata(&path).is_ok_and(|found| found.ino() == inode) {
                self.put_aside(&mut index, digest, variant);
            }
        }
        self.trim_quarantine();
        Ok(())
    }

    /// Takes the name away from a damaged file. The caller holds the index.
    pub(crate) fn put_aside(&self, index: &mut Index, digest: &Digest, variant: Variant) {
        let path = self.layout.variant_path(digest, variant);
        let aside = self.layout.quarantine_path(digest, variant);
        tracing::error!(blob.digest = %digest, path = %aside.display(), "a damaged blob is put aside");
        self.stamp.renew(&self.layout);
        let moved =
            fs::rename(&path, &aside).or_else(|_| match fs::symlink_metadata(&path)?.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            });
        if let Err(error) = moved {
            tracing::error!(path = %path.display(), %error, "failed to put a damaged blob aside");
        }
        self.forget_file(index, digest, variant);
        self.count_damage();
    }

    /// Removes the files that were put aside first while there are too many, or too large ones.
    pub(crate) fn trim_quarantine(&self) {
        let folder = self.layout.quarantine();
        let trim = || -> io::Result<()> {
            let mut files = Vec::new();
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                // The change time is the time of the move.
                let moved_at = (metadata.ctime(), metadata.ctime_nsec());
                files.push((moved_at, metadata.len(), entry.path()));
            }
            files.sort_unstable_by(|a, b| b.cmp(a));
            let mut kept_bytes = 0u64;
            for (position, (_, bytes, path)) in files.into_iter().enumerate() {
                kept_bytes = kept_bytes.saturating_add(bytes);
                if position >= self.config.quarantine_max_files
                    || kept_bytes > self.config.quarantine_max_bytes
                {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        match trim() {
            // Another thread trims, too.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %folder.display(), %error, "failed to trim the quarantine");
            }
            _ => {}
        }
    }
}

/// The digest of a file from where it stands; stops one byte behind `limit_bytes`.
pub(crate) fn hash_file(
    file: &File,
    function: DigestFunction,
    limit_bytes: u64,
) -> io::Result<Digest> {
    let mut hasher = function.hasher();
    for_each_chunk(file, limit_bytes, |chunk| {
        hasher.update(chunk);
        Ok::<(), io::Error>(())
    })?;
    Ok(hasher.finish())
}

/// Reads a file from where it stands; stops one byte behind `limit_bytes`.
pub(crate) fn for_each_chunk<E: From<io::Error>>(
    file: &File,
    limit_bytes: u64,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut source = file.take(limit_bytes.saturating_add(1));
    let mut buffer = vec![0; CHUNK_BYTES.min(limit_bytes.saturating_add(1) as usize)];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => each(&buffer[..bytes])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use crate::{DiskStore, StoreConfig};

    use super::*;

    #[test]
    fn a_touch_of_the_stores_own_keeps_a_blob_verified_and_no_other_does() {
        let root = tempfile::tempdir().unwrap();
        let store = DiskStore::open(StoreConfig::new(root.path())).unwrap();
        let (digest, variant) = (DigestFunction::Blake3.digest(b"sound"), Variant::Plain);
        store.insert(&digest, b"sound", false).unwrap();
        let path = store.prepare(&digest, false).unwrap();
        let shared = &store.shared;
        let known = || shared.index.lock().presence(&digest, variant);
        assert!(shared.is_untouched(known(), &digest, variant));

        shared.stamp(&digest, variant);
        assert!(shared.is_untouched(known(), &digest, variant));

        let file = File::open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        shared.stamp(&digest, variant);
        assert!(!shared.is_untouched(known(), &digest, variant));
        // Hashed again, it is.
        store.prepare(&digest, false).unwrap();
        assert!(shared.is_untouched(known(), &digest, variant));
    }
}
