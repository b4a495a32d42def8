//! The same commands as a graph's without us: a `Makefile` and a `build.ninja` beside the graph.
//!
//! Each job becomes a target that makes its output directory, runs its commands in the source directory and
//! then touches a file that says that it is done.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use distbuild_tests::Project;
use serde_json::Value;

use crate::samples::seconds;

/// A program that builds by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plain {
    Make,
    Ninja,
}

impl Plain {
    /// Its name, as it is called.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Make => "make",
            Self::Ninja => "ninja",
        }
    }

    /// Seconds of a build from nothing with so many jobs at once. `compiler` stands in place of `cc`.
    pub(crate) fn build(self, project: &Project, jobs: usize, compiler: &Compiler) -> f64 {
        let out = tempfile::tempdir().unwrap();
        let mut command = Command::new(self.program());
        command.envs(compiler.environment.iter().map(|(name, value)| (name, value)));
        match self {
            Self::Make => {
                command.args(["--silent", &format!("-j{jobs}"), "--directory"]).arg(project.path());
                command.arg(format!("RESULTS={}", out.path().display()));
                command.arg(format!("CC={}", compiler.command));
            }
            Self::Ninja => {
                // It has no variables on its command line.
                let directory = project.path().display();
                let rules = format!(
                    "builddir = {out}\nresults = {out}\ncc = {}\nsubninja {directory}/build.ninja\n",
                    compiler.command,
                    out = out.path().display(),
                );
                let file = out.path().join("build.ninja");
                std::fs::write(&file, rules).unwrap();
                command.args([&format!("-j{jobs}"), "-C"]).arg(project.path()).arg("-f").arg(file);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        seconds(|| assert!(command.status().unwrap().success(), "{command:?}"))
    }
}

/// Whether a program is installed.
pub(crate) fn is_here(program: &str) -> bool {
    let mut command = Command::new(program);
    let command = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What compiles.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    pub(crate) command: String,
    pub(crate) environment: Vec<(String, String)>,
}

impl Compiler {
    /// The compiler itself.
    pub(crate) fn plain() -> Self {
        Self { command: "cc".into(), environment: Vec::new() }
    }
}

/// Writes both files for the graph of a project.
pub(crate) fn write(project: &Project) {
    let graph: Value = serde_json::from_slice(&std::fs::read(project.graph()).unwrap()).unwrap();
    let jobs = graph["jobs"].as_array().unwrap();
    let targets: Vec<String> = jobs.iter().map(|job| target(&job["name"])).collect();
    let mut makefile = format!("CC = cc\nall: {}\n", in_make(&targets.join(" ")));
    let mut ninja = "rule run\n  command = mkdir -p $out.d && $line && touch $out\n".to_owned();
    for (job, target) in jobs.iter().zip(&targets) {
        let deps = job["deps"].as_array().map_or(&[][..], Vec::as_slice);
        let words = job["cmds"][0]["exec"].as_array().unwrap().iter();
        let mut line: Vec<String> = words.map(|word| word.as_str().unwrap().to_owned()).collect();
        for word in &mut line {
            *word = word.replace("{{OUTPUT_DIR}}", &format!("{target}.d"));
            for dep in deps {
                let variable = format!("{{{{DEP:{}}}}}", dep.as_str().unwrap());
                *word = word.replace(&variable, &format!("{}.d", self::target(dep)));
            }
        }
        if line[0] == "cc" {
            "${cc}".clone_into(&mut line[0]);
        }
        let deps: Vec<String> = deps.iter().map(self::target).collect();
        let (deps, line) = (deps.join(" "), line.join(" "));
        writeln!(ninja, "build {target}: run {deps}\n  line = {line}").unwrap();
        let make = format!("{target}: {deps}\n\t@mkdir -p {target}.d && {line} && touch {target}",);
        writeln!(makefile, "{}", in_make(&make)).unwrap();
    }
    project.file(Path::new("Makefile"), makefile);
    project.file(Path::new("build.ninja"), ninja);
}

/// The file that says that a job is done; its outputs lie beside it.
fn target(name: &Value) -> String {
    format!("${{results}}/{}", name.as_str().unwrap().replace(' ', "-"))
}

fn in_make(text: &str) -> String {
    text.replace("${results}", "$(RESULTS)").replace("${cc}", "$(CC)")
}
