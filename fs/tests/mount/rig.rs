//! A served mount and its agent, played by the test.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use distbuild_fs::MessageCounts;
use distbuild_fs::contents::{BlobKey, WantError};
use distbuild_fs::protocol::{self, FromFs, Recorded, Stats, ToFs};
use distbuild_proto::{AccessRecord, Digest, RelPath};
use tempfile::TempDir;

use crate::testd::Options;
use crate::trees::{Blobs, Plain, encode};

/// Longer than anything here takes, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The usual mount, the one for passthrough, and the store, in the rig's folder.
pub(crate) const PLACES: [&str; 3] = ["mnt", "large", "store"];

pub(crate) struct Rig {
    /// Why there is no passthrough, if there is none.
    pub(crate) no_passthrough: Option<String>,
    folder: TempDir,
    child: Child,
    control: UnixStream,
    events: Receiver<FromFs>,
    script: Arc<Mutex<Script>>,
}

/// How the agent answers.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) blobs: Blobs,
    /// Not answered.
    pub(crate) held: HashSet<Digest>,
    /// Answered with this error.
    pub(crate) refused: HashMap<Digest, String>,
    /// Requests that were not answered, with what they want.
    pub(crate) unanswered: Vec<(u64, BlobKey)>,
    /// Everything that was asked for: contents, views, hint.
    pub(crate) wants: Vec<(Digest, Vec<u64>, RelPath)>,
}

impl Rig {
    pub(crate) fn start(options: Options) -> Self {
        let folder = tempfile::Builder::new().prefix("distbuild-fs-").tempdir().unwrap();
        // Open to the user that some mounts are served by.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let [mount, large, store] = PLACES.map(|place| folder.path().join(place));
        for path in [&mount, &large, &store] {
            fs::create_dir(path).unwrap();
        }
        if options.unprivileged {
            let nobody = Some(crate::testd::NOBODY);
            std::os::unix::fs::chown(&mount, nobody, nobody).unwrap();
        }
        let (control, theirs) = UnixStream::pair().unwrap();
        let child = Command::new("/proc/self/exe")
            .arg("serve")
            .arg(folder.path())
            .args(options.arguments())
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let (sender, events) = channel();
        let (stream, answers) = (control.try_clone().unwrap(), control.try_clone().unwrap());
        let played = Arc::clone(&script);
        thread::spawn(move || play(stream, answers, &store, &played, &sender));
        let mut rig = Self { no_passthrough: None, folder, child, control, events, script };
        match rig.event() {
            FromFs::Ready { no_passthrough } => rig.no_passthrough = no_passthrough,
            other => panic!("not ready: {other:?}"),
        }
        rig
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path in the mount, as its own namespace has it.
    pub(crate) fn inner_path(&self, path: &str) -> PathBuf {
        self.folder.path().join("mnt").join(path)
    }

    /// A path in the mount, for processes outside.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.outside(&self.inner_path(path))
    }

    /// A path in the mount for passthrough, for processes outside.
    pub(crate) fn large_path(&self, path: &str) -> PathBuf {
        self.outside(&self.folder.path().join("large").join(path))
    }

