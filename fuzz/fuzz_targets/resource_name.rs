//! `cargo fuzz run --features libfuzzer resource_name fuzz/corpus/resource_name fuzz/seeds/resource_name`

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| distbuild_fuzz::resource_name::check(bytes));
