//! Prefetch: what a command will probably read, brought before it asks.
//!
//! The coordinator names the paths that the command's last run looked up. Here they are followed in the new input
//! root, level by level: directories that are missing are brought, then the files that are found. All of it goes
//! the way of every other blob, verified into the store, but gives way to what is waited for
//! ([`Filler::fetch_ahead`]). It never passes through the view, so that nothing of it enters the access record;
//! no start waits for it; and what is not under way when the attempt ends is not fetched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use distbuild_cas::{Ahead, DiskStore, Filler, Want};
use distbuild_proto::action::Layout;
use distbuild_proto::{AccessRecord, Child, Digest, Directory, Name, Prediction, RelPath, wire};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use crate::fetch::{Hint, InputSource, Need};
use crate::inputs::{Inputs, Place};

/// Directories that are followed for one attempt.
const MAX_DIRECTORIES: usize = 16_384;

/// Fetches for attempts.
#[derive(Clone)]
pub(crate) struct Prefetcher {
    filler: Filler<InputSource>,
    max_bytes: u64,
}

impl std::fmt::Debug for Prefetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefetcher").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}

/// The files that are fetched ahead for one attempt.
#[derive(Debug, Default)]
pub(crate) struct Prefetched {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<Digest, File>,
    /// Nothing more is begun.
    ended: bool,
}

#[derive(Debug)]
struct File {
    ahead: Ahead,
    /// It was wanted while it was on its way.
    late: bool,
    from_client: bool,
}

/// What became of them, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) all: wire::PrefetchBytes,
    pub(crate) from_client: wire::PrefetchBytes,
}

impl Prefetched {
    /// Somebody waits for this blob.
    pub(crate) fn wanted(&self, digest: &Digest) {
        if let Some(file) = self.state.lock().files.get_mut(digest) {
            file.late |= !file.ahead.has_landed();
        }
    }

    /// This blob has come from a client.
    pub(crate) fn came_from_client(&self, digest: &Digest) {
        if let Some(file) = self.state.lock().files.get_mut(digest) {
            file.from_client = true;
        }
    }

    /// The attempt has ended: what has not been begun is not fetched any more.
    pub(crate) fn end(&self, record: Option<&AccessRecord>, prefetcher: &Prefetcher) -> Tally {
        let looked_up: HashSet<Digest> = record
            .map(|record| record.looked_up_files().map(|(_, digest, _)| digest).collect())
            .unwrap_or_default();
        let mut tally = Tally::default();
        let mut state = self.state.lock();
        state.ended = true;
        for (digest, file) in state.files.drain() {
            // What is on its way arrives, for nobody.
            if file.late || file.ahead.has_landed() || prefetcher.filler.is_under_way(&digest) {
                tally.count(&digest, &file, looked_up.contains(&digest));
            }
        }
        tally
    }
}

impl Tally {
    fn count(&mut self, digest: &Digest, file: &File, looked_up: bool) {
        let add = |bytes: &mut wire::PrefetchBytes| {
            *match (looked_up, file.late) {
                (false, _) => &mut bytes.wasted,
                (true, false) => &mut bytes.hit,
                (true, true) => &mut bytes.late,
            } += digest.size_bytes();
        };
        add(&mut self.all);
        if file.from_client {
            add(&mut self.from_client);
        }
    }
}

impl Prefetcher {
    /// At most `max_bytes` are fetched for one attempt.
    pub(crate) fn new(filler: Filler<InputSource>, max_bytes: u64) -> Self {
        Self { filler, max_bytes }
    }

    /// Fetches for an attempt what is foreseen for it, once that is known, until the handle is dropped.
    pub(crate) fn spawn(
        &self,
        foreseen: oneshot::Receiver<wire::Prefetch>,
        root: Digest,
        inputs: Arc<Inputs>,
    ) -> AbortOnDropHandle<()> {
        let prefetcher = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let Ok(prefetch) = foreseen.await else { return };
            let prediction = prefetch.prediction.unwrap_or_default();
            match Prediction::from_wire(&prediction) {
                Ok(prediction) => {
                    let run = Run {
                        client_bytes: prefetch.client_bytes,
                        bytes: prefetcher.max_bytes,
                        directories: MAX_DIRECTORIES,
                        filler: prefetcher.filler,
                        inputs,
                    };
                    run.follow(&prediction, root).await;
                }
                Err(error) => tracing::warn!(%error, "the coordinator's prediction is unusable"),
            }
        }))
    }
}

