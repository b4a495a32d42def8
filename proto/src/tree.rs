//! Directories as blobs: REAPI's canonical `Directory` encoding, so that native and REAPI trees are
//! the same trees.
//!
//! A [`Directory`] in memory is always canonical: names are unique over files, directories and
//! symlinks together, and each kind is sorted by name bytes. Children are named by digests of the
//! same function as the directory's own.

use bytes::Bytes;
use prost::Message;

use crate::digest::{Digest, DigestError, DigestFunction};
use crate::path::{Name, PathError};
use crate::wire;

/// One directory: what its children are called and which blobs they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    files: Vec<FileNode>,
    directories: Vec<DirectoryNode>,
    symlinks: Vec<SymlinkNode>,
}

/// A regular file in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileNode {
    /// Its name.
    pub name: Name,
    /// Its contents.
    pub digest: Digest,
    /// Whether it may be executed.
    pub executable: bool,
}

/// A directory in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryNode {
    /// Its name.
    pub name: Name,
    /// The digest of its encoded [`Directory`].
    pub digest: Digest,
}

/// A symbolic link in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymlinkNode {
    /// Its name.
    pub name: Name,
    /// What it points to, as it stands; not empty, without NUL.
    pub target: Bytes,
}

/// What a name in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child<'a> {
    /// A regular file.
    File(&'a FileNode),
    /// A directory.
    Directory(&'a DirectoryNode),
    /// A symbolic link.
    Symlink(&'a SymlinkNode),
}

impl Directory {
    /// Sorts the children and checks that no name stands twice.
    ///
    /// # Errors
    /// A name that two children share, or an empty symlink target or one with NUL.
    pub fn new(
        mut files: Vec<FileNode>,
        mut directories: Vec<DirectoryNode>,
        mut symlinks: Vec<SymlinkNode>,
    ) -> Result<Self, TreeError> {
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        directories.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        symlinks.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let directory = Self { files, directories, symlinks };
        directory.check_unique()?;
        for link in &directory.symlinks {
            if link.target.is_empty() || link.target.contains(&0) {
                return Err(TreeError::SymlinkTarget(link.name.to_string()));
            }
        }
        Ok(directory)
    }

    fn check_unique(&self) -> Result<(), TreeError> {
        let mut previous: Option<&Name> = None;
        for name in self.names() {
            if previous == Some(name) {
                return Err(TreeError::DuplicateName(name.to_string()));
            }
            previous = Some(name);
        }
        Ok(())
    }

    /// All names in the order of their bytes, over all kinds.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.children().map(|child| child.name())
    }

    /// All children in the order of their names' bytes.
    pub fn children(&self) -> impl Iterator<Item = Child<'_>> {
        let mut files = self.files.iter().peekable();
        let mut directories = self.directories.iter().peekable();
        let mut symlinks = self.symlinks.iter().peekable();
        std::iter::from_fn(move || {
            let next = [
                files.peek().map(|node| (&node.name, 0)),
                directories.peek().map(|node| (&node.name, 1)),
                symlinks.peek().map(|node| (&node.name, 2)),
            ]
            .into_iter()
            .flatten()
            .min()?;
            match next.1 {
                0 => files.next().map(Child::File),
                1 => directories.next().map(Child::Directory),
                _ => symlinks.next().map(Child::Symlink),
            }
        })
    }

    /// The child of this name.
    pub fn get(&self, name: &[u8]) -> Option<Child<'_>> {
        if let Ok(at) = self.files.binary_search_by(|node| node.name.as_bytes().cmp(name)) {
            return Some(Child::File(&self.files[at]));
        }
        if let Ok(at) = self.directories.binary_search_by(|node| node.name.as_bytes().cmp(name)) {
            return Some(Child::Directory(&self.directories[at]));
        }
        let at = self.symlinks.binary_search_by(|node| node.name.as_bytes().cmp(name)).ok()?;
        Some(Child::Symlink(&self.symlinks[at]))
    }

    /// The regular files, sorted by name.
    pub fn files(&self) -> &[FileNode] {
        &self.files
    }

    /// The directories, sorted by name.
    pub fn directories(&self) -> &[DirectoryNode] {
        &self.directories
    }

    /// The symbolic links, sorted by name.
    pub fn symlinks(&self) -> &[SymlinkNode] {
        &self.symlinks
    }

    /// Number of children.
    pub fn len(&self) -> usize {
        self.files.len() + self.directories.len() + self.symlinks.len()
    }

    /// Whether there are no children.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The canonical encoding: the blob that a directory's digest names.
    pub fn encode(&self) -> Bytes {
        fn digest(digest: &Digest) -> Option<wire::NodeDigest> {
            let size_bytes = digest.size_bytes() as i64;
            Some(wire::NodeDigest { hash: digest.hex(), size_bytes })
        }
        fn name(name: &Name) -> Bytes {
            Bytes::copy_from_slice(name.as_bytes())
        }
        let message = wire::Directory {
            files: self
                .files
                .iter()
                .map(|node| wire::FileNode {
                    name: name(&node.name),
                    digest: digest(&node.digest),
                    is_executable: node.executable,
                })
                .collect(),
            directories: self
                .directories
                .iter()
                .map(|node| wire::DirectoryNode {
                    name: name(&node.name),
                    digest: digest(&node.digest),
                })
                .collect(),
            symlinks: self
                .symlinks
                .iter()
                .map(|node| wire::SymlinkNode {
                    name: name(&node.name),
                    target: node.target.clone(),
                })
                .collect(),
        };
        message.encode_to_vec().into()
    }

    /// The encoding and its digest.
    pub fn encode_with_digest(&self, function: DigestFunction) -> (Digest, Bytes) {
        let blob = self.encode();
        (function.digest(&blob), blob)
    }

    /// Decodes a blob whose children are named by digests of `function`.
    ///
    /// # Errors
    /// Anything that a canonical `Directory` cannot hold: unsorted or doubled names, names that are
    /// no names, a missing or malformed digest, node properties (which we do not keep).
    pub fn decode(function: DigestFunction, blob: &[u8]) -> Result<Self, TreeError> {
        let digest = |digest: Option<wire::NodeDigest>| -> Result<Digest, TreeError> {
            let digest = digest.ok_or(DigestError::Missing)?;
            let size = u64::try_from(digest.size_bytes)
                .map_err(|_| DigestError::NegativeSize(digest.size_bytes))?;
            Ok(Digest::from_hex(function, &digest.hash, size)?)
        };
        let message = wire::Directory::decode(blob)?;
        let mut files = Vec::with_capacity(message.files.len());
        for node in message.files {
            files.push(FileNode {
                name: Name::new(&node.name)?,
                digest: digest(node.digest)?,
                executable: node.is_executable,
            });
        }
        let mut directories = Vec::with_capacity(message.directories.len());
        for node in message.directories {
            directories
                .push(DirectoryNode { name: Name::new(&node.name)?, digest: digest(node.digest)? });
        }
        let mut symlinks = Vec::with_capacity(message.symlinks.len());
        for node in message.symlinks {
            symlinks.push(SymlinkNode { name: Name::new(&node.name)?, target: node.target });
        }
        let sorted = files.is_sorted_by(|a, b| a.name < b.name)
            && directories.is_sorted_by(|a, b| a.name < b.name)
            && symlinks.is_sorted_by(|a, b| a.name < b.name);
        if !sorted {
            return Err(TreeError::Unsorted);
        }
        Self::new(files, directories, symlinks)
    }
}

