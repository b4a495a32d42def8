//! Outputs that lie with workers, read through the coordinator into a store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::chunks::{Arrival, ChunkReceiver, ReceiveError};
use distbuild_cas::{Answers, DiskStore, FetchError, Filler, Source, StoreError, Want};
use distbuild_proto::transport::MAX_MESSAGE_BYTES;
use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::wire::read_request::Place;
use distbuild_proto::{Digest, Directory, TreeError, wire};
use futures::future::join_all;
use tonic::Status;
use tonic::transport::Channel;

use super::traffic::Traffic;

/// How long the coordinator may be silent in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// Blobs of one tree that are asked for at once.
const ASKED_AT_ONCE: usize = 4096;

/// The coordinator as a source of outputs. A blob's hint is the output tree that it belongs to.
#[derive(Debug)]
pub(crate) struct Outputs {
    blobs: BlobsClient<Channel>,
    traffic: Arc<Traffic>,
}

impl Outputs {
    pub(crate) fn new(channel: Channel, traffic: Arc<Traffic>) -> Self {
        let blobs = BlobsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { blobs, traffic }
    }

    /// Reads blobs of one tree; each is answered when it has come.
    async fn read(
        &self,
        tree: Option<Digest>,
        digests: Vec<Digest>,
        store: DiskStore,
        answers: &Answers,
    ) {
        let request = wire::ReadRequest {
            digests: digests.iter().map(|digest| (*digest).into()).collect(),
            place: tree.map(|tree| Place::OutputTree(tree.into())),
        };
        let receiver = ChunkReceiver::new(store, digests.clone());
        let answer = |Arrival { index, result }| {
            let digest = digests[index];
            answers.answer(&digest, result.map_err(|error| failed(digest, error)));
        };
        match self.receive(request, receiver, answer).await {
            Ok(left) => left.into_iter().for_each(|index| {
                answer(Arrival { index, result: Err(ReceiveError::Incomplete) });
            }),
            Err(error) => {
                // For those that have no answer yet.
                let source: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
                for digest in &digests {
                    let (digest, source) = (*digest, source.clone());
                    answers.answer(&digest, Err(FetchError::Source { digest, source }));
                }
            }
        }
    }

    /// Takes what comes; gives the blobs that did not.
    async fn receive(
        &self,
        request: wire::ReadRequest,
        mut receiver: ChunkReceiver,
        answer: impl Fn(Arrival),
    ) -> Result<Vec<usize>, ReadError> {
        let mut blobs = self.blobs.clone();
        let mut messages = within(blobs.read(request)).await?.into_inner();
        while let Some(message) = within(messages.message()).await? {
            let bytes = message.chunks.iter().map(|chunk| chunk.data.len()).sum();
            self.traffic.count_received(bytes);
            let taken = tokio::task::spawn_blocking(move || {
                let mut arrived = Vec::with_capacity(message.chunks.len());
                for chunk in &message.chunks {
                    arrived.extend(receiver.take(chunk)?);
                }
                Ok::<_, ReadError>((receiver, arrived))
            });
            let arrived;
            (receiver, arrived) = taken.await.map_err(|_| ReadError::Stopped)??;
            arrived.into_iter().for_each(&answer);
        }
        Ok(receiver.finish())
    }
}

async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, ReadError> {
    match tokio::time::timeout(SILENCE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(ReadError::Status(status.message().to_owned())),
        Err(_) => Err(ReadError::Silence),
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the coordinator refused: {0}")]
    Status(String),
    #[error("the coordinator was silent for {} s", SILENCE.as_secs())]
    Silence,
    #[error(transparent)]
    Protocol(#[from] distbuild_cas::chunks::ProtocolError),
    #[error("the client is shutting down")]
    Stopped,
}

fn failed(digest: Digest, error: ReceiveError) -> FetchError {
    match error {
        ReceiveError::NotFound => FetchError::NotFound(digest),
        ReceiveError::Store(error) => FetchError::Store { digest, source: Arc::new(error) },
        error => FetchError::Source { digest, source: Arc::new(error) },
    }
}

impl Source for Outputs {
    type Hint = Option<Digest>;

    async fn fetch(&self, wants: Vec<Want<Option<Digest>>>, store: &DiskStore, answers: Answers) {
        let mut by_tree: BTreeMap<Option<Digest>, Vec<Digest>> = BTreeMap::new();
        for want in wants {
            by_tree.entry(want.hint).or_default().push(want.digest);
        }
        let reads = by_tree
            .into_iter()
            .map(|(tree, digests)| self.read(tree, digests, store.clone(), &answers));
        join_all(reads).await;
    }
}

/// Why a tree could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchTreeError {
    /// A blob did not come.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A directory is none.
    #[error("{digest} is not a directory: {source}")]
    Directory { digest: Digest, source: TreeError },
}

impl FetchTreeError {
    /// Whether somebody would have to make the outputs again: nobody has them, or what came under
    /// their name is something else.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Fetch(FetchError::NotFound(_)) => true,
            Self::Fetch(FetchError::Store { source, .. }) => {
                matches!(**source, StoreError::Mismatch { .. } | StoreError::TooLong { .. })
            }
            _ => false,
        }
    }
}