/// One attempt's fetching; the numbers are what it may still fetch.
struct Run {
    filler: Filler<InputSource>,
    inputs: Arc<Inputs>,
    bytes: u64,
    client_bytes: u64,
    directories: usize,
}

/// Predicted names below one directory.
#[derive(Debug, Default)]
struct Names {
    /// It is predicted itself, as a file.
    file: bool,
    below: BTreeMap<Box<[u8]>, Names>,
}

/// A directory that is to be looked into.
struct Visit {
    path: RelPath,
    digest: Digest,
    names: Names,
}

/// A file that is to be fetched.
struct Found {
    place: Place,
    digest: Digest,
    executable: bool,
}

impl Names {
    fn of(prediction: &Prediction) -> Self {
        let mut root = Self::default();
        for path in &prediction.directories {
            root.entry(path);
        }
        for path in &prediction.files {
            root.entry(path).file = true;
        }
        root
    }

    fn entry(&mut self, path: &RelPath) -> &mut Self {
        path.components().fold(self, |names, name| names.below.entry(name.into()).or_default())
    }
}

impl Run {
    async fn follow(mut self, prediction: &Prediction, root: Digest) {
        let names = Names::of(prediction);
        let mut level = vec![Visit { path: RelPath::root(), digest: root, names }];
        while !level.is_empty() {
            level.truncate(self.directories);
            self.directories -= level.len();
            self.bring_directories(&level).await;
            let (store, layout) = (self.filler.store().clone(), self.inputs.layout);
            let looked = tokio::task::spawn_blocking(move || look_into(&store, level, layout));
            let Ok((files, next)) = looked.await else { return };
            self.begin(files);
            level = next;
        }
    }

    /// Directories of one level, together. One that does not come leads nowhere.
    async fn bring_directories(&self, level: &[Visit]) {
        let digests: Vec<Digest> = level.iter().map(|visit| visit.digest).collect();
        self.inputs.keep(&digests);
        let want = |visit: &Visit, need| {
            let place = self.inputs.place(&visit.path);
            let hint = Hint { inputs: self.inputs.clone(), place, directory: true, need };
            Want { digest: visit.digest, executable: false, hint }
        };
        let ahead = Need::Ahead { spare_client: false };
        let begun = self.filler.fetch_ahead(level.iter().map(|visit| want(visit, ahead)).collect());
        let mut begun: FuturesUnordered<_> =
            begun.into_iter().map(|mut ahead| async move { ahead.landed().await }).collect();
        while begun.next().await.is_some() {}
        // The command itself may have been first; and a directory is looked into whatever it reads.
        let left = level.iter().filter(|visit| !self.filler.store().contains(&visit.digest));
        let mut left: FuturesUnordered<_> =
            left.map(|visit| self.filler.ensure(want(visit, Need::Now))).collect();
        while left.next().await.is_some() {}
    }

    /// Begins to fetch files, as far as the attempt's share allows.
    fn begin(&mut self, files: Vec<Found>) {
        let mut wants = Vec::new();
        for file in files {
            let size = file.digest.size_bytes();
            if size == 0 || self.filler.store().contains(&file.digest) {
                continue;
            }
            let Some(left) = self.bytes.checked_sub(size) else { continue };
            self.bytes = left;
            let allowed = self.client_bytes.checked_sub(size);
            let spare_client = file.place == Place::Source && allowed.is_none();
            if file.place == Place::Source {
                self.client_bytes = allowed.unwrap_or(self.client_bytes);
            }
            let hint = Hint {
                inputs: self.inputs.clone(),
                place: file.place,
                directory: false,
                need: Need::Ahead { spare_client },
            };
            wants.push(Want { digest: file.digest, executable: file.executable, hint });
        }
        let digests: Vec<Digest> = wants.iter().map(|want| want.digest).collect();
        self.inputs.keep(&digests);
        // Locked over the start, so that each is known before it can come.
        let mut state = self.inputs.prefetched.state.lock();
        if state.ended {
            return;
        }
        for ahead in self.filler.fetch_ahead(wants) {
            state.files.insert(ahead.digest(), File { ahead, late: false, from_client: false });
        }
    }
}

