//! Input roots that jobs may change: what they see, and what is left of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command as Program;

use distbuild_cas::{CollectOptions, DiskStore, Layers, StoreConfig};
use distbuild_cas::{tree_from_directory, tree_from_overlay};
use distbuild_proto::{Child, Digest, DigestFunction, Directory, DirectoryNode, RelPath};
use distbuild_worker::sandbox::protocol::{CHANGES_DIR, WORK_DIR};
use distbuild_worker::sandbox::{Command, InputRoot, JobEnd, RootAt};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::Test;
use crate::daemon::{As, Daemon, JOB, Job, NOBODY, cat, environ};

pub(crate) const TESTS: &[Test] = &[
    ("what_is_read_off_the_layers_is_what_the_job_saw", layers_are_what_the_job_saw),
    ("inputs_stay_as_they_are_whatever_a_job_does", inputs_stay),
    ("the_marks_of_the_layers_cannot_be_forged", marks_cannot_be_forged),
    ("directories_of_a_root_are_replaced_and_moved", directories_are_moved),
    ("a_text_is_written_into_an_input_root", cat_into_a_root),
    ("an_input_root_can_be_the_root_of_the_job", a_root_of_its_own),
    ("a_root_without_room_for_dev_is_refused", no_room_for_dev),
    ("any_path_can_hold_the_changes", any_path),
    ("a_host_whose_disk_takes_no_overlay_is_told", no_overlay_here),
    ("layers_of_a_job_that_is_killed_are_readable", killed),
];

/// A daemon whose jobs have input roots, and a job's places.
struct Roots {
    daemon: Daemon,
    store: DiskStore,
}

/// A job with a root; the tree is to be filled before it starts.
struct RootJob<'a> {
    job: Job<'a>,
    tree: PathBuf,
    changes: PathBuf,
    kind: As,
}

impl Roots {
    fn start(kind: As) -> Self {
        let daemon = Daemon::start_with(kind, |config, state| {
            config.changes = Some(state.join("actions"));
        });
        assert_eq!(daemon.spawner.as_ref().unwrap().no_input_roots(), None);
        let store = DiskStore::open(StoreConfig::new(daemon.state.path().join("store"))).unwrap();
        Self { daemon, store }
    }

    fn job(&self, script: &str, at: RootAt) -> RootJob<'_> {
        let mut job = self.daemon.job(vec![Command::Exec {
            argv: ["/bin/sh", "-c", script].map(|word| word.into()).into(),
            environ: environ(),
            working_directory: at.path().into(),
        }]);
        let (tree, changes) = (job.dir("tree"), job.dir("changes"));
        for path in [tree.clone(), changes.join(CHANGES_DIR), changes.join(WORK_DIR)] {
            fs::create_dir_all(path).unwrap();
        }
        if at == RootAt::Slash {
            job.spec.mounts.clear();
        }
        job.spec.input_root = Some(InputRoot {
            inputs: tree.clone(),
            changes: changes.clone(),
            at,
            directories: Vec::new(),
        });
        RootJob { job, tree, changes, kind: self.daemon.kind }
    }

    fn digest(&self, directory: &Path) -> Digest {
        tree_from_directory(&self.store, directory, &options()).unwrap().root
    }

    /// The digest of a tree, which stays as it is.
    fn digest_of_copy(&self, tree: &Path) -> Digest {
        let copy = tempfile::tempdir_in(self.daemon.state.path()).unwrap();
        copy_all(tree, copy.path());
        self.digest(copy.path())
    }

    fn directory(&self, digest: &Digest) -> Directory {
        Directory::decode(DigestFunction::Blake3, &self.store.read(digest).unwrap()).unwrap()
    }

    fn outputs(&self, job: &RootJob<'_>, below: Digest, paths: &[RelPath]) -> Digest {
        let read = |digest: &Digest| Ok(self.directory(digest));
        let above = &job.changes.join(CHANGES_DIR);
        let layers = Layers { above, below, directory: &read };
        tree_from_overlay(&self.store, &layers, paths, &options()).unwrap().root
    }

    /// Of a whole tree what stands at these paths: the plain model.
    fn extract(&self, tree: &Directory, paths: &[Vec<&[u8]>]) -> Directory {
        if paths.iter().any(Vec::is_empty) {
            return tree.clone();
        }
        let (mut files, mut directories, mut symlinks) = (vec![], vec![], vec![]);
        for child in tree.children() {
            let below = paths.iter().filter(|path| path[0] == child.name().as_bytes());
            let below: Vec<Vec<&[u8]>> = below.map(|path| path[1..].to_vec()).collect();
            let whole = below.iter().any(Vec::is_empty);
            match child {
                Child::File(node) if whole => files.push(node.clone()),
                Child::Symlink(node) if whole => symlinks.push(node.clone()),
                Child::Directory(node) if whole => directories.push(node.clone()),
                Child::Directory(node) => {
                    let inner = self.extract(&self.directory(&node.digest), &below);
                    if !inner.is_empty() {
                        let digest = DigestFunction::Blake3.digest(&inner.encode());
                        directories.push(DirectoryNode { name: node.name.clone(), digest });
                    }
                }
                _ => {}
            }
        }
        Directory::new(files, directories, symlinks).unwrap()
    }
}

