//! The agent's side of the file-system process: views and what it asks for.
//!
//! One task reads, one writes. What the file system reports of a view is applied by the reading task in the
//! order of arrival, so a failed read is known before the answer to the view's end is.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distbuild_fs::WantError;
use distbuild_fs::contents::BlobKind;
use distbuild_fs::protocol::{self, FRAME_LIMIT, FromFs, ProtocolError, Recorded, ToFs};
use distbuild_fs::ranges::Ranges;
use distbuild_proto::{AccessRecord, Digest, RelPath};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::large::Demands;

/// Messages that wait to be written.
const OUTGOING_MESSAGES: usize = 1024;
/// Failures of one view that are kept; a command may go on reading what fails.
const MAX_FAILURES: usize = 1024;
/// Blobs that are wanted and were not taken up yet.
const WAITING_WANTS: usize = 1024;

/// A connection to the file system. Clones are one connection; it ends when `lost` is cancelled.
#[derive(Clone, Debug)]
pub(crate) struct FsClient {
    outgoing: mpsc::Sender<ToFs>,
    views: Arc<Mutex<HashMap<u64, View>>>,
    last_view: Arc<AtomicU64>,
    no_passthrough: Option<Arc<str>>,
    demands: Demands,
    lost: CancellationToken,
}

/// What is known of a view.
#[derive(Debug, Default)]
struct View {
    added: Option<oneshot::Sender<Result<(), String>>>,
    dropped: Option<oneshot::Sender<DroppedView>>,
    failures: Vec<Failure>,
    failed: CancellationToken,
}

/// A view that was added.
#[derive(Clone, Debug)]
pub(crate) struct AddedView {
    /// Its name below `action` in the mount.
    pub(crate) number: u64,
    /// Cancelled when the view's processes may have seen a read fail.
    pub(crate) failed: CancellationToken,
}

/// A view's contents could not be read.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) digest: Digest,
    pub(crate) reason: WantError,
}

impl View {
    fn fail(&mut self, failure: Failure) {
        if self.failures.len() < MAX_FAILURES {
            self.failures.push(failure);
        }
        self.failed.cancel();
    }
}

/// What is left of a view.
#[derive(Debug)]
pub(crate) struct DroppedView {
    /// What was looked at; none if the file system did not know the view.
    pub(crate) record: Option<AccessRecord>,
    /// What the view's processes may have seen fail.
    pub(crate) failures: Vec<Failure>,
}

/// A blob that the file system needs now.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) request: u64,
    pub(crate) digest: Digest,
    pub(crate) kind: BlobKind,
    pub(crate) views: Vec<u64>,
    pub(crate) hint: RelPath,
}

/// Why the file system does not do what it is asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum FsError {
    /// The process is gone, and every view with it.
    #[error("the file-system process is gone")]
    Lost,
    /// It does not want the view; its own words.
    #[error("the file system refused a view: {0}")]
    Refused(String),
}

