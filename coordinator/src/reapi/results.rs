//! Results of actions: kept by instance and action digest, given out only while all that they name is here.

use std::sync::Arc;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_cas::{DiskStore, StoreError};
use distbuild_proto::{Digest, DigestFunction};
use prost::Message;
use tonic::Status;

use super::inline::Inline;
use super::instance::Instance;
use super::trees::{Step, Walk};
use super::{digest, status};
use crate::config::WritableInstances;
use crate::core::Shared;
use crate::event_log::unix_ms;
use crate::state::{ApiResultKey, State};

/// Largest encoded `ActionResult` that is kept, about 50 000 outputs.
pub(crate) const MAX_RESULT_BYTES: usize = 8 << 20;

/// The results of all instances; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Results {
    state: State,
    store: DiskStore,
    writable: Arc<WritableInstances>,
}

impl Results {
    /// The results that the state and the store of a coordinator hold.
    pub(crate) fn new(shared: &Shared, writable: WritableInstances) -> Self {
        let (state, store) = (shared.state.clone(), shared.store.clone());
        Self { state, store, writable: Arc::new(writable) }
    }

    /// Whether clients may write results of this instance.
    pub(crate) fn may_write(&self, instance: &Instance) -> bool {
        self.writable.contains(instance.as_str())
    }

    /// The result of an action, if it is known and all that it names is here. Counts as a use of all of it.
    pub(crate) async fn find(
        &self,
        instance: &Instance,
        action: Digest,
        inline: &Inline,
    ) -> Result<Option<api::ActionResult>, Status> {
        let key = ApiResultKey { instance: instance.as_str().into(), action };
        let found = self.state.api_result(key, unix_ms()).await;
        let Some(found) = found.map_err(|error| status::of_state(&error))? else {
            return Ok(None);
        };
        let (store, inline) = (self.store.clone(), inline.clone());
        tokio::task::spawn_blocking(move || {
            let mut result = api::ActionResult::decode(&found.result[..]).ok()?;
            let missing = missing(&store, action.function(), &result);
            if !missing.is_ok_and(|missing| missing.is_empty()) {
                return None;
            }
            inline.fill(&store, action.function(), &mut result);
            Some(result)
        })
        .await
        .map_err(|error| status::of_thread(&error))
    }

    /// Keeps the result of an action that succeeded; one that did not, or that is over [`MAX_RESULT_BYTES`], is not
    /// kept. All that it names is here.
    ///
    /// # Errors
    /// The database failed.
    pub(crate) async fn record(
        &self,
        instance: &Instance,
        action: Digest,
        result: &api::ActionResult,
    ) -> Result<(), Status> {
        if result.exit_code != 0 {
            return Ok(());
        }
        let encoded = result.encode_to_vec();
        if encoded.len() > MAX_RESULT_BYTES {
            let bytes = encoded.len();
            tracing::warn!(action.digest = %action, bytes, "a result is too large to be kept");
            return Ok(());
        }
        let key = ApiResultKey { instance: instance.as_str().into(), action };
        let recorded = self.state.record_api_result(key, encoded, unix_ms()).await;
        recorded.map_err(|error| status::of_state(&error))
    }
}

/// What a result names and the store does not hold. Counts as a use of what it holds.
///
/// # Errors
/// A digest or a tree that is none, a store that fails.
pub(crate) fn missing(
    store: &DiskStore,
    function: DigestFunction,
    result: &api::ActionResult,
) -> Result<Vec<Digest>, Status> {
    let mut missing = Missing { store, function, found: Vec::new() };
    let streams = [&result.stdout_digest, &result.stderr_digest];
    for digest in streams.into_iter().flatten() {
        missing.look(Some(digest))?;
    }
    for file in &result.output_files {
        missing.look(file.digest.as_ref())?;
    }
    for directory in &result.output_directories {
        missing.look_into(directory)?;
    }
    Ok(missing.found)
}

struct Missing<'a> {
    store: &'a DiskStore,
    function: DigestFunction,
    found: Vec<Digest>,
}

impl Missing<'_> {
    fn look(&mut self, named: Option<&api::Digest>) -> Result<Digest, Status> {
        let digest = named.ok_or_else(|| status::invalid("an output has no digest"))?;
        let digest = digest::parse(self.function, digest).map_err(status::invalid)?;
        if !self.store.contains(&digest) {
            self.found.push(digest);
        }
        Ok(digest)
    }

    fn look_into(&mut self, directory: &api::OutputDirectory) -> Result<(), Status> {
        if directory.tree_digest.is_none() && directory.root_directory_digest.is_none() {
            return Err(status::invalid("an output directory has no digest"));
        }
        if let Some(tree) = &directory.tree_digest {
            let tree = self.look(Some(tree))?;
            self.look_into_tree(&tree)?;
        }
        if let Some(root) = &directory.root_directory_digest {
            let root = digest::parse(self.function, root).map_err(status::invalid)?;
            self.look_into_directories(root)?;
        }
        Ok(())
    }

    /// Directories that are blobs, and their files.
    fn look_into_directories(&mut self, root: Digest) -> Result<(), Status> {
        let mut walk = Walk::new(self.store.clone(), root);
        while let Some(step) = walk.step()? {
            match step {
                Step::Missing(digest) => self.found.push(digest),
                Step::Directory(directory, _) => {
                    for file in &directory.files {
                        self.look(file.digest.as_ref())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The directories of a `Tree` are in it; their files are blobs.
    fn look_into_tree(&mut self, digest: &Digest) -> Result<(), Status> {
        let blob = match self.store.read(digest) {
            Ok(blob) => blob,
            Err(StoreError::Missing(_)) => return Ok(()),
            Err(StoreError::Damaged(_)) => {
                self.found.push(*digest);
                return Ok(());
            }
            Err(error) => return Err(status::of_store(&error)),
        };
        let tree = api::Tree::decode(blob)
            .map_err(|error| status::invalid(format!("{digest} is no Tree: {error}")))?;
        for directory in tree.root.iter().chain(&tree.children) {
            for file in &directory.files {
                self.look(file.digest.as_ref())?;
            }
        }
        Ok(())
    }
}

/// Moves contents that a client put into a result to the store, where those of all results are.
///
/// # Errors
/// A digest that is none or that its contents do not have; a store that is full or fails.
pub(crate) fn take_out(
    store: &DiskStore,
    function: DigestFunction,
    result: &mut api::ActionResult,
) -> Result<(), Status> {
    let put = |data: Vec<u8>, named: &mut Option<api::Digest>| -> Result<(), Status> {
        if data.is_empty() {
            return Ok(());
        }
        let digest = match named {
            Some(digest) => digest::parse(function, digest).map_err(status::invalid)?,
            None => function.digest(&data),
        };
        store.insert(&digest, &data, false).map_err(|error| status::of_store(&error))?;
        *named = Some(digest::to_api(&digest));
        Ok(())
    };
    put(std::mem::take(&mut result.stdout_raw), &mut result.stdout_digest)?;
    put(std::mem::take(&mut result.stderr_raw), &mut result.stderr_digest)?;
    for file in &mut result.output_files {
        put(std::mem::take(&mut file.contents), &mut file.digest)?;
    }
    Ok(())
}
