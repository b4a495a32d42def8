//! The worker: agent, sandbox, peers; runs actions and collects their outputs.

pub mod sandbox;
