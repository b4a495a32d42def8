//! The Remote Execution API, version 2, beside the native services on the same port.
//!
//! Messages of the API are turned into domain types here, once, and do not leave this folder. Blobs are those of
//! the coordinator's own store: one that only a client or a worker could lend is missing. What a client may rely on
//! stands in `docs/REAPI.md`.

#![allow(dead_code, reason = "the services that use the vocabulary come next")]

mod client;
mod command;
pub mod digest;
mod execution;
mod execution_service;
mod executor;
pub mod instance;
mod logs;
mod messages;
mod metadata;
mod operations;
mod replication;
pub mod resource_name;
mod result;
pub(crate) mod status;

pub(crate) use executor::Executor;

use crate::core::{Handle, Shared};

/// Largest message that is accepted; clients are told to send batches far below it.
pub(crate) const MAX_API_MESSAGE_BYTES: usize = 16 << 20;

/// The services.
pub(crate) fn routes(core: &Handle, shared: &Shared) -> tonic::service::Routes {
    let mut routes = tonic::service::RoutesBuilder::default();
    Executor::new(core, shared).add_to(&mut routes);
    routes.routes()
}