    fn outside(&self, inner: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid())).join(inner.strip_prefix("/").unwrap())
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn script<R>(&self, change: impl FnOnce(&mut Script) -> R) -> R {
        change(&mut self.script.lock().unwrap())
    }

    pub(crate) fn add_view(&self, view: u64, tree: &Plain) -> Digest {
        let root = self.script(|script| encode(tree, &mut script.blobs));
        self.send(&ToFs::AddView { view, root, properties: false });
        assert_eq!(self.event(), FromFs::ViewAdded { view });
        root
    }

    pub(crate) fn drop_view(&self, view: u64) -> AccessRecord {
        self.send(&ToFs::DropView { view });
        match self.event() {
            FromFs::Record { view: dropped, record: Some(Recorded(record)) } if dropped == view => {
                record
            }
            other => panic!("not the record of {view}: {other:?}"),
        }
    }

    pub(crate) fn send(&self, message: &ToFs) {
        (&self.control).write_all(&protocol::encode(message).unwrap()).unwrap();
    }

    /// Answers what was held.
    pub(crate) fn release(&self, digest: Digest) {
        let store = self.folder.path().join("store");
        let answers: Vec<ToFs> = self.script(|script| {
            script.held.remove(&digest);
            let held = std::mem::take(&mut script.unanswered);
            let answer =
                |(request, key)| ToFs::WantDone { request, result: bring(script, key, &store) };
            held.into_iter().map(answer).collect()
        });
        for answer in &answers {
            self.send(answer);
        }
    }

    /// The next message that is not a `Want`.
    pub(crate) fn event(&self) -> FromFs {
        self.events.recv_timeout(PATIENCE).expect("the file system says nothing")
    }

    /// Waits until a blob is asked for and says for which views and from where.
    pub(crate) fn wanted(&self, digest: Digest) -> (Vec<u64>, RelPath) {
        self.until("the blob is wanted", || {
            let asked = self.script(|script| script.wants.clone());
            asked.into_iter().find(|want| want.0 == digest).map(|want| (want.1, want.2))
        })
    }

    pub(crate) fn stats(&self) -> Stats {
        self.send(&ToFs::Stats);
        match self.event() {
            FromFs::Stats(stats) => stats,
            other => panic!("not stats: {other:?}"),
        }
    }

    /// The messages of the kernel during an action.
    pub(crate) fn messages<R>(&self, action: impl FnOnce() -> R) -> (MessageCounts, R) {
        let before = self.stats().messages;
        let result = action();
        (self.stats().messages.since(&before), result)
    }

    /// Asks again and again until there is an answer.
    pub(crate) fn until<R>(&self, what: &str, mut ask: impl FnMut() -> Option<R>) -> R {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
            thread::yield_now();
        }
    }

    /// A command that runs inside the namespaces of the mount.
    pub(crate) fn inside(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg("inside").arg(self.pid().to_string());
        command
    }

    /// Closes the socket and waits for the process to end of its own.
    pub(crate) fn finish(mut self) -> bool {
        self.control.shutdown(std::net::Shutdown::Both).unwrap();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Frees whoever hangs in the mount, which lives in no other process.
        let _already_ended = self.child.kill();
        let _already_ended = self.child.wait();
    }
}

/// Answers wants by the script and passes on everything else.
fn play(
    mut stream: UnixStream,
    mut answers: UnixStream,
    store: &Path,
    script: &Mutex<Script>,
    events: &Sender<FromFs>,
) {
    while let Ok(Some(message)) = protocol::read::<FromFs>(&mut stream) {
        let FromFs::Want { request, digest, kind, views, hint } = message else {
            if events.send(message).is_err() {
                return;
            }
            continue;
        };
        let mut script = script.lock().unwrap();
        script.wants.push((digest, views, hint));
        let key = BlobKey { digest, kind };
        if script.held.contains(&digest) {
            script.unanswered.push((request, key));
            continue;
        }
        let result = match script.refused.get(&digest) {
            Some(reason) => Err(WantError::Refused(reason.clone())),
            None => bring(&script, key, store),
        };
        let answer = protocol::encode(&ToFs::WantDone { request, result }).unwrap();
        if answers.write_all(&answer).is_err() {
            return;
        }
    }
}

fn bring(script: &Script, key: BlobKey, store: &Path) -> Result<(), WantError> {
    let Some(blob) = script.blobs.get(&key) else {
        return Err(WantError::Refused("unknown".into()));
    };
    // As a store does it: a blob appears whole and never changes.
    let path = key.path(store);
    if !path.exists() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let unfinished = path.with_extension("unfinished");
        fs::write(&unfinished, blob).unwrap();
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o555)).unwrap();
        fs::rename(&unfinished, &path).unwrap();
    }
    Ok(())
}
