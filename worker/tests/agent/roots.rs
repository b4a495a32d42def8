//! Actions that may change their input root, as they come through the Remote Execution API.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use distbuild_proto::action::{Action, ActionParts, ExecStep, Layout, Step};
use distbuild_proto::graph::{Platform, Resources};
use distbuild_proto::wire::located::Place;
use distbuild_proto::wire::{AttemptEnd, to_worker};
use distbuild_proto::{
    AccessRecord, Child, Digest, DigestFunction, Directory, DirectoryNode, FileNode, Mtime, Name,
    NodeProperties, RelPath, SymlinkNode, wire,
};
use distbuild_worker::RootAt;
use libtest_mimic::Trial;

use crate::fake::{Fake, Table};
use crate::rig::{Rig, text};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("an_action_writes_into_its_root_and_its_outputs_are_collected", outputs),
        trial("what_was_not_written_is_neither_read_nor_fetched", unread),
        trial("the_whole_root_is_an_output", whole_root),
        trial("a_root_action_that_fails_or_runs_out_of_time_has_outputs", failed_with_outputs),
        trial("actions_over_one_tree_do_not_see_each_other", isolation),
        trial("a_fifo_at_an_output_path_fails_the_action", special),
        trial("parents_of_outputs_are_made_and_the_output_is_not", parents),
        trial("an_input_that_nobody_has_ends_a_root_action_as_lost", lost),
        trial("waiting_for_an_input_stops_the_clock_of_a_root_action", clock),
        trial("dep_in_a_root_is_a_directory_like_any_other", dep_is_no_dependency),
        trial("a_large_tree_is_neither_walked_nor_fetched", large_tree),
        trial("a_large_input_is_read_and_written_through_an_overlay", large_input),
        trial("a_root_action_without_commands_leaves_no_outputs", no_commands),
        trial("modes_and_times_of_node_properties_are_shown", node_properties),
        trial("a_worker_can_give_actions_their_root_as_slash", slash),
        trial("what_a_root_action_wrote_is_kept_for_its_build", kept),
    ]
}

