//! `distbuild mount` of what real builds left behind.
//!
//! The mounts lie in a mount namespace that a process holds for as long as its test runs, so that
//! nothing survives a failure. The tests look into it through `/proc/<pid>/root`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};

use distbuild_proto::DigestFunction;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

/// A cache, sources, and a namespace to mount in.
struct Rig {
    directory: tempfile::TempDir,
    namespace: Namespace,
}

/// A mount namespace, held by a process that ends when nobody writes to it any more.
struct Namespace {
    holder: Child,
    input: Option<ChildStdin>,
}

/// A running `distbuild mount`.
struct Mount {
    child: Child,
    stderr: PathBuf,
}

impl Namespace {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        if !geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--propagation", "private", "cat"]);
        let mut holder = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("util-linux is there");
        let mut input = holder.stdin.take().unwrap();
        // The echo comes from behind the call that made the namespace.
        input.write_all(b"?").unwrap();
        holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self { holder, input: Some(input) }
    }

    /// A program that runs in it; the process that is started becomes that program.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        if !geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--"]).arg(program);
        command
    }

    /// A path as it is in there.
    fn path(&self, path: &Path) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        Path::new(&root).join(path.strip_prefix("/").unwrap())
    }

    fn has_mount(&self, path: &Path) -> bool {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.holder.wait();
    }
}

const GRAPH: &str = r#"{ "version": 1, "jobs": [
  { "name": "make a/b", "inputs": ["in.txt"], "cmds": [ { "exec": ["/bin/sh", "-c",
      "mkdir {{OUTPUT_DIR}}/sub; cat {{SOURCE_DIR}}/in.txt > {{OUTPUT_DIR}}/sub/copy; cp /bin/true {{OUTPUT_DIR}}/tool; ln -s sub/copy {{OUTPUT_DIR}}/link; : > {{OUTPUT_DIR}}/nothing"] } ] },
  { "name": "say", "deps": ["make a/b"], "cmds": [ { "exec": ["/bin/sh", "-c",
      "cat {{DEP:make a/b}}/sub/copy; echo oops >&2"] } ] } ] }"#;