impl RootJob<'_> {
    /// Gives the tree and the places of the changes to whoever owns them in earnest: as the file system shows
    /// inputs, and as the worker makes directories.
    fn hand_over(&self) {
        let id = match self.kind {
            As::Root => (JOB.uid, JOB.gid),
            As::OrdinaryUser => (NOBODY, NOBODY),
        };
        let mut left = vec![self.tree.clone()];
        if self.kind == As::OrdinaryUser {
            left.push(self.changes.clone());
        }
        while let Some(path) = left.pop() {
            lchown(&path, Some(id.0), Some(id.1)).unwrap();
            if path.is_dir() && !path.is_symlink() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
    }

    fn run(&self) -> crate::daemon::Outcome {
        self.hand_over();
        self.job.run()
    }
}

fn options() -> CollectOptions {
    CollectOptions::new(DigestFunction::Blake3)
}

fn copy_all(from: &Path, to: &Path) {
    let copied = Program::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success());
}

fn rel(path: &str) -> RelPath {
    RelPath::new(path.as_bytes()).unwrap()
}

/// What a tree has at a path.
#[derive(Clone, Debug)]
enum Made {
    File(u8, bool),
    Directory,
    Link(String),
}

fn path() -> impl Strategy<Value = String> {
    vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        4 => (any::<u8>(), any::<bool>()).prop_map(|(text, run)| Made::File(text, run)),
        3 => Just(Made::Directory),
        1 => path().prop_map(Made::Link),
    ]
}

/// A line for the shell that may fail.
fn operation() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(at, text)| format!("echo {text} >{at}")),
        2 => (path(), any::<u8>()).prop_map(|(at, text)| format!("echo {text} >>{at}")),
        4 => path().prop_map(|at| format!("rm -rf {at}")),
        4 => path().prop_map(|at| format!("mkdir -p {at}")),
        2 => path().prop_map(|at| format!("rm -rf {at} && mkdir {at}")),
        1 => path().prop_map(|at| format!("rmdir {at}")),
        4 => (path(), path()).prop_map(|(from, to)| format!("mv -fT {from} {to}")),
        2 => (path(), path()).prop_map(|(from, to)| format!("cp -a {from} {to}")),
        2 => (path(), path()).prop_map(|(from, to)| format!("ln -fT {from} {to}")),
        2 => (path(), path()).prop_map(|(to, at)| format!("ln -sfT {to} {at}")),
        2 => path().prop_map(|at| format!("chmod 0644 {at}")),
        2 => path().prop_map(|at| format!("chmod 0755 {at}")),
        1 => path().prop_map(|at| format!("touch {at}")),
        1 => path().prop_map(|at| format!("setfattr -n user.overlay.opaque -v y {at}")),
    ]
}