/// What stands at a path of an input tree.
#[derive(Clone, Debug)]
pub(crate) enum Entry<'a> {
    File(&'a [u8]),
    Program(&'a [u8]),
    Link(&'a str),
    Empty,
}

use Entry::{Empty, File, Link, Program};

/// A tree whose blobs the coordinator has; gives the digest of its root.
pub(crate) fn tree_of(fake: &Fake, entries: &[(&str, Entry<'_>)]) -> Digest {
    let mut here: BTreeMap<&str, Vec<(&str, Entry<'_>)>> = BTreeMap::new();
    let (mut files, mut directories, mut links) = (Vec::new(), Vec::new(), Vec::new());
    for (path, entry) in entries {
        match path.split_once('/') {
            Some((first, rest)) => here.entry(first).or_default().push((rest, entry.clone())),
            None => match entry {
                File(text) | Program(text) => {
                    let digest = at_the_coordinator(fake, text);
                    let executable = matches!(entry, Program(_));
                    files.push(FileNode { name: name(path), digest, executable });
                }
                Link(target) => {
                    let target = Bytes::copy_from_slice(target.as_bytes());
                    links.push(SymlinkNode { name: name(path), target });
                }
                Empty => drop(here.entry(path).or_default()),
            },
        }
    }
    for (inner, entries) in here {
        let digest = tree_of(fake, &entries);
        directories.push(DirectoryNode { name: name(inner), digest });
    }
    let directory = Directory::new(files, directories, links).unwrap();
    at_the_coordinator(fake, &directory.encode())
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn at_the_coordinator(fake: &Fake, blob: &[u8]) -> Digest {
    let digest = fake.store(blob);
    fake.place(digest, Place::Coordinator(true));
    digest
}

/// An action with a writable root.
pub(crate) struct RootJob<'a> {
    pub(crate) script: &'a str,
    pub(crate) root: Digest,
    pub(crate) outputs: &'a [&'a str],
    pub(crate) working_directory: &'a str,
    pub(crate) timeout: Duration,
}

impl<'a> RootJob<'a> {
    pub(crate) fn new(root: Digest, script: &'a str, outputs: &'a [&'a str]) -> Self {
        let timeout = Duration::from_secs(60);
        Self { script, root, outputs, working_directory: "/distbuild/root", timeout }
    }

    pub(crate) fn assign(&self, attempt: u64) -> to_worker::Body {
        let argv =
            ["/bin/sh", "-c", self.script].map(|word| Bytes::copy_from_slice(word.as_bytes()));
        let environ = vec![Bytes::from_static(b"PATH=/usr/bin:/bin")];
        let directory = Bytes::copy_from_slice(self.working_directory.as_bytes());
        let step = ExecStep::new(argv.into(), environ, directory).unwrap();
        let mut outputs: Vec<_> =
            self.outputs.iter().map(|path| RelPath::new(path.as_bytes()).unwrap()).collect();
        outputs.sort_unstable();
        let action = Action::new(ActionParts {
            layout: Layout::Root,
            steps: vec![Step::Exec(step)],
            input_root: self.root,
            output_paths: outputs,
            platform: Platform::new([("os", "linux")]),
            timeout: Some(self.timeout),
            resources: Resources::default(),
            network: false,
            toolchain: String::new(),
            salt: String::new(),
            declared_id: None,
        });
        to_worker::Body::Assign(wire::Assign {
            attempt,
            job_name: format!("root job {attempt}"),
            action: Some(action.unwrap().to_wire()),
            directories: vec![],
            deps: vec![],
            digest_function: DigestFunction::Blake3 as i32,
            build_ids: vec!["build".to_owned()],
            unrecorded: false,
            origin: None,
        })
    }
}

impl Rig {
    async fn run_root(&mut self, attempt: u64, job: &RootJob<'_>) -> wire::AttemptEnded {
        self.link.send(job.assign(attempt)).await;
        let (ended, _) = self.link.end().await;
        assert_eq!(ended.attempt, attempt);
        self.link.acknowledge(attempt).await;
        ended
    }

    /// What a result's outputs are, path by path: a file's contents with its mode, a link's target, an
    /// empty directory. A blob that only the coordinator has is read there.
    fn outputs(&self, ended: &wire::AttemptEnded) -> BTreeMap<String, String> {
        let root = ended.result.as_ref().unwrap().output_root.clone();
        let root = Digest::try_from(root).unwrap_or_else(|_| panic!("no outputs: {ended:?}"));
        let mut found = BTreeMap::new();
        self.list(&root, "", &mut found);
        found
    }

    fn blob(&self, digest: &Digest) -> Bytes {
        if digest.size_bytes() == 0 {
            return Bytes::new();
        }
        match self.worker.store().read(digest) {
            Ok(blob) => blob,
            Err(_) => self.fake.coordinator.table.lock().blobs[digest].clone(),
        }
    }

    fn list(&self, directory: &Digest, at: &str, found: &mut BTreeMap<String, String>) {
        let directory = Directory::decode(DigestFunction::Blake3, &self.blob(directory)).unwrap();
        if directory.is_empty() {
            found.insert(format!("{at}/"), String::new());
        }
        for child in directory.children() {
            let path = match at {
                "" => child.name().to_string(),
                at => format!("{at}/{}", child.name()),
            };
            match child {
                Child::File(file) => {
                    let text = String::from_utf8_lossy(&self.blob(&file.digest)).into_owned();
                    let mode = if file.executable { "x:" } else { "" };
                    found.insert(path, format!("{mode}{text}"));
                }
                Child::Symlink(link) => {
                    found.insert(path, format!("-> {}", String::from_utf8_lossy(&link.target)));
                }
                Child::Directory(inner) => self.list(&inner.digest, &path, found),
            }
        }
    }
}

fn expected<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
    entries.map(|(path, text)| (path.to_owned(), text.to_owned())).into()
}

#[track_caller]
fn succeeded(ended: &wire::AttemptEnded) {
    let stderr = ended.result.as_ref().map(|result| text(&result.stderr));
    assert_eq!(ended.end(), AttemptEnd::AttemptSucceeded, "{stderr:?} {ended:?}");
}

async fn outputs() {
    let mut rig = Rig::start().await;
    assert_eq!(rig.link.hello.properties.get("input-root").unwrap(), "/distbuild/root");
    let root = tree_of(
        &rig.fake,
        &[
            ("pkg/in", File(b"one\n")),
            ("pkg/tool", Program(b"#!/bin/sh\necho made by $0\n")),
            ("out/stale", File(b"stale")),
            ("out/kept/a", File(b"a")),
            ("out/kept/b", File(b"b")),
            ("out/gone/c", File(b"c")),
            ("link", Link("pkg/in")),
        ],
    );
    let script = "set -e; pwd; test -w pkg/in; pkg/tool >out/made; chmod 755 out/made; echo two >>pkg/in; \
                  rm out/stale; rm -r out/gone; mkdir out/gone; ln -s nowhere/at/all out/dangling; \
                  echo b2 >out/kept/b; ln out/made out/twin; cat link; mkdir -p new/d; echo x >new/d/f";
    let job = RootJob::new(root, script, &["out", "pkg/in", "new/d/f", "never/made", "link"]);
    let ended = rig.run_root(1, &job).await;
    succeeded(&ended);
    assert_eq!(text(&ended.result.as_ref().unwrap().stdout), "/distbuild/root\none\ntwo\n");
    let made = "x:made by pkg/tool\n";
    assert_eq!(
        rig.outputs(&ended),
        expected([
            ("link", "-> pkg/in"),
            ("new/d/f", "x\n"),
            ("out/dangling", "-> nowhere/at/all"),
            ("out/gone/", ""),
            ("out/kept/a", "a"),
            ("out/kept/b", "b2\n"),
            ("out/made", made),
            ("out/twin", made),
            ("pkg/in", "one\ntwo\n"),
        ])
    );
    // The next one finds everything as it was.
    let script = "cat pkg/in out/stale; ls out out/gone; test ! -e new";
    let again = rig.run_root(2, &RootJob::new(root, script, &[])).await;
    succeeded(&again);
    let listed = "one\nstaleout:\ngone\nkept\nstale\n\nout/gone:\nc\n";
    assert_eq!(text(&again.result.as_ref().unwrap().stdout), listed);
    assert_eq!(rig.outputs(&again), expected([("/", "")]));
    rig.worker.shutdown().await;
}

async fn unread() {
    let mut rig = Rig::start().await;
    let root = tree_of(
        &rig.fake,
        &[("d/e/unread", File(b"unread")), ("d/f", File(b"f")), ("d/g", File(b"g"))],
    );
    let unread = DigestFunction::Blake3.digest(b"unread");
    let ended = rig.run_root(1, &RootJob::new(root, "echo f2 >d/f; rm d/g", &["d"])).await;
    succeeded(&ended);
    assert_eq!(rig.outputs(&ended), expected([("d/e/unread", "unread"), ("d/f", "f2\n")]));
    // Nor the directory that holds it; and of what was overwritten nothing but the name was needed.
    let before = [&b"unread"[..], b"f", b"g"].map(|text| DigestFunction::Blake3.digest(text));
    for digest in before {
        assert_eq!(rig.fake.reads_of(&digest), 0, "{digest}");
        assert!(!rig.worker.store().contains(&digest));
    }
    // An output that nothing was looked up in at all.
    let ended = rig.run_root(2, &RootJob::new(root, "true", &["d/e", "d/f"])).await;
    assert_eq!(rig.outputs(&ended), expected([("d/e/unread", "unread"), ("d/f", "f")]));
    assert_eq!(rig.fake.reads_of(&unread), 0);
    let record = AccessRecord::decode(&ended.access_record).unwrap();
    // Names may have node properties in such a root, which no record holds: it may guess and never conclude.
    assert!(!record.is_complete());
    assert!(record.get(&RelPath::new(b"d/e").unwrap()).is_none());
    rig.worker.shutdown().await;
}

async fn whole_root() {
    let mut rig = Rig::start().await;
    let root = tree_of(&rig.fake, &[("a/b", File(b"b")), ("c", File(b"c"))]);
    let ended = rig.run_root(1, &RootJob::new(root, "true", &[""])).await;
    succeeded(&ended);
    assert_eq!(ended.result.unwrap().output_root, Some(root.into()));
    let ended = rig.run_root(2, &RootJob::new(root, "rm c; echo d >d", &["", "a"])).await;
    assert_eq!(rig.outputs(&ended), expected([("a/b", "b"), ("d", "d\n")]));
    let ended = rig.run_root(3, &RootJob::new(root, "rm -r a c", &[""])).await;
    assert_eq!(rig.outputs(&ended), expected([("/", "")]));
    rig.worker.shutdown().await;
}

async fn failed_with_outputs() {
    let mut rig = Rig::start().await;
    let root = tree_of(&rig.fake, &[("in", File(b"in"))]);
    let ended = rig.run_root(1, &RootJob::new(root, "echo log >log; exit 3", &["log"])).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptFailed);
    assert_eq!(rig.outputs(&ended), expected([("log", "log\n")]));
    assert_eq!(ended.result.unwrap().exit_code, 3);
    let ended = rig.run_root(2, &RootJob::new(root, "echo log >log; kill -9 $$", &["log"])).await;
    assert_eq!(rig.outputs(&ended), expected([("log", "log\n")]));
    assert_eq!(ended.result.unwrap().signal, 9);
    let mut job = RootJob::new(root, "echo part >log; sleep 60 & wait", &["log"]);
    job.timeout = Duration::from_millis(300);
    let ended = rig.run_root(3, &job).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptTimedOut, "{ended:?}");
    assert_eq!(rig.outputs(&ended), expected([("log", "part\n")]));
    // The working directory is the client's word: an action that does not have it has failed.
    let mut job = RootJob::new(root, "true", &["in"]);
    job.working_directory = "/distbuild/root/none";
    let ended = rig.run_root(4, &job).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptFailed);
    assert_eq!(ended.result.unwrap().exit_code, 126);
    rig.worker.shutdown().await;
}

async fn isolation() {
    let mut rig = Rig::start().await;
    let big = vec![b'i'; 200_000];
    let root = tree_of(
        &rig.fake,
        &[("d/f", File(&big)), ("d/g", File(b"g")), ("d/h/i", File(b"i")), ("k", Program(b"k"))],
    );
    let hostile = r#"
import ctypes, ctypes.util, mmap, os
f = open("d/f", "r+b"); m = mmap.mmap(f.fileno(), 0); m[0:4] = b"EVIL"; m.flush()
os.close(os.open("d/g", os.O_WRONLY | os.O_TRUNC))
open("tmp", "w").write("EVIL"); os.rename("tmp", "d/h/i")
os.unlink("k"); open("k", "w").write("EVIL"); os.chmod("k", 0o4777)
os.link("d/g", "twin"); open("twin", "w").write("EVIL")
os.mkdir("q")
for path in ["d", "q", "d/f", "."]:
    for name in ["user.overlay.opaque", "user.overlay.whiteout", "user.overlay.redirect", "trusted.overlay.opaque"]:
        try: os.setxattr(path, name, b"y")
        except OSError: pass
for path in ["d/h/w", "w"]:
    try: os.mknod(path, 0o020000, 0); print("made a whiteout")
    except PermissionError: pass
for i in range(2000): assert open("d/f", "rb").read(4) == b"EVIL"
"#;
    let script = format!("python3 - <<'E'\n{hostile}E\n");
    // At once, over one tree; the honest read it again and again meanwhile.
    let honest = "for i in $(seq 30); do test \"$(head -c 4 d/f)$(cat d/g d/h/i k)\" = iiiigik || exit 1; done; \
                  test ! -e q && test ! -e twin && test -x k && ls d";
    for attempt in 1..=6 {
        let script = if attempt % 2 == 0 { honest } else { &script };
        rig.link
            .send(RootJob::new(root, script, &["d", "k", "q", "twin", "w"]).assign(attempt))
            .await;
    }
    let mut evil = big.clone();
    evil[..4].copy_from_slice(b"EVIL");
    for _ in 1..=6 {
        let (ended, _) = rig.link.end().await;
        succeeded(&ended);
        let stdout = text(&ended.result.as_ref().unwrap().stdout);
        let found = rig.outputs(&ended);
        let text = |path: &str| found.get(path).map(String::as_str);
        if ended.attempt % 2 == 0 {
            assert_eq!(stdout, "f\ng\nh\n");
            assert_eq!(
                (text("d/g"), text("d/h/i"), text("k")),
                (Some("g"), Some("i"), Some("x:k"))
            );
            assert_eq!(found["d/f"].as_bytes(), big);
            assert_eq!(found.len(), 4);
        } else {
            assert_eq!(stdout, "");
            let evil_text = Some("EVIL");
            assert_eq!(
                (text("d/g"), text("twin"), text("d/h/i")),
                (evil_text, evil_text, evil_text)
            );
            assert_eq!((text("k"), text("q/")), (Some("x:EVIL"), Some("")));
            assert_eq!(found["d/f"].as_bytes(), evil);
            assert_eq!(found.len(), 6, "{:?}", found.keys());
        }
    }
    // What is stored is what it was.
    assert_eq!(rig.worker.store().read(&DigestFunction::Blake3.digest(&big)).unwrap(), big);
    rig.worker.shutdown().await;
}

async fn special() {
    let mut rig = Rig::start().await;
    let root = tree_of(&rig.fake, &[("d/f", File(b"f"))]);
    let ended = rig.run_root(1, &RootJob::new(root, "mkfifo d/pipe", &["d"])).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptFailed);
    let result = ended.result.unwrap();
    assert_eq!((result.exit_code, result.output_root), (1, None));
    assert!(text(&result.stderr).contains("d/pipe is neither a file"), "{}", text(&result.stderr));
    // Beside the outputs it is nobody's business.
    let ended = rig.run_root(2, &RootJob::new(root, "mkfifo d/pipe", &["d/f"])).await;
    succeeded(&ended);
    // An action that has failed already has failed for its own reason.
    let ended = rig.run_root(3, &RootJob::new(root, "mkfifo d/pipe; exit 9", &["d"])).await;
    assert_eq!(ended.result.unwrap().exit_code, 9);
    rig.worker.shutdown().await;
}

