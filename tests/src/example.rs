//! The examples of the repository, laid out as projects.

use std::process::Command;

use crate::project::Project;

/// Lua, as `examples/lua` lays it out: 35 jobs.
pub fn lua() -> Project {
    lay_out("lua")
}

/// Zstd, as `examples/zstd` lays it out: 35 jobs.
pub fn zstd() -> Project {
    lay_out("zstd")
}

/// The C++ project for Bazel, as `examples/bazel` lays it out: 43 targets.
pub fn bazel() -> Project {
    lay_out("bazel")
}

/// Snappy, as `examples/snappy` lays it out: 9 jobs.
pub fn snappy() -> Project {
    lay_out("snappy")
}

fn lay_out(name: &str) -> Project {
    let project = Project::new();
    let script = format!("{}/../examples/{name}/generate.sh", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(&script).arg(project.path()).output().expect("the script starts");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    project
}
