//! What must hold for any bytes that strangers send: one function for each kind, which panics where it does not.
//!
//! `cargo fuzz` gives them inputs that reach new code (`fuzz_targets/`), and the tests of this crate inputs made from
//! examples (`seeds/`) by changes at random, a bounded number of them, on any toolchain.

pub mod directory;
pub mod graph;
pub mod resource_name;

#[cfg(test)]
mod mutation;
