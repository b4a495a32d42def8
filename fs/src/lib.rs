//! The lazy read-only file system over a store: inodes, views, FUSE adapter.