impl<'a> Child<'a> {
    /// The name of the child.
    pub fn name(&self) -> &'a Name {
        match self {
            Self::File(node) => &node.name,
            Self::Directory(node) => &node.name,
            Self::Symlink(node) => &node.name,
        }
    }
}

/// Why bytes or nodes are no directory.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Two children share a name.
    #[error("the name {0:?} stands twice in one directory")]
    DuplicateName(String),
    /// The children of one kind are not sorted by name.
    #[error("the names of a directory are not sorted")]
    Unsorted,
    /// A symlink points to nothing at all.
    #[error("the symlink {0:?} has an empty target or one with NUL")]
    SymlinkTarget(String),
    /// A child has a name that is no name.
    #[error(transparent)]
    Name(#[from] PathError),
    /// A child has no valid digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The bytes are no protobuf message of this type.
    #[error("not a Directory message: {0}")]
    Wire(#[from] prost::DecodeError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> FileNode {
        FileNode {
            name: Name::new(name.as_bytes()).unwrap(),
            digest: DigestFunction::Sha256.digest(name.as_bytes()),
            executable: name == "tool",
        }
    }

    #[test]
    fn an_encoded_directory_decodes_to_itself() {
        let directory = Directory::new(
            vec![file("tool"), file("b")],
            vec![DirectoryNode {
                name: Name::new(b"sub\xff").unwrap(),
                digest: DigestFunction::Sha256.digest(b""),
            }],
            vec![SymlinkNode { name: Name::new(b"c").unwrap(), target: Bytes::from("../x") }],
        )
        .unwrap();
        let again = Directory::decode(DigestFunction::Sha256, &directory.encode()).unwrap();
        assert_eq!(again, directory);
        let names: Vec<_> = again.names().map(|name| name.as_bytes().to_vec()).collect();
        assert_eq!(names, [&b"b"[..], b"c", b"sub\xff", b"tool"]);
        assert!(matches!(again.get(b"c"), Some(Child::Symlink(_))));
        assert!(again.get(b"nothing").is_none());
    }

    #[test]
    fn the_empty_directory_is_the_empty_blob() {
        assert!(Directory::default().encode().is_empty());
    }

    #[test]
    fn one_name_in_two_kinds_is_refused() {
        let link = SymlinkNode { name: Name::new(b"b").unwrap(), target: Bytes::from("x") };
        let error = Directory::new(vec![file("b")], vec![], vec![link]).unwrap_err();
        assert!(matches!(error, TreeError::DuplicateName(_)));
    }

    #[test]
    fn unsorted_names_on_the_wire_are_refused() {
        let directory = Directory::new(vec![file("a"), file("b")], vec![], vec![]).unwrap();
        let mut message = wire::Directory::decode(directory.encode()).unwrap();
        message.files.reverse();
        let error = Directory::decode(DigestFunction::Sha256, &message.encode_to_vec());
        assert!(matches!(error.unwrap_err(), TreeError::Unsorted));
    }
}
