//! `Holdings`: bytes by digest, and which digests there are, for a mount that people look into.

use std::sync::Arc;
use std::time::{Duration, Instant};

use distbuild_fs::inspect::Unknown;
use distbuild_fs::{Contents, WantError};
use distbuild_proto::{Digest, DigestFunction};
use parking_lot::Mutex;

use crate::output;

/// The same failure is told again only after this long: the kernel asks twice for what it could not
/// read ahead.
const TOLD_ONCE: Duration = Duration::from_secs(1);

/// Tells the user why reads have failed: the processes that read learn only that they have.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<Option<(Digest, Instant)>>);

impl Complaints {
    pub(super) fn tell(&self, digest: &Digest, why: &WantError) {
        let mut last = self.0.lock();
        let now = Instant::now();
        if last.is_some_and(|(told, at)| told == *digest && now < at + TOLD_ONCE) {
            return;
        }
        *last = Some((*digest, now));
        output::note(format_args!("{digest} cannot be read: {why}"));
    }
}

/// Hashes that one listing names at most: as many as a person can be served with.
pub(super) const MAX_LISTED: usize = 65_536;

/// A blob that is known by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) digest: Digest,
    /// Trees that it lies in, innermost first, where that matters for getting it.
    pub(super) within: Arc<[Digest]>,
}

/// Bytes, on this machine or elsewhere.
pub(super) trait Holdings: Contents {
    /// The blob with this hash, of the function's length; `None` if none is known. May wait for the disk.
    fn find(&self, function: DigestFunction, hash: &[u8]) -> Result<Option<Held>, Unknown>;

    /// Hashes of known blobs, in hexadecimal, at most [`MAX_LISTED`]. May wait for the disk.
    fn hashes(&self, function: DigestFunction) -> Result<Vec<String>, Unknown>;

    /// A blob was met in a tree. Never waits.
    fn met(&self, digest: Digest, within: &Arc<[Digest]>);
}