impl Rig {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("distbuild-mount-").tempdir().unwrap();
        for folder in ["m", "src", "home"] {
            fs::create_dir(directory.path().join(folder)).unwrap();
        }
        fs::write(directory.path().join("src/graph.json"), GRAPH).unwrap();
        fs::write(directory.path().join("src/in.txt"), "first\n").unwrap();
        Self { directory, namespace: Namespace::new() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn with_home(&self, mut command: Command) -> Command {
        command.env_remove("DISTBUILD_COORDINATOR").env("XDG_CACHE_HOME", self.path("home"));
        command
    }

    /// Builds with sources of these contents.
    fn build(&self, contents: &str, words: &[&str]) {
        fs::write(self.path("src/in.txt"), contents).unwrap();
        let mut command = self.with_home(Command::new(env!("CARGO_BIN_EXE_distbuild")));
        let built =
            command.arg("build").arg(self.path("src/graph.json")).args(words).output().unwrap();
        assert!(built.status.success(), "{}", text(&built.stderr));
    }

    fn mount_command(&self, words: &[&str]) -> Command {
        let command = self.namespace.command(env!("CARGO_BIN_EXE_distbuild"));
        let mut command = self.with_home(command);
        command.arg("mount").arg(self.path("m")).args(words);
        command
    }

    /// Mounts, and returns when it serves.
    fn mount(&self, words: &[&str]) -> Mount {
        let stderr = self.path("stderr");
        let mut command = self.mount_command(words);
        command.stdout(Stdio::piped()).stderr(fs::File::create(&stderr).unwrap());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mount = Mount { child, stderr };
        let expected = format!("mounted {}\n", self.path("m").display());
        assert_eq!(line, expected, "{}", mount.stderr());
        mount
    }

    fn mount_in_vain(&self, words: &[&str]) -> Output {
        self.mount_command(words).output().unwrap()
    }

    /// A path in the mount.
    fn inside(&self, path: &str) -> PathBuf {
        self.namespace.path(&self.path("m")).join(path)
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.inside(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.read(path)).unwrap()
    }

    fn names(&self, path: &str) -> Vec<String> {
        let entries =
            fs::read_dir(self.inside(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The directory of a job of the only build.
    fn job(&self, name: &str) -> String {
        let builds = self.names("builds");
        assert_eq!(builds.len(), 1, "{builds:?}");
        format!("builds/{}/jobs/{name}", builds[0])
    }
}

impl Mount {
    fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    fn end(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn tree_path(digest: &Value) -> String {
    let part = |name: &str| digest[name].as_str().unwrap();
    format!("trees/{}/{}-{}", part("function"), part("hash"), digest["size_bytes"])
}

#[test]
fn a_job_shows_its_outputs_streams_result_and_inputs() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    let _mount = rig.mount(&[]);
    assert_eq!(rig.names(""), ["blobs", "builds", "jobs", "trees"]);
    let (made, said) = (rig.job("make a%2Fb"), rig.job("say"));
    assert_eq!(rig.names(&made), ["inputs", "out", "result.json", "stderr", "stdout"]);
    assert_eq!(rig.names(&format!("{made}/out")), ["link", "nothing", "sub", "tool"]);
    assert_eq!(rig.read(&format!("{made}/out/link")), b"first\n");
    assert_eq!(rig.read(&format!("{made}/out/nothing")), b"");
    assert_eq!(rig.read(&format!("{made}/out/tool")), fs::read("/bin/true").unwrap());
    assert_eq!(rig.read(&format!("{made}/inputs/src/in.txt")), b"first\n");
    assert_eq!(rig.read(&format!("{said}/inputs/dep/0/sub/copy")), b"first\n");
    assert_eq!(rig.read(&format!("{said}/stdout")), b"first\n");
    assert_eq!(rig.read(&format!("{said}/stderr")), b"oops\n");

    let result = rig.json(&format!("{said}/result.json"));
    assert_eq!((&result["name"], &result["exit_code"]), (&"say".into(), &0.into()));
    let target = fs::read_link(rig.inside(&said)).unwrap();
    let id = result["id"].as_str().unwrap();
    assert_eq!(target, Path::new("../../../jobs").join(id));
    assert_eq!(rig.names("jobs").len(), 2);
    assert_eq!(rig.read(&format!("jobs/{id}/stdout")), b"first\n");
    let summary = rig.json(&format!("builds/{}/summary.json", rig.names("builds")[0]));
    assert_eq!((&summary["finished"], &summary["outcome"]), (&true.into(), &"succeeded".into()));
}

#[test]
fn everything_is_owned_by_who_mounts_and_nothing_can_be_written() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    let _mount = rig.mount(&[]);
    let made = rig.job("make a%2Fb");
    let mode = |path: &str| {
        let found = fs::metadata(rig.inside(path)).unwrap();
        assert_eq!(found.uid(), geteuid().as_raw());
        found.permissions().mode() & 0o7777
    };
    assert_eq!(mode(&format!("{made}/out/sub/copy")), 0o444);
    assert_eq!(mode(&format!("{made}/out/tool")), 0o555);
    assert_eq!(mode("jobs"), 0o555);
    let error = fs::write(rig.inside("jobs/new"), "x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn every_listed_blob_has_the_hash_and_the_size_that_it_says() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    let _mount = rig.mount(&[]);
    let hashes = rig.names("blobs/blake3");
    assert!(hashes.contains(&DigestFunction::Blake3.digest(b"first\n").hex()));
    for hash in hashes {
        let path = format!("blobs/blake3/{hash}");
        let contents = rig.read(&path);
        assert_eq!(DigestFunction::Blake3.digest(&contents).hex(), hash);
        let size = fs::metadata(rig.inside(&path)).unwrap().len();
        assert_eq!(size, contents.len() as u64);
    }
    let other = DigestFunction::Blake3.digest(b"never made").hex();
    let error = fs::read(rig.inside(&format!("blobs/blake3/{other}"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(rig.names("blobs/sha1"), [""; 0]);
}

#[test]
fn any_directory_is_found_by_its_digest() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    let _mount = rig.mount(&[]);
    let made = rig.job("make a%2Fb");
    let result = rig.json(&format!("{made}/result.json"));
    let outputs = tree_path(&result["output_root"]);
    assert_eq!(rig.names(&outputs), ["link", "nothing", "sub", "tool"]);
    assert_eq!(rig.read(&format!("{outputs}/sub/copy")), b"first\n");
    assert_eq!(rig.names(&tree_path(&result["input_root"])), ["dep", "src"]);
}

#[test]
fn new_results_appear_while_it_is_mounted() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    let mount = rig.mount(&[]);
    let before = rig.names("jobs");
    let path = format!("jobs/{}/stdout", before[0]);
    rig.read(&path);
    rig.build("second\n", &[]);
    let after = rig.names("jobs");
    assert_eq!((before.len(), after.len(), rig.names("builds").len()), (2, 4, 2));
    let new: Vec<_> = after.iter().filter(|id| !before.contains(id)).collect();
    let printed: Vec<_> = new.iter().map(|id| rig.read(&format!("jobs/{id}/stdout"))).collect();
    assert!(printed.contains(&b"second\n".to_vec()));
    assert_eq!(mount.stderr(), "");
}

#[test]
fn contents_that_are_gone_are_an_error_with_a_line_that_names_the_digest() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    let digest = DigestFunction::Blake3.digest(b"first\n");
    let store = rig.path("home/distbuild/worker/store");
    let (fan, rest) = (digest.hex()[..2].to_owned(), digest.hex()[2..].to_owned());
    let file = store.join("blake3").join(fan).join(format!("{rest}-{}", digest.size_bytes()));
    fs::remove_file(&file).unwrap();
    let mount = rig.mount(&[]);
    let copy = rig.inside(&format!("{}/out/sub/copy", rig.job("make a%2Fb")));
    let error = fs::read(copy).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EIO as i32));
    let stderr = mount.stderr();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(&digest.to_string()), "{stderr}");
}

#[test]
fn a_signal_unmounts_and_is_a_success() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mount = rig.mount(&[]);
        assert!(rig.namespace.has_mount(&rig.path("m")));
        assert_eq!(mount.end(signal).code(), Some(0));
        assert!(!rig.namespace.has_mount(&rig.path("m")));
        assert_eq!(rig.names(""), [""; 0]);
    }
}

