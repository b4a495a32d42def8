//! The program under test: the `distbuild` binary of this build.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names a binary that is taken as it is, for a build that is already installed, or to measure one
/// while its sources change.
const GIVEN: &str = "DISTBUILD_TEST_BINARY";

/// Path of the binary, built first if need be, in the profile of the test itself; or the one that
/// the environment variable `DISTBUILD_TEST_BINARY` names.
///
/// # Panics
/// It cannot be built.
pub fn distbuild() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(given) = std::env::var_os(GIVEN) {
            return given.into();
        }
        let directory = profile_directory();
        let release = directory.file_name().is_some_and(|name| name == "release");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "distbuild",
            "--bin",
            "distbuild",
        ]);
        if release {
            cargo.arg("--release");
        }
        cargo.arg("--target-dir").arg(target_directory());
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let status = cargo.status().expect("cargo runs");
        assert!(status.success(), "cargo build of the program under test failed");
        directory.join("distbuild")
    })
}

/// The target directory of cargo that this test was built in.
///
/// # Panics
/// The test was moved out of it.
pub fn target_directory() -> PathBuf {
    profile_directory().parent().expect("a profile has a parent").to_owned()
}

fn profile_directory() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let directory = test
        .ancestors()
        .find(|path| path.join("deps").is_dir() && path.join(".fingerprint").is_dir())
        .expect("a test lies in cargo's target directory");
    directory.to_owned()
}
