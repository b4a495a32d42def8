//! The lazy read-only file system over a store: inodes, views, FUSE adapter.
//!
//! Layers, from the inside out; each knows only those before it:
//!
//! 1. [`view`] for a worker and [`inspect`] for people, with `inode`, `traced` and [`record`]: which inodes exist, what each view has looked at. No
//!    FUSE, no disk, no waiting; it is tested without any of them.
//! 2. [`contents`] and [`fetch`]: blobs become open files and decoded directories, once each, with a
//!    deadline, on threads of their own.
//! 3. `adapter`, `answers` and `backing`: the kernel's messages, answered from 1 and 2. They hold for any
//!    [`tree::Tree`].
//! 4. [`mount`] and [`namespace`]: the mount itself, in a mount namespace of the caller's own.
//! 5. [`server`] with `connection` and [`protocol`]: the process that serves mounts and talks to its agent.
//!
//! The process that serves a mount never looks into it and never starts a program.

mod adapter;
mod answers;
mod backing;
pub mod blob;
pub mod changing;
mod codec;
pub mod collections;
mod connection;
pub mod contents;
mod entries;
pub mod error;
pub mod fetch;
mod fusermount;
pub mod inode;
pub mod inspect;
mod messages;
pub mod mount;
mod mount_table;
pub mod namespace;
mod pool;
pub mod protocol;
pub mod ranges;
mod requests;
pub mod server;
mod traced;
pub mod tree;
pub mod view;

pub use answers::Owner;
pub use backing::{LARGE_FILE_BYTES, is_on_overlay};
pub use contents::{Contents, Want, WantError};
pub use error::AccessError;
pub use inode::{FileKey, Ino, ViewId};
pub use messages::{Message, MessageCounts, Messages};
pub use mount::{MountError, MountedFuse};
pub use server::{FsConfig, Mounts, ServerError, Serving, serve};
pub use traced::RecordLimits;
pub use tree::Tree;
pub use view::Views;
