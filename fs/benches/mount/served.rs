//! A mount that is served by another process, as a worker's is; this one plays the agent.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use distbuild_fs::contents::{BlobKey, BlobKind};
use distbuild_fs::protocol::{self, FromFs, Stats, ToFs};
use distbuild_fs::server::{self, FsConfig};
use distbuild_fs::{Mounts, mount, namespace};
use distbuild_proto::{Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name};
use tempfile::TempDir;

/// The first argument of the serving process.
pub(crate) const ARGUMENT: &str = "serve";
const FUNCTION: DigestFunction = DigestFunction::Blake3;
/// The usual mount, the one for passthrough, and the store.
const PLACES: [&str; 3] = ["usual", "passthrough", "store"];
/// Longer than anything takes that an agent waits for.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Served {
    folder: TempDir,
    child: Child,
    control: UnixStream,
    events: Receiver<FromFs>,
}

impl Served {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("distbuild-bench-").tempdir().unwrap();
        PLACES.iter().for_each(|place| fs::create_dir(folder.path().join(place)).unwrap());
        let (control, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).arg(folder.path()).stdin(OwnedFd::from(theirs));
        let child = command.spawn().unwrap();
        drop(command);
        let (sender, events) = channel();
        let ends = [control.try_clone().unwrap(), control.try_clone().unwrap()];
        thread::spawn(move || answer(ends, &sender));
        let served = Self { folder, child, control, events };
        match served.event() {
            FromFs::Ready { no_passthrough: None } => served,
            other => panic!("no mounts with passthrough: {other:?}"),
        }
    }

    /// A place in one of the mounts, as other namespaces see it.
    fn path(&self, mount: &str, path: &str) -> PathBuf {
        let inner = self.folder.path().join(mount).join(path);
        Path::new(&format!("/proc/{}/root", self.child.id())).join(inner.strip_prefix("/").unwrap())
    }

    pub(crate) fn usual(&self, path: &str) -> PathBuf {
        self.path(PLACES[0], path)
    }

    pub(crate) fn passthrough(&self, path: &str) -> PathBuf {
        self.path(PLACES[1], path)
    }

    /// A folder for plain files, on the file system of the store.
    pub(crate) fn plain(&self) -> PathBuf {
        self.folder.path().join("plain")
    }

    /// Where the store has a file.
    pub(crate) fn stored(&self, digest: Digest) -> PathBuf {
        let key = BlobKey { digest, kind: BlobKind::File { executable: false } };
        key.path(&self.folder.path().join(PLACES[2]))
    }

    pub(crate) fn insert(&self, bytes: &[u8]) -> Digest {
        let digest = FUNCTION.digest(bytes);
        let path = self.stored(digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        digest
    }

    pub(crate) fn insert_directory(
        &self,
        files: &[(String, Digest)],
        directories: &[(String, Digest)],
    ) -> Digest {
        let name = |name: &String| Name::new(name.as_bytes()).unwrap();
        let file = |(at, digest): &(String, Digest)| FileNode {
            name: name(at),
            digest: *digest,
            executable: false,
        };
        let inner =
            |(at, digest): &(String, Digest)| DirectoryNode { name: name(at), digest: *digest };
        let files = files.iter().map(file).collect();
        let directory = Directory::new(files, directories.iter().map(inner).collect(), vec![]);
        let (digest, bytes) = directory.unwrap().encode_with_digest(FUNCTION);
        assert_eq!(self.insert(&bytes), digest);
        digest
    }

    pub(crate) fn add_view(&self, view: u64, root: Digest) {
        self.send(&ToFs::AddView { view, root, properties: false });
        assert_eq!(self.event(), FromFs::ViewAdded { view });
    }

    pub(crate) fn drop_view(&self, view: u64) {
        self.send(&ToFs::DropView { view });
        let record = self.event();
        assert!(matches!(record, FromFs::Record { record: Some(_), .. }), "{record:?}");
    }

    pub(crate) fn stats(&self) -> Stats {
        self.send(&ToFs::Stats);
        match self.event() {
            FromFs::Stats(stats) => stats,
            other => panic!("not stats: {other:?}"),
        }
    }

    /// Processor time of the serving process, of all its threads.
    pub(crate) fn cpu(&self) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let nanoseconds = threads.map(|thread| {
            let text = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    fn send(&self, message: &ToFs) {
        (&self.control).write_all(&protocol::encode(message).unwrap()).unwrap();
    }

    fn event(&self) -> FromFs {
        self.events.recv_timeout(PATIENCE).expect("the file system says nothing")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _already_ended = self.child.kill();
        let _already_ended = self.child.wait();
    }
}

/// What the serving process does, until its stdin ends.
pub(crate) fn serve(folder: &Path) {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let [usual, passthrough, store] = PLACES.map(|place| folder.join(place));
    namespace::enter().unwrap();
    let usual = mount::mount(&usual).unwrap();
    let passthrough = Some(mount::mount(&passthrough).unwrap());
    server::run(control, Mounts { usual, passthrough }, FsConfig::new(store)).unwrap();
}

/// Everything that is wanted is in the store.
fn answer([mut from, mut to]: [UnixStream; 2], events: &Sender<FromFs>) {
    while let Ok(Some(message)) = protocol::read::<FromFs>(&mut from) {
        let FromFs::Want { request, .. } = message else {
            if events.send(message).is_err() {
                return;
            }
            continue;
        };
        let done = protocol::encode(&ToFs::WantDone { request, result: Ok(()) }).unwrap();
        if to.write_all(&done).is_err() {
            return;
        }
    }
}