async fn parents() {
    let mut rig = Rig::start().await;
    let root = tree_of(&rig.fake, &[("a/f", File(b"f")), ("e", Empty)]);
    let script = "ls -R | grep -v '^$'; echo 1 >a/b/c/one; mkdir x/y/two; touch e/three";
    let outputs = ["a/b/c/one", "x/y/two", "e/three", "four"];
    let ended = rig.run_root(1, &RootJob::new(root, script, &outputs)).await;
    succeeded(&ended);
    let listed = ".:\na\ne\nx\n./a:\nb\nf\n./a/b:\nc\n./a/b/c:\n./e:\n./x:\ny\n./x/y:\n";
    assert_eq!(text(&ended.result.as_ref().unwrap().stdout), listed);
    let found = rig.outputs(&ended);
    assert_eq!(found, expected([("a/b/c/one", "1\n"), ("e/three", ""), ("x/y/two/", "")]));
    // A file in the way is the action's own fault.
    let ended = rig.run_root(2, &RootJob::new(root, "true", &["a/f/below"])).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptFailed);
    let stderr = text(&ended.result.as_ref().unwrap().stderr);
    assert!(stderr.contains("cannot make the directory a/f"), "{stderr}");
    rig.worker.shutdown().await;
}

async fn lost() {
    let mut rig = Rig::start().await;
    let root = tree_of(&rig.fake, &[("d/f", File(b"f"))]);
    let f = DigestFunction::Blake3.digest(b"f");
    rig.fake.place(f, Place::Lost("nobody has it".to_owned()));
    rig.fake.coordinator.table.lock().blobs.remove(&f);
    let ended = rig.run_root(1, &RootJob::new(root, "cat d/f; true", &["d"])).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptLostInputs, "{ended:?}");
    assert!(ended.lost_deps.is_empty());
    // Also when it is copied up to be written.
    let ended = rig.run_root(2, &RootJob::new(root, "echo >>d/f; true", &["d"])).await;
    assert_eq!(ended.end(), AttemptEnd::AttemptLostInputs, "{ended:?}");
    rig.worker.shutdown().await;
}

