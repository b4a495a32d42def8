//! How large and how careful a store is; every limit has a named default.

use std::path::PathBuf;

/// How large and how careful a store is.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The folder of the store; made, for its owner only, if it does not exist.
    pub root: PathBuf,
    /// What the blobs may take on disk, in bytes.
    pub max_bytes: u64,
    /// Eviction begins above this part of `max_bytes`.
    pub high_watermark: f64,
    /// Eviction goes on down to this part of `max_bytes`.
    pub low_watermark: f64,
    /// What the store leaves free on its file system, in bytes.
    pub min_free_bytes: u64,
    /// Largest blob that [`DiskStore::read`](crate::DiskStore::read) reads into memory, in bytes.
    pub max_read_bytes: u64,
    /// How many damaged files are kept to be looked at.
    pub quarantine_max_files: usize,
    /// What damaged files may take, in bytes.
    pub quarantine_max_bytes: u64,
}

impl StoreConfig {
    /// 20 GiB, as a developer's machine can spare.
    pub const DEFAULT_MAX_BYTES: u64 = 20 << 30;
    /// Leaves a tenth for what arrives while an eviction runs.
    pub const DEFAULT_HIGH_WATERMARK: f64 = 0.9;
    /// Far enough below the high watermark that evictions are few and large.
    pub const DEFAULT_LOW_WATERMARK: f64 = 0.8;
    /// 256 MiB.
    pub const DEFAULT_MIN_FREE_BYTES: u64 = 256 << 20;
    /// 64 MiB: far above any directory.
    pub const DEFAULT_MAX_READ_BYTES: u64 = 64 << 20;
    /// Enough to see a pattern in what breaks.
    pub const DEFAULT_QUARANTINE_MAX_FILES: usize = 64;
    /// 1 GiB.
    pub const DEFAULT_QUARANTINE_MAX_BYTES: u64 = 1 << 30;

    /// The defaults for a store in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            max_bytes: Self::DEFAULT_MAX_BYTES,
            high_watermark: Self::DEFAULT_HIGH_WATERMARK,
            low_watermark: Self::DEFAULT_LOW_WATERMARK,
            min_free_bytes: Self::DEFAULT_MIN_FREE_BYTES,
            max_read_bytes: Self::DEFAULT_MAX_READ_BYTES,
            quarantine_max_files: Self::DEFAULT_QUARANTINE_MAX_FILES,
            quarantine_max_bytes: Self::DEFAULT_QUARANTINE_MAX_BYTES,
        }
    }

    pub(crate) fn high_bytes(&self) -> u64 {
        (self.max_bytes as f64 * self.high_watermark.clamp(0.0, 1.0)) as u64
    }

    pub(crate) fn low_bytes(&self) -> u64 {
        let low = (self.max_bytes as f64 * self.low_watermark.clamp(0.0, 1.0)) as u64;
        low.min(self.high_bytes())
    }
}
