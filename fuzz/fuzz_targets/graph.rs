//! `cargo fuzz run --features libfuzzer graph fuzz/corpus/graph fuzz/seeds/graph`

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| distbuild_fuzz::graph::check(bytes));