fn layers_are_what_the_job_saw(kind: As) {
    let roots = Roots::start(kind);
    let strategy = (
        vec((path(), made()), 0..16),
        vec(operation(), 0..16),
        prop_oneof![Just(vec![String::new()]), vec(path(), 0..5)],
    );
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let ran = runner.run(&strategy, |(entries, operations, outputs)| {
        // A directory that may not be entered would keep the model from being written.
        let lines = operations.iter().map(|line| format!("{{ {line}; }} 2>/dev/null"));
        let script = lines.collect::<Vec<_>>().join("\n");
        let script = format!(
            "{script}\nfind . -type d ! -perm -0700 -exec chmod 0755 {{}} + \n\
             cp -a . /distbuild/out/ && find . -printf '%i %p\\n' | sort -k2 >/tmp/1 && \
             find . -printf '%i %p\\n' | sort -k2 | cmp - /tmp/1"
        );
        let job = roots.job(&script, RootAt::Fixed);
        for (at, made) in &entries {
            let at = job.tree.join(at);
            // What does not fit what is there already is left out.
            let _ = fs::create_dir_all(at.parent().unwrap());
            let _ = match made {
                Made::Directory => fs::create_dir(&at),
                Made::Link(target) => symlink(target, &at),
                Made::File(text, run) if !at.exists() && !at.is_symlink() => {
                    fs::write(&at, [*text]).and_then(|()| {
                        let mode = if *run { 0o755 } else { 0o644 };
                        fs::set_permissions(&at, Permissions::from_mode(mode))
                    })
                }
                Made::File(..) => Ok(()),
            };
        }
        let below = roots.digest_of_copy(&job.tree);
        job.run().succeeded();
        prop_assert_eq!(roots.digest_of_copy(&job.tree), below, "inputs have changed");
        let seen = roots.digest(&job.job.dir("out"));
        let paths: Vec<_> = outputs.iter().map(|path| rel(path)).collect();
        let components: Vec<_> = paths.iter().map(|path| path.components().collect()).collect();
        let expected = roots.extract(&roots.directory(&seen), &components).encode();
        let found = roots.outputs(&job, below, &paths);
        prop_assert_eq!(found, DigestFunction::Blake3.digest(&expected));
        Ok(())
    });
    ran.unwrap();
}

fn inputs_stay(kind: As) {
    let roots = Roots::start(kind);
    let script = r#"python3 - <<'E'
import mmap, os
f = open("mapped", "r+b"); m = mmap.mmap(f.fileno(), 0); m[0:4] = b"EVIL"; m.flush(); m.close()
assert open("mapped", "rb").read() == b"EVILent of mapped"
os.close(os.open("truncated", os.O_WRONLY | os.O_TRUNC))
open("tmp", "w").write("EVIL"); os.rename("tmp", "renamed over")
os.unlink("made again"); open("made again", "w").write("EVIL")
os.chmod("mode", 0o4755)
os.link("linked", "d/link"); open("d/link", "a").write("EVIL")
assert open("linked").read() == "content of linkedEVIL"
os.setxattr("attributes", "user.evil", b"y")
os.utime("times", (1, 1)); os.truncate("shorter", 1)
fd = os.open("shared", os.O_RDWR); os.pwrite(fd, b"EVIL", 2); os.close(fd)
os.symlink("/etc/passwd", "d/up"); os.rmdir("empty")
numbers = [os.stat(name).st_ino for name in sorted(os.listdir("."))]
assert len(set(numbers)) == len(numbers), numbers
E"#;
    let job = roots.job(script, RootAt::Fixed);
    for name in [
        "mapped",
        "truncated",
        "renamed over",
        "made again",
        "mode",
        "linked",
        "attributes",
        "times",
        "shorter",
        "shared",
        "d/same",
    ] {
        let path = job.tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("content of {name}")).unwrap();
    }
    fs::create_dir(job.tree.join("empty")).unwrap();
    let below = roots.digest_of_copy(&job.tree);
    let outcome = job.run();
    assert_eq!((outcome.out(), outcome.err()), (String::new(), String::new()));
    outcome.succeeded();
    assert_eq!(roots.digest_of_copy(&job.tree), below);
    assert_eq!(fs::metadata(job.tree.join("mode")).unwrap().mode() & 0o7777, 0o644);
    assert_ne!(fs::metadata(job.tree.join("times")).unwrap().mtime(), 1);
    let found = roots.directory(&roots.outputs(&job, below, &[RelPath::root()]));
    let content = |name: &str| match found.get(name.as_bytes()) {
        Some(Child::File(file)) => {
            String::from_utf8(roots.store.read(&file.digest).unwrap().to_vec()).unwrap()
        }
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(content("mapped"), "EVILent of mapped");
    assert_eq!(content("truncated"), "");
    assert_eq!(content("renamed over"), "EVIL");
    assert_eq!(content("linked"), "content of linkedEVIL");
    assert_eq!(content("shared"), "coEVILt of shared");
    assert!(found.get(b"empty").is_none() && found.get(b"tmp").is_none());
    let Some(Child::Directory(inner)) = found.get(b"d") else { panic!("{found:?}") };
    let names: Vec<_> = roots.directory(&inner.digest).names().map(ToString::to_string).collect();
    assert_eq!(names, ["link", "same", "up"]);
}

