//! A file system that is served as a worker's is: by a process of its own, over a store that has
//! everything. The agent is played here.
//!
//! The process is this program again, started with [`ARGUMENT`].

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_fs::collections::tree_name;
use distbuild_fs::contents::{BlobKind, WantError};
use distbuild_fs::mount::mount_in_namespace;
use distbuild_fs::protocol::{self, FromFs, ToFs};
use distbuild_fs::server::{self, FsConfig};
use distbuild_fs::{Message, MessageCounts, Mounts};
use distbuild_proto::{
    Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name, SymlinkNode,
};
use nix::unistd::Pid;

use crate::cpu;

/// How this program is told to be such a process; the mount point and the store follow.
pub(crate) const ARGUMENT: &str = "serve-mount";

const FUNCTION: DigestFunction = DigestFunction::Blake3;
/// How long the process may think.
const PATIENCE: Duration = Duration::from_secs(60);

/// The served file system, unmounted with this value.
pub(crate) struct Served {
    child: Child,
    control: UnixStream,
    events: Receiver<FromFs>,
    root: Digest,
    mount: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    /// Serves a copy of a directory.
    pub(crate) fn start(sources: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("distbuild-served-").tempdir().unwrap();
        let (mount, state) = (directory.path().join("mount"), directory.path().join("store"));
        fs::create_dir(&mount).unwrap();
        let store = DiskStore::open(StoreConfig::new(&state)).unwrap();
        let root = insert(&store, sources);
        let (control, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).args([&mount, &state]).stdin(OwnedFd::from(theirs));
        let child = command.spawn().unwrap();
        let (sender, events) = channel();
        let agent = [&control, &control].map(|stream| stream.try_clone().unwrap());
        std::thread::spawn(move || answer(agent, &store, &sender));
        let served = Self { child, control, events, root, mount, _directory: directory };
        assert!(matches!(served.event(), FromFs::Ready { .. }));
        served
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Seconds that the serving process has had a processor.
    pub(crate) fn cpu(&self) -> f64 {
        cpu::of_process(Pid::from_raw(self.pid().cast_signed()))
    }

    /// Messages of the kernel so far, those aside by which it forgets.
    pub(crate) fn messages(&self) -> u64 {
        self.send(&ToFs::Stats);
        let FromFs::Stats(stats) = self.event() else { panic!("not the statistics") };
        let counts: MessageCounts = stats.messages;
        counts.total() - counts.get(Message::Forget)
    }

    /// The whole tree, in the shared view.
    pub(crate) fn shared(&self) -> PathBuf {
        self.mount.join("tree").join(tree_name(&self.root))
    }

    /// The whole tree, in a new traced view.
    pub(crate) fn add_view(&self, view: u64) -> PathBuf {
        self.send(&ToFs::AddView { view, root: self.root, properties: false });
        assert_eq!(self.event(), FromFs::ViewAdded { view });
        self.mount.join("action").join(view.to_string())
    }

    pub(crate) fn drop_view(&self, view: u64) {
        self.send(&ToFs::DropView { view });
        let record = self.event();
        assert!(matches!(record, FromFs::Record { record: Some(_), .. }), "{record:?}");
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the serving process does, until its stdin ends.
pub(crate) fn serve(mount: &str, store: &str) {
    let control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let (usual, _) = mount_in_namespace(Path::new(mount)).unwrap();
    let mounts = Mounts { usual, passthrough: None };
    server::run(control, mounts, FsConfig::new(store.into())).unwrap();
}

/// Answers what the file system wants from the store; everything else is an event.
fn answer([mut from, mut to]: [UnixStream; 2], store: &DiskStore, events: &Sender<FromFs>) {
    while let Ok(Some(message)) = protocol::read::<FromFs>(&mut from) {
        let FromFs::Want { request, digest, kind, .. } = message else {
            if events.send(message).is_err() {
                return;
            }
            continue;
        };
        let executable = matches!(kind, BlobKind::File { executable: true });
        let found = store.prepare(&digest, executable);
        let result = found.map(drop).map_err(|error| WantError::Refused(error.to_string()));
        let done = protocol::encode(&ToFs::WantDone { request, result }).unwrap();
        if to.write_all(&done).is_err() {
            return;
        }
    }
}

/// Puts a directory with all below it into the store.
fn insert(store: &DiskStore, path: &Path) -> Digest {
    let (mut files, mut directories, mut symlinks) = (Vec::new(), Vec::new(), Vec::new());
    let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let name = Name::new(entry.file_name().as_encoded_bytes()).unwrap();
        if kind.is_dir() {
            directories.push(DirectoryNode { name, digest: insert(store, &path) });
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
            symlinks.push(SymlinkNode { name, target: Bytes::from(target) });
        } else {
            let bytes = fs::read(&path).unwrap();
            let executable = entry.metadata().unwrap().permissions().mode() & 0o100 != 0;
            let digest = FUNCTION.digest(&bytes);
            store.insert(&digest, &bytes, executable).unwrap();
            files.push(FileNode { name, digest, executable });
        }
    }
    let directory = Directory::new(files, directories, symlinks).unwrap();
    let (digest, bytes) = directory.encode_with_digest(FUNCTION);
    store.insert(&digest, &bytes, false).unwrap();
    digest
}
