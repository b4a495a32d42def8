//! Directories as blobs: REAPI's canonical `Directory` encoding, so that native and REAPI trees are
//! the same trees.
//!
//! A [`Directory`] in memory is always canonical: names are unique over files, directories and
//! symlinks together, and each kind is sorted by name bytes. Children are named by digests of the
//! same function as the directory's own. Few nodes have [`NodeProperties`]: a directory holds them
//! beside its children.

use std::collections::BTreeMap;

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
    /// `None`: no node has any.
    properties: Option<Box<Properties>>,
}

/// The properties of one directory and of the files and symbolic links in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Properties {
    own: Option<NodeProperties>,
    of_children: BTreeMap<Name, NodeProperties>,
}

/// What REAPI's `NodeProperties` may say of a file, directory or symbolic link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeProperties {
    /// When it was last changed.
    pub mtime: Option<Mtime>,
    /// Permission bits, as `chmod` takes them; other bits are kept and mean nothing.
    pub unix_mode: Option<u32>,
}

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mtime {
    seconds: i64,
    nanos: u32,
}

impl Mtime {
    /// Seconds since 1970-01-01, and nanoseconds after that. `None`: a second has no more than 10⁹ of them.
    pub fn new(seconds: i64, nanos: u32) -> Option<Self> {
        (nanos < 1_000_000_000).then_some(Self { seconds, nanos })
    }