async fn clock() {
    let mut rig = Rig::start().await;
    let root = tree_of(&rig.fake, &[("d/f", File(b"f"))]);
    let f = DigestFunction::Blake3.digest(b"f");
    rig.fake.coordinator.table.lock().blobs.remove(&f);
    // Located with a peer that is not there: asked again, with pauses, until the coordinator has it.
    let nobody = wire::Peers { addresses: vec!["unix:/nonexistent/peer".to_owned()] };
    rig.fake.place(f, Place::Peers(nobody));
    let mut job = RootJob::new(root, "cat d/f >d/g", &["d/g"]);
    // Less than the pauses come to, and enough to start a shell on a busy machine.
    job.timeout = Duration::from_millis(500);
    rig.link.send(job.assign(1)).await;
    let located = |table: &mut Table| table.located.iter().filter(|digest| **digest == f).count();
    rig.fake.coordinator.until(|table| (located(table) >= 3).then_some(())).await;
    at_the_coordinator(&rig.fake, b"f");
    let (ended, _) = rig.link.end().await;
    succeeded(&ended);
    assert_eq!(rig.outputs(&ended), expected([("d/g", "f")]));
    let timings = ended.result.unwrap().timings.unwrap();
    assert!(timings.fetch_wait_ms >= 500, "{timings:?}");
    rig.worker.shutdown().await;
}

