//! A process that lives where a mount is visible and runs compilers there, one after the other.
//!
//! It is this program again, started with [`ARGUMENT`]: a mount namespace can only be entered by a
//! process without threads. A line of JSON on its stdin is a command; a line on its stdout says
//! what that took.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use super::commands::Compile;
use crate::cpu;
use crate::samples::seconds;

/// How this program is told to be such a process; the id of one that sees the mount follows.
pub(crate) const ARGUMENT: &str = "compile-in-namespace-of";

/// The process, ended with this value.
pub(crate) struct Compiler {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
    objects: tempfile::TempDir,
}

/// What one compile took, in seconds; those on processors with all that the compiler starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    pub(crate) wall: f64,
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl Compiler {
    /// Starts it in the namespaces of a process.
    pub(crate) fn start(namespaces_of: u32) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.args([ARGUMENT, &namespaces_of.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers, objects: tempfile::tempdir().unwrap() }
    }

    /// Compiles one file whose sources lie in a directory.
    pub(crate) fn run(&mut self, compile: &Compile, sources: &Path) -> Took {
        let objects = self.objects.path().to_str().unwrap();
        let argv = compile.argv.iter().map(|word| word.replace("{{OUTPUT_DIR}}", objects));
        let line = json!({ "argv": argv.collect::<Vec<_>>(), "directory": sources });
        writeln!(self.child.stdin.as_ref().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let seconds = |field: &str| answer[field].as_f64().unwrap();
        Took { wall: seconds("wall"), user: seconds("user"), system: seconds("system") }
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does, until its stdin ends.
pub(crate) fn serve(namespaces_of: &str) {
    let namespace = |process: &str, kind: &str| {
        std::fs::File::open(format!("/proc/{process}/ns/{kind}")).unwrap()
    };
    let same = |kind: &str| {
        let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}"));
        link(namespaces_of).unwrap() == link("self").unwrap()
    };
    // Both are opened before the first is entered: what is in /proc changes with the second.
    let kinds = [("user", CloneFlags::CLONE_NEWUSER), ("mnt", CloneFlags::CLONE_NEWNS)];
    let others = kinds.into_iter().filter(|(kind, _)| !same(kind));
    let others: Vec<_> =
        others.map(|(kind, flag)| (namespace(namespaces_of, kind), flag)).collect();
    for (file, flag) in others {
        setns(file.as_fd(), flag).unwrap();
    }
    for line in std::io::stdin().lines() {
        let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let argv: Vec<&str> =
            command["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let mut compiler = Command::new(argv[0]);
        compiler.args(&argv[1..]).current_dir(command["directory"].as_str().unwrap());
        let before = cpu::commands();
        let wall = seconds(|| assert!(compiler.status().unwrap().success(), "{argv:?}"));
        let after = cpu::commands();
        let (user, system) = (after.user - before.user, after.system - before.system);
        println!("{}", json!({ "wall": wall, "user": user, "system": system }));
    }
}
