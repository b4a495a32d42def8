//! A plain client of the Remote Execution API, independent of the code under test, and the load it puts on a farm.
//!
//! It speaks with the published types, names blobs with SHA-256, and does no more than its caller says.

pub mod client;
pub mod load;
pub mod tree;

pub use client::{Client, ClientError};
pub use load::{Load, Report, Run};
pub use tree::InputTree;
