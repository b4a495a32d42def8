//! The vocabulary of distbuild: what every component means by a digest, a tree, a graph, an action.
//!
//! Wire types live in [`wire`] and are turned into domain types at the edge; inside, nothing is
//! checked twice. [`transport`] is how every component dials and listens; apart from it the crate knows no
//! network, no disk and no clock.

pub mod action;
pub mod address;
pub mod convert;
pub mod digest;
pub mod graph;
pub mod observed;
pub mod path;
pub mod prediction;
pub mod transport;
pub mod tree;

pub use address::{Address, AddressError};
pub use digest::{Digest, DigestError, DigestFunction, Hasher};
pub use observed::{AccessRecord, Observed, ObservedDirectory};
pub use path::{Name, PathError, RelPath};
pub use prediction::Prediction;
pub use tree::{
    Child, Directory, DirectoryNode, FileNode, Mtime, NodeProperties, SymlinkNode, TreeError,
};

/// The messages and services as the build generates them from `proto/distbuild/v1/*.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod wire {
    tonic::include_proto!("distbuild.v1");
}
