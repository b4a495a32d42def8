//! Where a blob lies: a pure function of its digest, the same in every process.
//!
//! `<root>/<function>/<first 2 hex digits>/<the other digits>-<size>`, with `.x` behind it for the
//! executable variant. The two variants are two inodes, because a mode belongs to an inode. Beside
//! the functions' folders lie `tmp` (files being written), `quarantine` (files whose bytes were
//! not what their name says), `lock`, `store-id`, `stamp` and `complete-trees` ([`crate::remembered`]).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use distbuild_proto::{Digest, DigestFunction};

/// Which file of a blob: the modes differ, the bytes do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Mode 0444.
    Plain = 0,
    /// Mode 0555.
    Executable = 1,
}

impl Variant {
    pub(crate) const BOTH: [Self; 2] = [Self::Plain, Self::Executable];

    pub(crate) fn of(executable: bool) -> Self {
        if executable { Self::Executable } else { Self::Plain }
    }

    pub(crate) fn other(self) -> Self {
        Self::of(self == Self::Plain)
    }

    /// Permission bits of a stored file of this variant.
    pub(crate) fn mode(self) -> u32 {
        match self {
            Self::Plain => 0o444,
            Self::Executable => 0o555,
        }
    }
}

/// The paths of a store. Holds nothing open and touches no disk, so a process that only reads
/// (the file-system server) can use it without opening the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of the store at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the blob lies if the store holds it in that variant.
    pub fn blob_path(&self, digest: &Digest, executable: bool) -> PathBuf {
        self.variant_path(digest, Variant::of(executable))
    }

    pub(crate) fn variant_path(&self, digest: &Digest, variant: Variant) -> PathBuf {
        let (fan, name) = file_name(digest, variant);
        let mut path = self.function_folder(digest.function());
        path.push(fan);
        path.push(name);
        path
    }

    pub(crate) fn function_folder(&self, function: DigestFunction) -> PathBuf {
        self.root.join(function.name())
    }

    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(crate) fn quarantine_path(&self, digest: &Digest, variant: Variant) -> PathBuf {
        let (fan, name) = file_name(digest, variant);
        self.quarantine().join(format!("{}-{fan}{name}", digest.function()))
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn stamp(&self) -> PathBuf {
        self.root.join("stamp")
    }

    pub(crate) fn complete_trees(&self) -> PathBuf {
        self.root.join("complete-trees")
    }

    pub(crate) fn store_id(&self) -> PathBuf {
        self.root.join("store-id")
    }
}

/// The folder and file name of a blob.
fn file_name(digest: &Digest, variant: Variant) -> (String, String) {
    let mut hex = digest.hex();
    let rest = hex.split_off(2);
    let suffix = match variant {
        Variant::Plain => "",
        Variant::Executable => ".x",
    };
    (hex, format!("{rest}-{}{suffix}", digest.size_bytes()))
}

/// The blob that a file in folder `fan` of `function` holds, if the name is one that
/// [`Layout::blob_path`] gives; anything else in there is not ours.
pub(crate) fn parse(
    function: DigestFunction,
    fan: &OsStr,
    name: &OsStr,
) -> Option<(Digest, Variant)> {
    let fan = std::str::from_utf8(fan.as_bytes()).ok()?;
    let name = std::str::from_utf8(name.as_bytes()).ok()?;
    let (stem, variant) = match name.strip_suffix(".x") {
        Some(stem) => (stem, Variant::Executable),
        None => (name, Variant::Plain),
    };
    let (rest, size) = stem.split_once('-')?;
    let digest = Digest::from_hex(function, &format!("{fan}{rest}"), size.parse().ok()?).ok()?;
    // "+7" and "007" parse as sizes too, and are no names we give.
    let given = file_name(&digest, variant);
    (given.0 == fan && given.1 == name).then_some((digest, variant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_function_hash_size_and_variant() {
        let layout = Layout::new("/s");
        let digest = DigestFunction::Sha1.digest(b"abc");
        assert_eq!(
            layout.blob_path(&digest, true),
            Path::new("/s/sha1/a9/993e364706816aba3e25717850c26c9cd0d89d-3.x")
        );
    }

    #[test]
    fn a_file_name_parses_to_the_blob_that_gave_it_and_others_do_not() {
        for function in DigestFunction::ALL {
            let digest = function.digest(b"abc");
            for variant in Variant::BOTH {
                let (fan, name) = file_name(&digest, variant);
                assert_eq!(parse(function, fan.as_ref(), name.as_ref()), Some((digest, variant)));
                for other in [format!("{name}~"), name.replace("-3", "-03"), "x".to_owned()] {
                    assert_eq!(parse(function, fan.as_ref(), other.as_ref()), None, "{other}");
                }
            }
        }
    }
}