fn marks_cannot_be_forged(kind: As) {
    let roots = Roots::start(kind);
    let script = r#"python3 - <<'E'
import os, stat
made = 0
for path in ["w", "d/w"]:
    for kind, device in [(stat.S_IFCHR, 0), (stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, 0)]:
        try: os.mknod(path, kind | 0o666, device); made += 1
        except PermissionError: pass
assert made == 0
os.mkdir("q"); open("q/f", "w").write("f"); open("z", "w").close()
for path in [".", "d", "d/f", "q", "q/f", "z"]:
    for kind in ["user", "trusted", "user.overlay", "security"]:
        for name in ["opaque", "whiteout", "redirect", "metacopy", "origin", "impure"]:
            try: os.setxattr(path, kind + ".overlay." + name, b"y")
            except OSError: pass
            try: os.removexattr(path, kind + ".overlay." + name)
            except OSError: pass
            try: os.setxattr(path, kind + ".overlay." + name, b"y")
            except OSError: pass
open("d/new", "w").write("new")
E"#;
    let job = roots.job(script, RootAt::Fixed);
    fs::create_dir(job.tree.join("d")).unwrap();
    fs::write(job.tree.join("d/f"), "f").unwrap();
    fs::write(job.tree.join("d/g"), "g").unwrap();
    let below = roots.digest_of_copy(&job.tree);
    job.run().succeeded();
    let found = roots.directory(&roots.outputs(&job, below, &[RelPath::root()]));
    let names = |directory: &Directory| -> Vec<String> {
        directory.names().map(ToString::to_string).collect()
    };
    assert_eq!(names(&found), ["d", "q", "z"]);
    let Some(Child::Directory(inner)) = found.get(b"d") else { panic!("{found:?}") };
    assert_eq!(names(&roots.directory(&inner.digest)), ["f", "g", "new"]);
}

