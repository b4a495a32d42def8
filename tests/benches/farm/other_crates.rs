//! The benchmarks of the other crates, each a process of its own that prints rows among its lines.
//!
//! Cargo builds them all at once before anything is measured. One that takes longer than its limit is
//! ended, with every process that it started.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use distbuild_tests::binary;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::section::Section;
use crate::summary::Row;

/// A benchmark of another crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OtherCrate {
    pub(crate) package: &'static str,
    pub(crate) bench: &'static str,
    /// What it measures of all that it could.
    pub(crate) arguments: &'static [&'static str],
}

/// Where the built benchmarks are.
#[derive(Debug, Default)]
pub(crate) struct Built(BTreeMap<OtherCrate, PathBuf>);

impl Built {
    /// Builds these benchmarks, in the profile for benchmarks.
    pub(crate) fn build(benches: &[OtherCrate]) -> Self {
        if benches.is_empty() {
            return Self::default();
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["bench", "--no-run", "--quiet", "--locked", "--message-format=json"]);
        for OtherCrate { package, bench, .. } in benches {
            cargo.args(["--package", package, "--bench", bench]);
        }
        cargo.arg("--target-dir").arg(binary::target_directory());
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let output = cargo.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "cargo does not build the benchmarks of other crates");
        let stdout = String::from_utf8(output.stdout).unwrap();
        let messages: Vec<Value> =
            stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let executable = |wanted: &OtherCrate| -> PathBuf {
            let found = messages.iter().find(|message| {
                message["target"]["name"] == wanted.bench && message["executable"].is_string()
            });
            let found = found.unwrap_or_else(|| panic!("cargo does not say where {wanted:?} is"));
            found["executable"].as_str().unwrap().into()
        };
        Self(benches.iter().map(|bench| (*bench, executable(bench))).collect())
    }

    /// Runs one within its limit and takes over its rows.
    pub(crate) fn run(&self, bench: OtherCrate, limit: Duration, section: &mut Section) {
        let mut command = Command::new(&self.0[&bench]);
        command
            .arg("--bench")
            .args(bench.arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = Group(command.spawn().unwrap());
        let stdout = BufReader::new(child.0.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        let (deadline, mut rows) = (Instant::now() + limit, 0);
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match Row::parse(&line) {
                    Some(row) => {
                        section.add(row);
                        rows += 1;
                    }
                    None => println!("{line}"),
                },
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("{bench:?} took more than {limit:?}"),
            }
        }
        let status = child.0.wait().unwrap();
        assert!(status.success(), "{bench:?} ended with {status}");
        assert!(rows > 0, "{bench:?} printed no row");
    }
}

/// A process with those it started, ended with this value.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}