impl FsClient {
    /// Waits until the file system serves; what it wants from then on comes out of the receiver.
    /// `lost` ends the connection, and is cancelled by its end.
    ///
    /// # Errors
    /// The process ends or breaks the protocol before it serves.
    pub(crate) async fn connect(
        socket: StdStream,
        lost: CancellationToken,
    ) -> Result<(Self, mpsc::Receiver<Wanted>), ProtocolError> {
        socket.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(socket)?.into_split();
        let mut reader = BufReader::new(reader);
        let Some(FromFs::Ready { no_passthrough }) = read(&mut reader).await? else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        };
        let (outgoing, messages) = mpsc::channel(OUTGOING_MESSAGES);
        let (wants, wanted) = mpsc::channel(WAITING_WANTS);
        let client = Self {
            outgoing,
            views: Arc::default(),
            last_view: Arc::default(),
            no_passthrough: no_passthrough.map(Arc::from),
            demands: Demands::default(),
            lost,
        };
        tokio::spawn(write_all(writer, messages, client.lost.clone()));
        tokio::spawn(client.clone().read_all(reader, wants));
        Ok((client, wanted))
    }

    /// Why large files cannot be read by passthrough; `None` if they can.
    pub(crate) fn no_passthrough(&self) -> Option<&str> {
        self.no_passthrough.as_deref()
    }

    /// Shows a tree at `action/<number>` of the mounts.
    ///
    /// # Errors
    /// The process is gone or refuses.
    pub(crate) async fn add_view(
        &self,
        root: Digest,
        properties: bool,
    ) -> Result<AddedView, FsError> {
        let number = self.last_view.fetch_add(1, Ordering::Relaxed) + 1;
        let (added, answer) = oneshot::channel();
        let view = View { added: Some(added), ..View::default() };
        let failed = view.failed.clone();
        self.views.lock().insert(number, view);
        self.send(ToFs::AddView { view: number, root, properties }).await?;
        let answer = self.answer(answer).await?;
        answer.map_err(|reason| {
            self.views.lock().remove(&number);
            FsError::Refused(reason)
        })?;
        Ok(AddedView { number, failed })
    }

    /// Fails what the view's processes wait for, so that they can die.
    pub(crate) async fn fail_view(&self, view: u64) -> Result<(), FsError> {
        self.send(ToFs::FailView { view }).await
    }

    /// Ends a view whose processes have ended.
    ///
    /// # Errors
    /// The process is gone.
    pub(crate) async fn drop_view(&self, view: u64) -> Result<DroppedView, FsError> {
        let (dropped, answer) = oneshot::channel();
        if let Some(known) = self.views.lock().get_mut(&view) {
            known.dropped = Some(dropped);
        }
        self.send(ToFs::DropView { view }).await?;
        self.answer(answer).await
    }

    /// Answers a [`Wanted`].
    pub(crate) async fn want_done(&self, request: u64, result: Result<(), WantError>) {
        // If the process is gone, nobody waits for the answer.
        let _ = self.send(ToFs::WantDone { request, result }).await;
    }

    /// Tells what has come of a [`Wanted`] blob so far.
    pub(crate) async fn arriving(&self, request: u64, path: PathBuf, readable: Ranges) {
        let _ = self.send(ToFs::Arriving { request, path, readable }).await;
    }

    /// Which reads wait for parts of a [`Wanted`] blob.
    pub(crate) fn demands(&self) -> &Demands {
        &self.demands
    }

    /// Returns when the process is gone.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether the process is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    async fn send(&self, message: ToFs) -> Result<(), FsError> {
        tokio::select! {
            sent = self.outgoing.send(message) => sent.map_err(|_| FsError::Lost),
            () = self.lost.cancelled() => Err(FsError::Lost),
        }
    }

    async fn answer<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, FsError> {
        tokio::select! {
            answer = answer => answer.map_err(|_| FsError::Lost),
            () = self.lost.cancelled() => Err(FsError::Lost),
        }
    }

    async fn read_all(self, mut reader: BufReader<OwnedReadHalf>, wants: mpsc::Sender<Wanted>) {
        let lost = self.lost.clone();
        let ended = tokio::select! {
            ended = self.serve(&mut reader, &wants) => ended,
            () = lost.cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            tracing::error!(%error, "failed to read from the file-system process");
        }
        self.lost.cancel();
        // Whoever waits for an answer learns that none comes.
        self.views.lock().clear();
    }

    async fn serve(
        &self,
        reader: &mut BufReader<OwnedReadHalf>,
        wants: &mpsc::Sender<Wanted>,
    ) -> Result<(), ProtocolError> {
        while let Some(message) = read(reader).await? {
            match message {
                FromFs::Want { request, digest, kind, views, hint } => {
                    let wanted = Wanted { request, digest, kind, views, hint };
                    if wants.send(wanted).await.is_err() {
                        return Ok(());
                    }
                }
                FromFs::ViewAdded { view } => self.added(view, Ok(())),
                FromFs::ViewRefused { view, reason } => self.added(view, Err(reason)),
                FromFs::ReadFailed { digest, views, reason } => {
                    let mut known = self.views.lock();
                    for view in views {
                        if let Some(view) = known.get_mut(&view) {
                            view.fail(Failure { digest, reason: reason.clone() });
                        }
                    }
                }
                FromFs::Reads { request, bytes } => self.demands.tell(request, bytes),
                FromFs::Record { view, record } => self.dropped(view, record),
                FromFs::Ready { .. } | FromFs::Stats(_) => {}
            }
        }
        Ok(())
    }

    fn added(&self, view: u64, answer: Result<(), String>) {
        let added = self.views.lock().get_mut(&view).and_then(|view| view.added.take());
        if let Some(added) = added {
            // Whoever asked may have been cancelled.
            let _ = added.send(answer);
        }
    }

    fn dropped(&self, view: u64, record: Option<Recorded>) {
        let Some(view) = self.views.lock().remove(&view) else { return };
        if let Some(dropped) = view.dropped {
            let record = record.map(|Recorded(record)| record);
            let _ = dropped.send(DroppedView { record, failures: view.failures });
        }
    }
}

async fn read(reader: &mut BufReader<OwnedReadHalf>) -> Result<Option<FromFs>, ProtocolError> {
    let len = match reader.read_u32().await {
        Ok(len) => len as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if len > FRAME_LIMIT {
        return Err(ProtocolError::TooLong(len));
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).await?;
    protocol::decode(&body).map(Some)
}

async fn write_all(
    mut writer: OwnedWriteHalf,
    mut messages: mpsc::Receiver<ToFs>,
    lost: CancellationToken,
) {
    let write = async {
        while let Some(message) = messages.recv().await {
            let frame = protocol::encode(&message)?;
            writer.write_all(&frame).await?;
        }
        Ok::<_, ProtocolError>(())
    };
    let ended = tokio::select! {
        ended = write => ended,
        () = lost.cancelled() => Ok(()),
    };
    if let Err(error) = ended {
        tracing::error!(%error, "failed to write to the file-system process");
    }
    lost.cancel();
}