#[test]
fn a_killed_process_leaves_a_mount_that_the_next_one_takes_away() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    rig.mount(&[]).end(Signal::SIGKILL);
    assert!(rig.namespace.has_mount(&rig.path("m")));
    let error = fs::read_dir(rig.inside("jobs")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ENOTCONN as i32));
    let mount = rig.mount(&[]);
    assert_eq!(rig.names("jobs").len(), 2);
    assert_eq!(mount.end(Signal::SIGINT).code(), Some(0));
    assert!(!rig.namespace.has_mount(&rig.path("m")));
}

#[test]
fn a_mount_that_somebody_else_takes_away_ends_the_process() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    let mut mount = rig.mount(&[]);
    let unmounted = rig.namespace.command("umount").arg(rig.path("m")).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(mount.child.wait().unwrap().code(), Some(0));
}

#[test]
fn only_an_empty_directory_is_mounted_at_and_a_mount_in_use_stays() {
    let rig = Rig::new();
    rig.build("first\n", &[]);
    let mount = rig.mount(&[]);
    let second = rig.mount_in_vain(&[]);
    assert_eq!(second.status.code(), Some(2));
    assert!(text(&second.stderr).contains("not an empty directory"), "{}", text(&second.stderr));
    assert_eq!(rig.names("jobs").len(), 2);
    mount.end(Signal::SIGINT);
    fs::remove_dir(rig.path("m")).unwrap();
    assert_eq!(rig.mount_in_vain(&[]).status.code(), Some(2));
    fs::write(rig.path("m"), "a file").unwrap();
    assert_eq!(rig.mount_in_vain(&[]).status.code(), Some(2));
}

#[test]
fn a_cache_in_which_nothing_was_built_is_refused() {
    let rig = Rig::new();
    let refused = rig.mount_in_vain(&[]);
    assert_eq!(refused.status.code(), Some(2));
    let home = rig.path("home/distbuild").display().to_string();
    assert!(text(&refused.stderr).contains(&home), "{}", text(&refused.stderr));
    assert!(!rig.namespace.has_mount(&rig.path("m")));
}

/// A daemon that is killed with its test.
struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening "), "{line}");
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT);
        let _ = self.0.wait();
    }
}

#[test]
fn the_results_of_a_coordinator_are_shown_and_its_loss_is_an_error_that_is_told() {
    let rig = Rig::new();
    let address = format!("unix:{}", rig.path("socket").display());
    let daemon = |words: &[&str]| {
        let mut command = rig.with_home(Command::new(env!("CARGO_BIN_EXE_distbuild")));
        command.args(words).arg("--insecure");
        Daemon::start(command)
    };
    let state = rig.path("coordinator").display().to_string();
    let coordinator =
        daemon(&["coordinator", "--listen", &address, "--http", "off", "--state", &state]);
    let state = rig.path("worker").display().to_string();
    let _worker = daemon(&["worker", "--coordinator", &address, "--name", "w", "--state", &state]);
    let there = ["--insecure", "--coordinator", &address];
    let mount = rig.mount(&there);
    assert_eq!(rig.names("jobs"), [""; 0]);
    rig.build("first\n", &there);
    assert_eq!(rig.names("jobs").len(), 2);
    let said = rig.job("say");
    assert_eq!(rig.read(&format!("{said}/stdout")), b"first\n");
    assert_eq!(rig.json(&format!("{said}/result.json"))["worker"], "w");
    // The build has ended: who held its outputs is in the coordinator's records alone.
    let made = rig.job("make a%2Fb");
    assert_eq!(rig.read(&format!("{made}/out/sub/copy")), b"first\n");
    assert_eq!(rig.read(&format!("{made}/out/tool")), fs::read("/bin/true").unwrap());
    assert_eq!(mount.stderr(), "");
    drop(coordinator);
    let error = fs::read_dir(rig.inside("jobs")).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    assert_eq!(error.unwrap_err().raw_os_error(), Some(Errno::EIO as i32));
    assert!(mount.stderr().contains("the coordinator"), "{}", mount.stderr());
    assert_eq!(mount.end(Signal::SIGINT).code(), Some(0));
}