async fn dep_is_no_dependency() {
    let mut rig = Rig::start().await;
    let root = tree_of(&rig.fake, &[("dep/0/f", File(b"f")), ("src/g", File(b"g"))]);
    let ended = rig.run_root(1, &RootJob::new(root, "cat dep/0/f src/g", &[])).await;
    succeeded(&ended);
    assert_eq!(text(&ended.result.unwrap().stdout), "fg");
    assert_eq!(ended.opened.len(), 2);
    rig.worker.shutdown().await;
}

async fn large_tree() {
    let mut rig = Rig::start().await;
    let paths: Vec<String> =
        (0..50_000).map(|number| format!("d{}/f{}", number / 100, number % 100)).collect();
    let entries: Vec<_> = paths.iter().map(|path| (path.as_str(), File(path.as_bytes()))).collect();
    let root = tree_of(&rig.fake, &entries);
    rig.fake.coordinator.table.lock().reads.clear();
    let script =
        "for d in 1 2 3 4; do for f in 1 2 3 4 5; do cat d$d/f$f; done; done; echo x >d5/out";
    let ended = rig.run_root(1, &RootJob::new(root, script, &["d5/out"])).await;
    succeeded(&ended);
    assert_eq!(ended.files_opened, 20);
    // The root, five directories, twenty files.
    let reads = rig.fake.coordinator.table.lock().reads.len();
    assert!(reads <= 26, "{reads} blobs were read");
    assert!(rig.worker.store().known_blobs() < 40);
    rig.worker.shutdown().await;
}

