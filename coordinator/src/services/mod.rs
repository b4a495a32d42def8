//! The gRPC services: wire types end here.

pub(crate) mod blobs;
pub(crate) mod builds;
mod locating;
mod resuming;
pub(crate) mod submission;
pub(crate) mod workers;

use tonic::Status;

use crate::core::Stopped;

impl From<Stopped> for Status {
    fn from(stopped: Stopped) -> Self {
        Self::unavailable(stopped.to_string())
    }
}
