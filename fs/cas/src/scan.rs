//! Filling the index from the disk, behind the back of a store that serves already.
//!
//! A scan lists the folders without holding the index, then adds what it found, newest first, each
//! behind all that is known by then: what was used since the start stays ahead of what was not.

use std::fs;
use std::io;
use std::thread::{self, JoinHandle};

use distbuild_proto::{Digest, DigestFunction};

use crate::disk::{DiskStore, Shared, stamp_of};
use crate::error::StoreError;
use crate::layout::{self, Variant};

/// How many files are added in one hold of the index.
const FILES_PER_HOLD: usize = 256;

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// Files of blobs.
    pub files: u64,
    /// What their names say they hold, in bytes.
    pub bytes: u64,
    /// Files of the wrong size, put aside.
    pub damaged: u64,
    /// Files that are not ours, left alone.
    pub foreign: u64,
}

struct Found {
    stamped_at: u64,
    digest: Digest,
    variant: Variant,
    damaged: bool,
}

impl DiskStore {
    /// Looks at every file of the store once, on the calling thread. Sizes are compared with the
    /// names; bytes are not read. The store serves meanwhile.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn scan(&self) -> Result<ScanReport, StoreError> {
        let report = self.shared.scan()?;
        // What was there from before may be more than is allowed now.
        self.shared.wake.wake();
        Ok(report)
    }

    /// [`Self::scan`] on a thread of its own, which ends early when the store is closed.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn spawn_scan(&self) -> Result<JoinHandle<Result<ScanReport, StoreError>>, StoreError> {
        let shared = self.shared.clone();
        thread::Builder::new()
            .name("store-scan".to_owned())
            .spawn(move || {
                let report = shared.scan()?;
                shared.wake.wake();
                tracing::info!(files = report.files, bytes = report.bytes, "scanned the store");
                Ok(report)
            })
            .map_err(|source| {
                StoreError::io("start a thread for", self.shared.layout.root(), source)
            })
    }
}

impl Shared {
    pub(crate) fn scan(&self) -> Result<ScanReport, StoreError> {
        let generation = self.generation();
        let mut report = ScanReport::default();
        let mut found = Vec::new();
        for function in DigestFunction::ALL {
            self.list(function, &mut found, &mut report)?;
        }
        found.sort_unstable_by_key(|file| std::cmp::Reverse(file.stamped_at));
        for files in found.chunks(FILES_PER_HOLD) {
            if self.wake.stopping() {
                break;
            }
            self.add(files, generation, &mut report);
        }
        if report.damaged > 0 {
            self.trim_quarantine();
        }
        Ok(report)
    }

    fn add(&self, files: &[Found], generation: u64, report: &mut ScanReport) {
        let mut index = self.index.lock();
        // If something was removed since the listing, it may have been this.
        let certain = self.generation() == generation;
        for Found { stamped_at, digest, variant, damaged } in files {
            if index.knows(digest, *variant) {
                // Its name is good by now, whatever it was.
            } else if *damaged {
                // Looks again, and puts it aside if it still is damaged.
                let _ = self.locate(&mut index, digest, *variant, true);
                report.damaged += 1;
                continue;
            } else if certain
                || fs::symlink_metadata(self.layout.variant_path(digest, *variant)).is_ok()
            {
                index.record_as_oldest(digest, *variant, *stamped_at);
            } else {
                continue;
            }
            report.files += 1;
            report.bytes += digest.size_bytes();
        }
    }

    fn list(
        &self,
        function: DigestFunction,
        found: &mut Vec<Found>,
        report: &mut ScanReport,
    ) -> Result<(), StoreError> {
        let folder = self.layout.function_folder(function);
        let failed = |source| StoreError::io("list", &folder, source);
        for fan in fs::read_dir(&folder).map_err(failed)? {
            let fan = fan.map_err(failed)?;
            let entries = match fs::read_dir(fan.path()) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    report.foreign += 1;
                    continue;
                }
                Err(error) => return Err(StoreError::io("list", &fan.path(), error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let name = layout::parse(function, &fan.file_name(), &entry.file_name());
                let Some((digest, variant)) = name else {
                    report.foreign += 1;
                    continue;
                };
                // Does not follow symbolic links; gone again is not an error.
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                let damaged = !metadata.is_file() || metadata.len() != digest.size_bytes();
                found.push(Found { stamped_at: stamp_of(&metadata), digest, variant, damaged });
            }
            if self.wake.stopping() {
                break;
            }
        }
        Ok(())
    }
}
