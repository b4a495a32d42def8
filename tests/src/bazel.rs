//! Bazel as a client under test: an invocation, what it says it did, and the outputs it left.
//!
//! A workspace has a Bazel server of its own, whose output base lies in a temporary directory. It is shut down and its
//! outputs are removed with the value; if the tests are killed, it ends after [`IDLE`] without a command.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::project::Project;
use crate::tied;

/// Seconds after which a server ends that nobody asks for anything.
const IDLE: &str = "--max_idle_secs=60";
/// The heap of the server: what it needs for some thousand actions.
const HEAP: &str = "--host_jvm_args=-Xmx1g";

/// A workspace and its Bazel server.
#[derive(Debug)]
pub struct Bazel {
    project: Project,
    startup: Vec<String>,
    /// Install base and output base; removed after the server has ended.
    _root: tempfile::TempDir,
}

/// A command that runs.
#[derive(Debug)]
pub struct Invocation(Option<Child>);

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// All that it printed.
    pub text: String,
}

impl Bazel {
    /// In a workspace, with further startup options.
    ///
    /// # Panics
    /// There is no Bazel on this machine, or no temporary directory.
    pub fn new(project: Project, startup: &[&str]) -> Self {
        assert!(
            Self::is_installed(),
            "bazel is missing: install it (Debian: apt-get install bazel-bootstrap)"
        );
        let root = tempfile::Builder::new().prefix("distbuild-bazel-").tempdir();
        let root = root.expect("a temporary directory can be made");
        let output = format!("--output_user_root={}", root.path().display());
        let own = ["--nohome_rc", IDLE, HEAP, &output];
        let startup = own.iter().chain(startup).map(|&option| option.to_owned()).collect();
        Self { project, startup, _root: root }
    }

    /// Whether there is a Bazel on this machine.
    pub fn is_installed() -> bool {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|directory| directory.join("bazel").is_file())
    }

    /// The workspace.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// Starts a command.
    ///
    /// # Panics
    /// Bazel does not start.
    pub fn start(&self, command: &str, args: &[impl AsRef<OsStr>]) -> Invocation {
        let mut bazel = Command::new("bazel");
        bazel.current_dir(self.project.path()).args(&self.startup).arg(command).args(args);
        bazel.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Invocation(Some(tied::start(&mut bazel)))
    }

    /// Runs a command that has to succeed.
    ///
    /// # Panics
    /// It fails.
    pub fn succeed(&self, command: &str, args: &[impl AsRef<OsStr>]) -> Ended {
        let ended = self.start(command, args).finish();
        assert_eq!(ended.code, 0, "bazel {command}: {}", ended.text);
        ended
    }

    /// Where an output is, by its path below `bazel-bin`.
    pub fn output(&self, path: &str) -> PathBuf {
        self.project.join("bazel-bin").join(path)
    }

    /// Every file and symbolic link that the actions of all configurations made, by its path below `bazel-out`: the
    /// contents, or where the link leads.
    ///
    /// What Bazel makes by itself is left out: trees of links for tests, and reports on the build. So are logs of
    /// tests, which tell times.
    ///
    /// # Panics
    /// They cannot be read.
    pub fn outputs(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let root = self.project.join("bazel-out").canonicalize().expect("there are outputs");
        let mut outputs = BTreeMap::new();
        gather(&root, Path::new(""), &mut outputs);
        outputs
    }
}

impl Drop for Bazel {
    fn drop(&mut self) {
        // Outputs are read-only, directories among them: Bazel removes them itself. It ends with that.
        let _ = self.start("clean", &["--expunge"]).wait();
    }
}

fn gather(root: &Path, below: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    let entries = std::fs::read_dir(root.join(below)).expect("a directory can be read");
    for entry in entries {
        let entry = entry.expect("a directory can be read");
        let (name, path) = (entry.file_name(), below.join(entry.file_name()));
        let kind = entry.file_type().expect("an entry has a type");
        if made_by_bazel(&name.to_string_lossy()) {
        } else if kind.is_dir() {
            gather(root, &path, into);
        } else if kind.is_symlink() {
            let target = std::fs::read_link(entry.path()).expect("a link can be read");
            into.insert(path, target.into_os_string().into_encoded_bytes());
        } else {
            into.insert(path, std::fs::read(entry.path()).expect("a file can be read"));
        }
    }
}

fn made_by_bazel(name: &str) -> bool {
    name.ends_with(".runfiles")
        || name.ends_with(".runfiles_manifest")
        || name.ends_with("-status.txt")
        || ["testlogs", "_tmp", "_middlemen", "build-info.h"].contains(&name)
}

impl Invocation {
    /// Whether it still runs.
    ///
    /// # Panics
    /// The system does not say.
    pub fn runs(&mut self) -> bool {
        let child = self.0.as_mut().expect("it was not waited for");
        child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn finish(self) -> Ended {
        let Output { status, stdout, stderr } = self.wait().expect("a child can be waited for");
        let text = [stdout, stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Ended { code: status.code().unwrap_or(-1), text }
    }

    fn wait(mut self) -> std::io::Result<Output> {
        self.0.take().expect("it was not waited for").wait_with_output()
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ended {
    /// How long the command took, as Bazel tells.
    ///
    /// # Panics
    /// It told nothing.
    pub fn elapsed(&self) -> Duration {
        // INFO: Elapsed time: 27.224s, Critical Path: 1.53s
        let seconds = self.text.lines().rev().find_map(|line| {
            let (seconds, _) = line.strip_prefix("INFO: Elapsed time: ")?.split_once('s')?;
            seconds.parse().ok()
        });
        let seconds = seconds.unwrap_or_else(|| panic!("no elapsed time in {}", self.text));
        Duration::from_secs_f64(seconds)
    }

    /// How many actions ran in which way, by Bazel's own count: `remote`, `remote cache hit`, `local`, `internal`.
    ///
    /// # Panics
    /// It printed no count.
    pub fn processes<'a>(&'a self) -> BTreeMap<&'a str, usize> {
        // INFO: 209 processes: 75 internal, 134 local.
        let line = self.text.lines().rev().find_map(|line| {
            let (count, ways) = line.strip_prefix("INFO: ")?.split_once(" process")?;
            count.parse::<usize>().ok()?;
            ways.split_once(": ").map(|(_, ways)| ways.trim_end_matches('.'))
        });
        let line = line.unwrap_or_else(|| panic!("no count of processes in {}", self.text));
        let way = |text: &'a str| {
            let (count, way) = text.split_once(' ')?;
            Some((way, count.parse().ok()?))
        };
        line.split(", ").map(|text| way(text).expect("each way has its count")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_elapsed_time_is_read() {
        let text = "INFO: Elapsed time: 27.224s, Critical Path: 1.53s\n".to_owned();
        assert_eq!(Ended { code: 0, text }.elapsed(), Duration::from_millis(27_224));
    }

    #[test]
    fn the_count_of_processes_is_read_from_the_last_line_that_has_one() {
        let ended = |text: &str| Ended { code: 0, text: text.to_owned() };
        let build = ended(
            "INFO: Elapsed time: 5.7s\nINFO: 209 processes: 75 internal, 4 remote cache hit, 130 remote.\nINFO: done\n",
        );
        let processes = build.processes();
        assert_eq!(processes, [("internal", 75), ("remote", 130), ("remote cache hit", 4)].into());
        assert_eq!(ended("INFO: 1 process: 1 internal.").processes(), [("internal", 1)].into());
    }
}