    /// Seconds since 1970-01-01.
    pub fn seconds(&self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after the second.
    pub fn nanos(&self) -> u32 {
        self.nanos
    }
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
        let directory = Self { files, directories, symlinks, properties: None };
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

    /// The directory with these properties of its own, and of its files and symbolic links by name; whatever else
    /// is named has none. In place of those that it had.
    pub fn with_properties(
        mut self,
        own: Option<NodeProperties>,
        mut of_children: BTreeMap<Name, NodeProperties>,
    ) -> Self {
        of_children.retain(|name, _| {
            matches!(self.get(name.as_bytes()), Some(Child::File(_) | Child::Symlink(_)))
        });
        let any = own.is_some() || !of_children.is_empty();
        self.properties = any.then(|| Box::new(Properties { own, of_children }));
        self
    }

    /// The properties of the directory itself.
    pub fn properties(&self) -> Option<&NodeProperties> {
        self.properties.as_ref()?.own.as_ref()
    }

    /// The properties of a file or symbolic link in it.
    pub fn properties_of(&self, name: &Name) -> Option<&NodeProperties> {
        self.properties.as_ref()?.of_children.get(name)
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
                    node_properties: self.properties_of(&node.name).map(Into::into),
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
                    node_properties: self.properties_of(&node.name).map(Into::into),
                })
                .collect(),
            node_properties: self.properties().map(Into::into),
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
    /// no names, a missing or malformed digest, a node property other than [`NodeProperties`] has.
    pub fn decode(function: DigestFunction, blob: &[u8]) -> Result<Self, TreeError> {
        let digest = |digest: Option<wire::NodeDigest>| -> Result<Digest, TreeError> {
            let digest = digest.ok_or(DigestError::Missing)?;
            let size = u64::try_from(digest.size_bytes)
                .map_err(|_| DigestError::NegativeSize(digest.size_bytes))?;
            Ok(Digest::from_hex(function, &digest.hash, size)?)
        };
        let message = wire::Directory::decode(blob)?;
        let own = message.node_properties.map(|wire| properties(wire, ".")).transpose()?;
        let mut of_children = BTreeMap::new();
        let mut keep = |name: &Name, found: Option<wire::NodeProperties>| {
            if let Some(found) = found {
                of_children.insert(name.clone(), properties(found, name)?);
            }
            Ok::<(), TreeError>(())
        };
        let mut files = Vec::with_capacity(message.files.len());
        for node in message.files {
            let name = Name::new(&node.name)?;
            keep(&name, node.node_properties)?;
            files.push(FileNode {
                name,
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
            let name = Name::new(&node.name)?;
            keep(&name, node.node_properties)?;
            symlinks.push(SymlinkNode { name, target: node.target });
        }
        let sorted = files.is_sorted_by(|a, b| a.name < b.name)
            && directories.is_sorted_by(|a, b| a.name < b.name)
            && symlinks.is_sorted_by(|a, b| a.name < b.name);
        if !sorted {
            return Err(TreeError::Unsorted);
        }
        Ok(Self::new(files, directories, symlinks)?.with_properties(own, of_children))
    }
}

fn properties(
    wire: wire::NodeProperties,
    node: impl std::fmt::Display,
) -> Result<NodeProperties, TreeError> {
    if let Some(other) = wire.properties.first() {
        let property = String::from_utf8_lossy(&other.name).into_owned();
        return Err(TreeError::Property { node: node.to_string(), property });
    }
    let mtime = wire.mtime.map(|time| {
        let mtime =
            u32::try_from(time.nanos).ok().and_then(|nanos| Mtime::new(time.seconds, nanos));
        mtime.ok_or_else(|| TreeError::Mtime(node.to_string()))
    });
    let unix_mode = wire.unix_mode.map(|mode| mode.value);
    Ok(NodeProperties { mtime: mtime.transpose()?, unix_mode })
}

impl From<&NodeProperties> for wire::NodeProperties {
    fn from(properties: &NodeProperties) -> Self {
        let mtime = properties.mtime.map(|time| wire::Timestamp {
            seconds: time.seconds,
            // Below 10⁹.
            nanos: time.nanos as i32,
        });
        let unix_mode = properties.unix_mode.map(|value| wire::UInt32Value { value });
        Self { properties: Vec::new(), mtime, unix_mode }
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
    /// A node has a property that nobody here can honour.
    #[error(
        "{node:?} has the property {property:?}; mtime and unix_mode are the ones that are honoured"
    )]
    Property {
        /// The name of the node; `.` is the directory itself.
        node: String,
        /// The name of the property.
        property: String,
    },
    /// A node has a time with more nanoseconds than a second has, or fewer than none.
    #[error("the mtime of {0:?} is no time")]
    Mtime(String),
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
    fn properties_are_kept_as_they_came() {
        let link = SymlinkNode { name: Name::new(b"l").unwrap(), target: Bytes::from("x") };
        let plain = Directory::new(vec![file("a"), file("b")], vec![], vec![link]).unwrap();
        let name = |text: &str| Name::new(text.as_bytes()).unwrap();
        let all = NodeProperties { mtime: Mtime::new(-1, 999_999_999), unix_mode: Some(0o4711) };
        // What is there and says nothing is not what is not there.
        let nothing = NodeProperties::default();
        let zero = NodeProperties { mtime: Mtime::new(0, 0), unix_mode: Some(0) };
        let of = BTreeMap::from([(name("a"), all), (name("l"), zero), (name("none"), all)]);
        let directory = plain.clone().with_properties(Some(nothing), of);
        let blob = directory.encode();
        let again = Directory::decode(DigestFunction::Sha256, &blob).unwrap();
        assert_eq!(again, directory);
        assert_eq!(again.encode(), blob);
        assert_eq!(again.properties(), Some(&nothing));
        assert_eq!(again.properties_of(&name("a")), Some(&all));
        assert_eq!(again.properties_of(&name("b")), None);
        assert_eq!(again.properties_of(&name("l")), Some(&zero));
        assert_eq!(again.with_properties(None, BTreeMap::new()), plain);
    }

    #[test]
    fn properties_that_nobody_honours_are_refused() {
        let directory = Directory::new(vec![file("a")], vec![], vec![]).unwrap();
        let decode = |properties: wire::NodeProperties, own: bool| {
            let mut message = wire::Directory::decode(directory.encode()).unwrap();
            match own {
                true => message.node_properties = Some(properties),
                false => message.files[0].node_properties = Some(properties),
            }
            Directory::decode(DigestFunction::Sha256, &message.encode_to_vec()).unwrap_err()
        };
        let owner = wire::NodeProperty { name: "owner".into(), value: "me".into() };
        let owner = wire::NodeProperties { properties: vec![owner], ..Default::default() };
        for own in [true, false] {
            let error = decode(owner.clone(), own);
            assert!(matches!(&error, TreeError::Property { property, .. } if property == "owner"));
        }
        for nanos in [-1, 1_000_000_000] {
            let mtime = Some(wire::Timestamp { seconds: 0, nanos });
            let error = decode(wire::NodeProperties { mtime, ..Default::default() }, false);
            assert!(matches!(error, TreeError::Mtime(_)), "{error}");
        }
    }

    #[test]
    fn the_encoding_is_that_of_the_remote_execution_api() {
        // From the .proto of the API, by hand: field 6 of a file, with mtime as field 2 and unix_mode as field 3.
        let properties = NodeProperties { mtime: Mtime::new(5, 7), unix_mode: Some(0o755) };
        let name = Name::new(b"a").unwrap();
        let directory = Directory::new(vec![file("a")], vec![], vec![]).unwrap();
        let plain = directory.encode();
        let blob = directory.with_properties(None, BTreeMap::from([(name, properties)])).encode();
        let added = [0x32, 11, 0x12, 4, 0x08, 5, 0x10, 7, 0x1a, 3, 0x08, 0xed, 0x03];
        assert_eq!(&blob[2..plain.len()], &plain[2..]);
        assert_eq!(&blob[plain.len()..], &added);
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