/// Fetches what the store lacks of a tree, level by level; what it has already is not read again.
///
/// # Errors
/// The first blob that does not come.
pub(crate) async fn fetch_tree(
    filler: &Filler<Outputs>,
    root: Digest,
) -> Result<(), FetchTreeError> {
    let mut lease = filler.store().lease(&[root]);
    let mut level = vec![root];
    while !level.is_empty() {
        ensure(filler, root, &level).await?;
        let store = filler.store().clone();
        let children = tokio::task::spawn_blocking(move || children(&store, &level));
        let (directories, files) = children.await.map_err(|_| FetchError::Abandoned(root))??;
        lease.extend(&directories);
        lease.extend(&files);
        ensure(filler, root, &files).await?;
        level = directories;
    }
    Ok(())
}

async fn ensure(
    filler: &Filler<Outputs>,
    tree: Digest,
    digests: &[Digest],
) -> Result<(), FetchTreeError> {
    let want = |digest: &Digest| Want { digest: *digest, executable: false, hint: Some(tree) };
    for some in digests.chunks(ASKED_AT_ONCE) {
        for result in join_all(some.iter().map(|digest| filler.ensure(want(digest)))).await {
            result?;
        }
    }
    Ok(())
}

/// What lies in these directories.
fn children(
    store: &DiskStore,
    level: &[Digest],
) -> Result<(Vec<Digest>, Vec<Digest>), FetchTreeError> {
    let (mut directories, mut files) = (Vec::new(), Vec::new());
    for digest in level {
        let blob = store.read(digest)?;
        let directory = Directory::decode(digest.function(), &blob)
            .map_err(|source| FetchTreeError::Directory { digest: *digest, source })?;
        directories.extend(directory.directories().iter().map(|node| node.digest));
        files.extend(directory.files().iter().map(|node| node.digest));
    }
    for list in [&mut directories, &mut files] {
        list.sort_unstable();
        list.dedup();
    }
    Ok((directories, files))
}

#[cfg(test)]
mod tests {
    use distbuild_cas::StoreConfig;
    use distbuild_proto::DigestFunction;

    use super::*;

    /// What the build makes of bytes that came under the name of `digest`.
    fn received(data: &'static [u8], digest: Digest) -> Result<(), FetchTreeError> {
        let root = tempfile::tempdir().unwrap();
        let store = DiskStore::open(StoreConfig::new(root.path())).unwrap();
        let mut receiver = ChunkReceiver::new(store, vec![digest]);
        let chunk = wire::BlobChunk { data: data.into(), last: true, ..Default::default() };
        let arrival = receiver.take(&chunk).unwrap().unwrap();
        arrival.result.map_err(|error| failed(digest, error).into())
    }

    #[test]
    fn damaged_bytes_count_as_lost_and_a_failing_store_does_not() {
        let digest = DigestFunction::Blake3.digest(b"sound");
        received(b"sound", digest).unwrap();
        for data in [&b"sOund"[..], b"sound and more", b"so"] {
            assert!(received(data, digest).unwrap_err().is_lost());
        }
        let thread = ReceiveError::Store(StoreError::Thread);
        assert!(!FetchTreeError::from(failed(digest, thread)).is_lost());
        assert!(FetchTreeError::from(failed(digest, ReceiveError::NotFound)).is_lost());
    }
}
