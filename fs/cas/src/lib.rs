//! Bytes by digest: the disk store, its layers, and the ingest of source trees.
//!
//! - [`DiskStore`]: one file a blob, verified, evicted by last use, shared by processes;
//!   [`Layout`] says where a blob lies, for who only reads; [`Lease`] and [`TreeLease`] keep blobs.
//! - [`BlobStore`]: what every store can do; [`MemoryStore`] does it without a disk.
//! - [`Filler`]: fills a near store from a far [`Source`], each blob once, small ones together.
//! - [`PartialBlob`]: a large blob that arrives in [`pieces`], each verified by itself where it can be.
//! - [`ingest`]: source trees on the user's machine, pruned to what jobs declare, and lending from them.
//! - [`materialize()`] and [`tree_from_directory`]: trees out of and into a store; [`tree_from_overlay`]: what was
//!   written over one.

mod adopt;
pub mod chunks;
mod collect;
mod config;
mod disk;
mod error;
mod evict;
mod filler;
mod index;
pub mod ingest;
mod layout;
mod lease;
pub mod lending;
mod lock;
mod materialize;
mod memory;
mod outputs;
mod partial;
pub mod pieces;
mod remembered;
mod scan;
pub mod serving;
mod store_id;
mod temporary;
mod tree_check;
mod turns;
mod verify;
mod writer;

pub use collect::{CollectError, CollectOptions, CollectedTree, tree_from_directory};
pub use config::StoreConfig;
pub use disk::DiskStore;
pub use error::{FetchError, FullReason, StoreError};
pub use evict::Eviction;
pub use filler::{Ahead, Answers, Filler, FillerConfig, Source, Want};
pub use index::Evicted;
pub use layout::Layout;
pub use lease::Lease;
pub use materialize::{MAX_TREE_DEPTH, MaterializeError, materialize};
pub use memory::{BlobStore, MemoryStore};
pub use outputs::{Layers, is_opaque, tree_from_overlay};
pub use partial::{PartialBlob, Put, PutError};
pub use scan::ScanReport;
pub use store_id::StoreId;
pub use tree_check::{Completeness, LeaseTreeError, MISSING_LISTED, Missing, TreeLease};
pub use writer::BlobWriter;