fn directories_are_moved(kind: As) {
    let roots = Roots::start(kind);
    let script = "set -e; mv d e; mkdir d; echo new >d/new; rm -r gone; echo now a file >gone; \
                  rm file; mkdir file; echo in >file/in; mkdir own; echo x >own/x; mv own owned; cat e/deep/f; \
                  python3 -c 'import os\ntry: os.rename(\"kept\", \"k\")\nexcept OSError as e: print(e.errno)'";
    let job = roots.job(script, RootAt::Fixed);
    for (path, text) in [("d/deep/f", "f\n"), ("gone/f", ""), ("file", ""), ("kept/f", "")] {
        let path = job.tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let below = roots.digest_of_copy(&job.tree);
    assert_eq!(job.run().succeeded(), format!("f\n{}\n", libc_exdev()));
    let found = roots.directory(&roots.outputs(
        &job,
        below,
        &[rel("d"), rel("e/deep"), rel("gone"), rel("file")],
    ));
    let expected = roots.daemon.state.path().join("expected");
    for (path, text) in
        [("d/new", "new\n"), ("e/deep/f", "f\n"), ("gone", "now a file\n"), ("file/in", "in\n")]
    {
        let path = expected.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    assert_eq!(found, roots.directory(&roots.digest(&expected)));
}

fn libc_exdev() -> i32 {
    nix::errno::Errno::EXDEV as i32
}

fn cat_into_a_root(kind: As) {
    let roots = Roots::start(kind);
    let mut job = roots.job("", RootAt::Fixed);
    fs::create_dir(job.tree.join("d")).unwrap();
    job.job.spec.commands = vec![cat("text", "/distbuild/root/d/f")];
    job.run().succeeded();
    assert_eq!(fs::read(job.changes.join(CHANGES_DIR).join("d/f")).unwrap(), b"text");
    let mut job = roots.job("", RootAt::Fixed);
    job.job.spec.commands = vec![cat("text", "/distbuild/out/f")];
    let outcome = job.run();
    assert!(matches!(outcome.ended.end, JobEnd::Unrunnable { code: 1, .. }), "{outcome:?}");
}

/// Copies a program of this host with what it is linked with.
fn copy_program(program: &str, root: &Path) {
    let listed = Program::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.chain([program]) {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
}

fn a_root_of_its_own(kind: As) {
    let roots = Roots::start(kind);
    let script = "set -e; pwd; ls -A / /tmp; ls -A /dev | grep -v ^fd; echo x >/dev/null; echo t >/tmp/t; \
                  test $$ -lt 10; test -d /proc/self; head -c 1 /dev/zero | wc -c; \
                  echo out >/out/made; rm /in; ls /usr /home /etc 2>/dev/null || true";
    let mut job = roots.job(script, RootAt::Slash);
    for program in
        ["/bin/sh", "/bin/ls", "/usr/bin/grep", "/usr/bin/head", "/usr/bin/wc", "/bin/rm"]
    {
        copy_program(program, &job.tree);
    }
    fs::write(job.tree.join("in"), "in").unwrap();
    job.job.spec.input_root.as_mut().unwrap().directories = vec!["out".into()];
    let below = roots.digest_of_copy(&job.tree);
    let outcome = job.run();
    let shown = outcome.succeeded();
    let lines: Vec<_> = shown.lines().collect();
    let slash = &lines[..lines.iter().position(|line| *line == "/tmp:").unwrap()];
    for name in ["bin", "dev", "in", "out", "proc", "tmp"] {
        assert!(slash.contains(&name), "{shown}");
    }
    // Nothing of the host, whatever it has.
    for name in ["etc", "distbuild", "var", "sys", "run", "home", "opt", ".job", ".root"] {
        assert!(!slash.contains(&name), "{shown}");
    }
    assert_eq!(lines[0], "/");
    assert!(shown.contains("\nfull\nnull\nrandom\nshm\n"), "{shown}");
    let found = roots.directory(&roots.outputs(&job, below, &[RelPath::root()]));
    let names: Vec<_> = found.names().map(ToString::to_string).collect();
    assert!(names.contains(&"out".to_owned()) && !names.contains(&"in".to_owned()));
    // What was mounted leaves nothing.
    for name in ["dev", "proc", "tmp"] {
        assert!(!names.contains(&name.to_owned()), "{names:?}");
    }
}

fn no_room_for_dev(kind: As) {
    let roots = Roots::start(kind);
    let job = roots.job("true", RootAt::Slash);
    symlink("/distbuild", job.tree.join("dev")).unwrap();
    let outcome = job.run();
    let JobEnd::Unrunnable { code: 1, message, .. } = &outcome.ended.end else {
        panic!("{outcome:?}")
    };
    assert!(message.contains("/dev of the input root is no directory"), "{message}");
    assert!(outcome.err().contains(message));
}

fn any_path(kind: As) {
    let roots = Roots::start(kind);
    let mut job = roots.job("echo x >f; cat g", RootAt::Fixed);
    let odd = job.job.dir("a,b:c\\d \"e");
    fs::create_dir(&odd).unwrap();
    for (from, to) in [(&mut job.tree, "t:1"), (&mut job.changes, "c,2")] {
        let to = odd.join(to);
        fs::rename(&*from, &to).unwrap();
        *from = to;
    }
    let root = job.job.spec.input_root.as_mut().unwrap();
    (root.inputs, root.changes) = (job.tree.clone(), job.changes.clone());
    fs::write(job.tree.join("g"), "g").unwrap();
    assert_eq!(job.run().succeeded(), "g");
    assert_eq!(fs::read(job.changes.join(CHANGES_DIR).join("f")).unwrap(), b"x\n");
}

fn no_overlay_here(kind: As) {
    // Its mount namespace is this thread's own, and the spawner's.
    let told = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        const NONE: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
        let daemon = Daemon::start_with(kind, |config, state| {
            let actions = state.join("actions");
            let places = ["lower", "upper", "work"].map(|name| state.join(name));
            places.iter().for_each(|place| fs::create_dir(place).unwrap());
            let [lower, upper, work] = places.map(|place| place.display().to_string());
            let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
            mount(NONE, &actions, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
                .unwrap();
            config.changes = Some(actions);
        });
        // What needs none runs.
        daemon.sh("true").succeeded();
        daemon.spawner.as_ref().unwrap().no_input_roots().map(str::to_owned)
    });
    let reason = told.join().unwrap().expect("an overlay is no place for the changes of another");
    assert!(reason.contains("mount an overlay"), "{reason}");
}

fn killed(kind: As) {
    let roots = Roots::start(kind);
    let job = roots.job("echo x >f; echo begun; (sleep 60 >g) & sleep 60", RootAt::Fixed);
    job.hand_over();
    let mut running = job.job.start();
    assert_eq!(running.line(), "begun\n");
    running.job.kill().unwrap();
    assert_eq!(running.ended().end, JobEnd::Killed);
    let below = DigestFunction::Blake3.digest(b"");
    let found = roots.directory(&roots.outputs(&job, below, &[rel("f")]));
    assert_eq!(found.names().map(ToString::to_string).collect::<Vec<_>>(), ["f"]);
}
