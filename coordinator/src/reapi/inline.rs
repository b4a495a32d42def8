//! Contents that a client wants in an answer, beside the digests that name them.

use std::collections::HashSet;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_cas::DiskStore;
use distbuild_proto::DigestFunction;

use super::digest::parse;

/// What one answer holds of contents at most, in bytes; what does not fit is named by its digest alone.
const MAX_INLINE_BYTES: u64 = 1 << 20;

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inline {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// Paths of output files, as they stand in the result.
    pub(crate) files: HashSet<String>,
}

impl Inline {
    /// Whether anything is wanted at all.
    pub(crate) fn is_any(&self) -> bool {
        self.stdout || self.stderr || !self.files.is_empty()
    }

    /// Puts into a result what is wanted and fits; it has no contents yet. Blocks.
    pub(crate) fn fill(
        &self,
        store: &DiskStore,
        function: DigestFunction,
        result: &mut api::ActionResult,
    ) {
        let mut room = MAX_INLINE_BYTES;
        let mut read = |digest: Option<&api::Digest>| -> Vec<u8> {
            let digest = digest.and_then(|digest| parse(function, digest).ok());
            let fitting = digest.filter(|it| it.size_bytes() > 0 && it.size_bytes() <= room);
            let contents = fitting.and_then(|digest| store.read(&digest).ok()).unwrap_or_default();
            room -= contents.len() as u64;
            contents.into()
        };
        if self.stdout {
            result.stdout_raw = read(result.stdout_digest.as_ref());
        }
        if self.stderr {
            result.stderr_raw = read(result.stderr_digest.as_ref());
        }
        let wanted = |file: &&mut api::OutputFile| self.files.contains(&file.path);
        for file in result.output_files.iter_mut().filter(wanted) {
            file.contents = read(file.digest.as_ref());
        }
    }
}
