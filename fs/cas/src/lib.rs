//! Bytes by digest: the disk store, its layers, and the ingest of source trees.