async fn large_input() {
    let mut rig = Rig::start().await;
    let has_passthrough = rig.worker.notes().iter().all(|note| !note.contains("no passthrough"));
    let big = vec![7_u8; 20 << 20];
    let root = tree_of(&rig.fake, &[("d/big", File(&big)), ("d/f", File(b"f"))]);
    let script = "grep -q lowerdir=.*/passthrough/ /proc/self/mountinfo && echo passthrough; \
                  cat d/f; cksum <d/big; printf x | dd of=d/big conv=notrunc status=none; cksum <d/big";
    let mut printed = Vec::new();
    // From the second time on it is in the store, and so read by passthrough where there is some.
    for attempt in 1..=3 {
        let ended = rig.run_root(attempt, &RootJob::new(root, script, &["d"])).await;
        succeeded(&ended);
        let found = rig.outputs(&ended);
        assert_eq!(found["d/f"], "f");
        assert_eq!((found["d/big"].len(), &found["d/big"][..2]), (big.len(), "x\u{7}"));
        let text = text(&ended.result.unwrap().stdout);
        let read = text.strip_prefix("passthrough\n");
        assert_eq!(read.is_some(), has_passthrough && attempt > 1, "{text}");
        printed.push(read.unwrap_or(&text).to_owned());
    }
    assert!(printed.iter().all(|text| *text == printed[0]), "{printed:?}");
    assert_eq!(rig.worker.store().read(&DigestFunction::Blake3.digest(&big)).unwrap(), big);
    rig.worker.shutdown().await;
}

