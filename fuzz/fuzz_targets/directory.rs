//! `cargo fuzz run --features libfuzzer directory fuzz/corpus/directory fuzz/seeds/directory`

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| distbuild_fuzz::directory::check(bytes));
