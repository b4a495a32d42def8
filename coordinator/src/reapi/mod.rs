//! The Remote Execution API, version 2, beside the native services on the same port.
//!
//! Messages of the API are turned into domain types here, once, and do not leave this folder. Blobs are those of
//! the coordinator's own store: one that only a client or a worker could lend is missing. What a client may rely on
//! stands in `docs/REAPI.md`.

#![allow(dead_code, reason = "the services that use the vocabulary come next")]

pub mod digest;
pub mod instance;
pub mod resource_name;
pub(crate) mod status;

use crate::core::{Handle, Shared};

/// Largest message that is accepted; clients are told to send batches far below it.
pub(crate) const MAX_API_MESSAGE_BYTES: usize = 16 << 20;

/// The services.
pub(crate) fn routes(_core: &Handle, _shared: &Shared) -> tonic::service::Routes {
    tonic::service::Routes::default()
}