async fn no_commands() {
    let mut rig = Rig::start().await;
    let root = tree_of(&rig.fake, &[("in", File(b"in"))]);
    let job = crate::rig::Job { source: Some(root), ..crate::rig::Job::new("") };
    rig.link.send(job.assign_in_root_without_commands(1)).await;
    let (ended, _) = rig.link.end().await;
    succeeded(&ended);
    // The directory that was made for the output is none.
    assert_eq!(rig.outputs(&ended), expected([("/", "")]));
    rig.worker.shutdown().await;
}

async fn node_properties() {
    let mut rig = Rig::start().await;
    let properties = |unix_mode, seconds| NodeProperties {
        unix_mode,
        mtime: Option::and_then(seconds, |seconds| Mtime::new(seconds, 0)),
    };
    let f = at_the_coordinator(&rig.fake, b"f");
    let file = |at: &str| FileNode { name: name(at), digest: f, executable: false };
    let link = SymlinkNode { name: name("l"), target: Bytes::from_static(b"x") };
    let inner = Directory::new(vec![file("plain"), file("old"), file("bits")], vec![], vec![link])
        .unwrap()
        .with_properties(
            Some(properties(Some(0o1775), Some(86_400))),
            [
                (name("old"), properties(None, Some(1_000_000_000))),
                (name("bits"), properties(Some(0o640), Some(-86_400))),
                (name("l"), properties(None, Some(7))),
            ]
            .into(),
        );
    let inner = at_the_coordinator(&rig.fake, &inner.encode());
    let inner = DirectoryNode { name: name("d"), digest: inner };
    let root = Directory::new(vec![], vec![inner], vec![]).unwrap();
    let root = at_the_coordinator(&rig.fake, &root.encode());
    let script = "stat -c '%n %a %Y' d d/*; cat d/bits; echo >>d/plain; chmod +x d/old; stat -c '%n %a %Y' d/old";
    let ended = rig.run_root(1, &RootJob::new(root, script, &["d"])).await;
    succeeded(&ended);
    assert_eq!(
        text(&ended.result.as_ref().unwrap().stdout),
        "d 1775 86400\nd/bits 640 -86400\nd/l 777 7\nd/old 644 1000000000\nd/plain 644 315532800\n\
         fd/old 755 1000000000\n"
    );
    // What was not changed is what it was.
    let blob =
        |digest: &Digest| Directory::decode(DigestFunction::Blake3, &rig.blob(digest)).unwrap();
    let outputs = Digest::try_from(ended.result.unwrap().output_root).unwrap();
    let outputs = blob(&outputs);
    let Some(Child::Directory(node)) = outputs.get(b"d") else { panic!("{outputs:?}") };
    let found = blob(&node.digest);
    assert_eq!(found.properties_of(&name("bits")), Some(&properties(Some(0o640), Some(-86_400))));
    assert_eq!(found.properties_of(&name("old")), None);
    assert_eq!(found.properties(), None);
    rig.worker.shutdown().await;
}