/// What the predicted names are in directories that have come. Blocks on the disk.
fn look_into(store: &DiskStore, level: Vec<Visit>, layout: Layout) -> (Vec<Found>, Vec<Visit>) {
    let (mut files, mut next) = (Vec::new(), Vec::new());
    for visit in level {
        let Ok(blob) = store.read(&visit.digest) else { continue };
        let Ok(directory) = Directory::decode(visit.digest.function(), &blob) else { continue };
        for (name, names) in visit.names.below {
            match directory.get(&name) {
                Some(Child::File(file)) if names.file => files.push(Found {
                    place: Place::of(&visit.path, layout),
                    digest: file.digest,
                    executable: file.executable,
                }),
                Some(Child::Directory(child)) if !names.below.is_empty() || !names.file => {
                    let Ok(name) = Name::new(&name) else { continue };
                    let path = visit.path.join(&name);
                    next.push(Visit { path, digest: child.digest, names });
                }
                // Another kind than it was, or gone: the prediction is wrong here.
                _ => {}
            }
        }
    }
    (files, next)
}

#[cfg(test)]
mod tests {
    use distbuild_cas::StoreConfig;
    use distbuild_proto::{DigestFunction, DirectoryNode, FileNode};

    use super::*;

    const FUNCTION: DigestFunction = DigestFunction::Blake3;

    fn name(name: &str) -> Name {
        Name::new(name.as_bytes()).unwrap()
    }

    fn path(path: &str) -> RelPath {
        RelPath::new(path.as_bytes()).unwrap()
    }

    fn insert(store: &DiskStore, files: &[&str], directories: &[(&str, Digest)]) -> Digest {
        let file = |file: &&str| FileNode {
            name: name(file),
            digest: FUNCTION.digest(file.as_bytes()),
            executable: false,
        };
        let directory =
            |(child, digest): &(&str, Digest)| DirectoryNode { name: name(child), digest: *digest };
        let files = files.iter().map(file).collect();
        let directories = directories.iter().map(directory).collect();
        let (digest, blob) =
            Directory::new(files, directories, vec![]).unwrap().encode_with_digest(FUNCTION);
        store.insert(&digest, &blob, false).unwrap();
        digest
    }

    #[test]
    fn names_are_followed_as_far_as_they_are_what_they_were() {
        let scratch = tempfile::tempdir().unwrap();
        let store = DiskStore::open(StoreConfig::new(scratch.path())).unwrap();
        let include = insert(&store, &["a.h"], &[]);
        let source = insert(&store, &["main.c", "now-a-file"], &[("include", include)]);
        let root = insert(&store, &[], &[("src", source)]);
        let prediction = Prediction {
            files: [
                "src/gone.c",
                "src/include/a.h",
                "src/include/b.h",
                "src/main.c",
                "src/now-a-file/x",
            ]
            .map(path)
            .to_vec(),
            directories: vec![path("src")],
        };
        let names = Names::of(&prediction);
        let visit = Visit { path: RelPath::root(), digest: root, names };
        let (files, next) = look_into(&store, vec![visit], Layout::Native);
        assert!(files.is_empty());
        assert_eq!(next.iter().map(|visit| &visit.path).collect::<Vec<_>>(), [&path("src")]);
        let (files, next) = look_into(&store, next, Layout::Native);
        let digests: Vec<_> = files.iter().map(|file| file.digest).collect();
        assert_eq!(digests, [FUNCTION.digest(b"main.c")]);
        assert!(files.iter().all(|file| file.place == Place::Source));
        let (files, next) = look_into(&store, next, Layout::Native);
        let digests: Vec<_> = files.iter().map(|file| file.digest).collect();
        assert_eq!(digests, [FUNCTION.digest(b"a.h")]);
        assert!(next.is_empty());
    }
}
