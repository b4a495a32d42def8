//! Small trees, and where their blobs are until somebody wants them.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use distbuild_fs::contents::{BlobKey, BlobKind};
use distbuild_proto::{
    Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name, SymlinkNode,
};

pub(crate) const FUNCTION: DigestFunction = DigestFunction::Blake3;

/// A tree as one would write it down.
#[derive(Clone)]
pub(crate) enum Plain {
    File(Vec<u8>),
    Program(Vec<u8>),
    Link(&'static str),
    Directory(BTreeMap<Vec<u8>, Plain>),
}

pub(crate) fn file(contents: &str) -> Plain {
    Plain::File(contents.into())
}

pub(crate) fn directory<const N: usize>(children: [(&str, Plain); N]) -> Plain {
    let children = children.into_iter().map(|(name, child)| (name.as_bytes().to_vec(), child));
    Plain::Directory(children.collect())
}

/// Blobs that can be brought into a store.
pub(crate) type Blobs = HashMap<BlobKey, Vec<u8>>;

/// Encodes a tree and says its root.
pub(crate) fn encode(tree: &Plain, blobs: &mut Blobs) -> Digest {
    let Plain::Directory(children) = tree else { panic!("the root is a directory") };
    let (mut files, mut directories, mut symlinks) = (vec![], vec![], vec![]);
    for (name, child) in children {
        let name = Name::new(name).unwrap();
        match child {
            Plain::File(data) | Plain::Program(data) => {
                let executable = matches!(child, Plain::Program(_));
                let digest = FUNCTION.digest(data);
                let kind = BlobKind::File { executable };
                blobs.insert(BlobKey { digest, kind }, data.clone());
                files.push(FileNode { name, digest, executable });
            }
            Plain::Link(target) => {
                symlinks.push(SymlinkNode { name, target: Bytes::from_static(target.as_bytes()) });
            }
            Plain::Directory(_) => {
                directories.push(DirectoryNode { name, digest: encode(child, blobs) });
            }
        }
    }
    let directory = Directory::new(files, directories, symlinks).unwrap();
    let (digest, blob) = directory.encode_with_digest(FUNCTION);
    blobs.insert(BlobKey { digest, kind: BlobKind::Directory }, blob.to_vec());
    digest
}