async fn slash() {
    let mut rig = Rig::start_with(|config| config.input_root_at = RootAt::Slash).await;
    assert_eq!(rig.link.hello.properties.get("input-root").unwrap(), "/");
    let shell = linked_with("/bin/sh");
    let shell: Vec<_> = shell.iter().map(|(path, text)| (path.as_str(), Program(text))).collect();
    let mut entries = shell.clone();
    entries.push(("work/in", File(b"in\n")));
    let root = tree_of(&rig.fake, &entries);
    let script = "pwd; read line <in; echo $line; for f in /etc* /proc/self/* /work/*; do case $f in \
                  /proc/self/status | /proc/self/exe | /etc* | /work*) echo $f; esac; done; \
                  echo made >out; echo x >/tmp/x; echo y >/dev/null";
    let mut job = RootJob::new(root, script, &["work/out", "tmp", "dev", "work/none"]);
    job.working_directory = "/distbuild/root/work";
    let ended = rig.run_root(1, &job).await;
    succeeded(&ended);
    let printed = text(&ended.result.as_ref().unwrap().stdout);
    // No /etc: the pattern stands for itself.
    assert_eq!(printed, "/work\nin\n/etc*\n/proc/self/exe\n/proc/self/status\n/work/in\n");
    assert_eq!(rig.outputs(&ended), expected([("work/out", "made\n")]));
    // A native job on the same worker is what it always is.
    let native = rig.run(2, crate::rig::Job::new("ls -d /usr /distbuild/src")).await;
    succeeded(&native);
    rig.worker.shutdown().await;
}

/// A program of this host with all that it is linked with: paths below a root, and contents.
fn linked_with(program: &str) -> Vec<(String, Vec<u8>)> {
    let listed = std::process::Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let paths = listed.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    let paths = paths.chain([program]);
    let read = |path: &str| (path.trim_start_matches('/').to_owned(), std::fs::read(path).unwrap());
    paths.map(read).collect()
}

async fn kept() {
    let mut rig = Rig::start().await;
    let root = tree_of(&rig.fake, &[("d/e/f", File(b"f"))]);
    let before = rig.worker.store().leased_blobs();
    let ended = rig.run_root(1, &RootJob::new(root, "echo g >d/g", &["d"])).await;
    succeeded(&ended);
    // The file, the directory `d` and the root of the outputs; inputs no more.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while rig.worker.store().leased_blobs() - before != 3 {
        assert!(std::time::Instant::now() < deadline, "{}", rig.worker.store().leased_blobs());
        tokio::task::yield_now().await;
    }
    assert_eq!(ended.output_directories.len(), 2);
    let release = wire::ReleaseBuild { build_id: "build".to_owned() };
    rig.link.send(to_worker::Body::ReleaseBuild(release)).await;
    // Released on another thread.
    while rig.worker.store().leased_blobs() > before {
        assert!(std::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    rig.worker.shutdown().await;
}
