//! `Transfer`: one blob on its way, shared by the threads that read from its holders.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use distbuild_cas::pieces::{PieceHashes, Pieces, ProofError};
use distbuild_cas::{DiskStore, PartialBlob, Put, PutError, StoreError};
use distbuild_fs::ranges::Ranges;
use distbuild_proto::{Digest, wire};
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::connection::{PREFACE, Socket};
use super::plan::{Next, Plan};
use super::{STALL, WINDOW};

/// What has come of a blob so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// The file that it is written to; none before the first holder has answered.
    pub path: Option<PathBuf>,
    /// What of the file may be read.
    pub readable: Ranges,
    /// Pieces that have come, readable or not.
    pub pieces: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Transfer {
    store: DiskStore,
    digest: Digest,
    executable: bool,
    pieces: Pieces,
    arrived: watch::Sender<Arrived>,
    partial: Mutex<Option<Arc<PartialBlob>>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    /// By holder, those that are being read from.
    sockets: BTreeMap<usize, Arc<Socket>>,
    /// Pieces that came first from this holder.
    brought: BTreeMap<usize, usize>,
    ended: bool,
    outcome: Option<Result<(), StoreError>>,
}

/// What the thread of a holder does next.
enum Step {
    Ask(usize),
    /// The first of what was asked for.
    Receive,
    /// This holder is not needed any more.
    Leave,
}

/// Why a holder is not read from any more.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// It cannot be reached, was silent for too long, or the connection broke.
    #[error("the connection failed: {0}")]
    Connection(#[from] io::Error),
    /// It closed the connection.
    #[error("it closed the connection")]
    Closed,
    /// It does not have the blob.
    #[error("it does not have the blob")]
    NotFound,
    /// It serves as many readers as it may.
    #[error("it serves as many readers as it may")]
    Busy,
    /// It has the blob but cannot send it; its own words.
    #[error("{0}")]
    Refused(String),
    /// It sent something else than it was asked for.
    #[error("it answered for piece {answered} with {bytes} bytes when asked for piece {asked}")]
    Protocol {
        /// The piece that was next.
        asked: usize,
        /// The piece that it named.
        answered: u32,
        /// The length that it named.
        bytes: u32,
    },
    /// Its piece hashes are not those of the blob.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// It sent other bytes.
    #[error("it sent wrong bytes: {0}")]
    Wrong(String),
    /// The store failed; not the holder's fault.
    #[error("the blob could not be stored")]
    Store,
}

impl HolderError {
    /// Whether another attempt with this holder is better left for later.
    pub fn is_distrusted(&self) -> bool {
        !matches!(self, Self::NotFound | Self::Busy | Self::Refused(_) | Self::Store)
    }
}

impl Transfer {
    /// Nothing happens before a holder is read from. What comes is told to `arrived`.
    pub fn new(
        store: DiskStore,
        digest: Digest,
        executable: bool,
        arrived: watch::Sender<Arrived>,
    ) -> Self {
        let pieces = Pieces::of(digest.size_bytes());
        // Two answers for one piece are only good if one can tell which is right.
        let stall = PieceHashes::exist_for(&digest).then_some(STALL);
        let state = State {
            plan: Plan::new(pieces.count(), stall),
            sockets: BTreeMap::new(),
            brought: BTreeMap::new(),
            ended: false,
            outcome: None,
        };
        Self {
            store,
            digest,
            executable,
            pieces,
            arrived,
            partial: Mutex::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// A reader waits for these bytes.
    pub fn hurry(&self, bytes: &Range<u64>) {
        self.state.lock().plan.hurry(self.pieces.touching(bytes));
    }

    /// Nobody waits any more: whoever reads from a holder returns.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        state.sockets.values().for_each(|socket| socket.shutdown());
        drop(state);
        self.changed.notify_all();
    }

    /// How it ended, if it has: whole and in the store, or not to be stored.
    pub(crate) fn take_outcome(&self) -> Option<Result<(), StoreError>> {
        self.state.lock().outcome.take()
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// How many pieces came first from a holder.
    pub(crate) fn brought_by(&self, holder: usize) -> usize {
        self.state.lock().brought.get(&holder).copied().unwrap_or_default()
    }

    /// Reads from one holder until nothing is left to do. Blocks.
    ///
    /// # Errors
    /// Why the holder is not read from any more; what it was asked for is asked of others.
    pub(crate) fn read_from(&self, holder: usize, socket: Socket) -> Result<(), HolderError> {
        let socket = Arc::new(socket);
        {
            let mut state = self.state.lock();
            if state.ended {
                return Ok(());
            }
            state.sockets.insert(holder, socket.clone());
        }
        let read = self.open(&socket).and_then(|partial| self.read(holder, &socket, &partial));
        let ended = {
            let mut state = self.state.lock();
            state.sockets.remove(&holder);
            state.plan.lost(holder);
            state.ended
        };
        self.changed.notify_all();
        // A socket that was shut down is no failure.
        if ended { Ok(()) } else { read }
    }

    fn open(&self, socket: &Socket) -> Result<Arc<PartialBlob>, HolderError> {
        let mut writer = socket;
        writer.write_all(&PREFACE)?;
        socket.send(&wire::OpenBlob { digest: Some(self.digest.into()) }, false)?;
        let opened: wire::BlobOpened = socket.receive()?.ok_or(HolderError::Closed)?;
        if opened.not_found {
            return Err(HolderError::NotFound);
        }
        if opened.busy {
            return Err(HolderError::Busy);
        }
        if !opened.error.is_empty() {
            return Err(HolderError::Refused(opened.error));
        }
        self.begin(&opened.piece_hashes)
    }

    /// The file, made when the first holder has shown that it knows the blob.
    fn begin(&self, piece_hashes: &[u8]) -> Result<Arc<PartialBlob>, HolderError> {
        let mut partial = self.partial.lock();
        if let Some(partial) = &*partial {
            return Ok(partial.clone());
        }
        let proof = match PieceHashes::exist_for(&self.digest) {
            true => Some(PieceHashes::prove(&self.digest, piece_hashes)?),
            false => None,
        };
        let begun = self
            .store
            .partial(self.digest, self.executable, proof)
            .map_err(|error| self.fail(error))?;
        let path = Some(begun.path().to_owned());
        self.arrived.send_replace(Arrived { path, ..Arrived::default() });
        Ok(partial.insert(Arc::new(begun)).clone())
    }

    fn read(
        &self,
        holder: usize,
        socket: &Socket,
        partial: &PartialBlob,
    ) -> Result<(), HolderError> {
        let mut asked = VecDeque::new();
        let mut buffer = vec![0; self.pieces.len(0)];
        loop {
            match self.next(holder, asked.len()) {
                Step::Ask(piece) => {
                    socket.send(&wire::AskPiece { piece: piece as u32 }, false)?;
                    asked.push_back(piece);
                }
                Step::Receive => {
                    let Some(piece) = asked.pop_front() else { return Ok(()) };
                    let bytes = &mut buffer[..self.pieces.len(piece)];
                    receive(socket, piece, bytes)?;
                    self.take(holder, partial, piece, bytes)?;
                }
                Step::Leave => return Ok(()),
            }
        }
    }

    /// Waits if there is nothing to ask for and nothing to receive.
    fn next(&self, holder: usize, asked: usize) -> Step {
        let mut state = self.state.lock();
        loop {
            if state.ended {
                return Step::Leave;
            }
            if asked >= WINDOW {
                return Step::Receive;
            }
            match state.plan.next(Instant::now(), holder, asked == 0) {
                Next::Ask(piece) => return Step::Ask(piece),
                Next::Whole => return Step::Leave,
                Next::Wait(_) if asked > 0 => return Step::Receive,
                Next::Wait(None) => self.changed.wait(&mut state),
                Next::Wait(Some(until)) => {
                    self.changed.wait_until(&mut state, until);
                }
            }
        }
    }

    fn take(
        &self,
        holder: usize,
        partial: &PartialBlob,
        piece: usize,
        bytes: &[u8],
    ) -> Result<(), HolderError> {
        if self.state.lock().plan.has(piece) {
            return Ok(());
        }
        match partial.put(piece, bytes) {
            Ok(Put::Taken) => {}
            // Another holder's answer is being written.
            Ok(Put::Known) => return Ok(()),
            Err(error @ PutError::Wrong { .. }) => {
                return Err(HolderError::Wrong(error.to_string()));
            }
            Err(PutError::Store(error)) => return Err(self.fail(error)),
        }
        self.arrived.send_modify(|arrived| {
            arrived.pieces += 1;
            if partial.is_readable() {
                arrived.readable.insert(self.pieces.range(piece));
            }
        });
        let whole = {
            let mut state = self.state.lock();
            state.plan.arrived(piece);
            *state.brought.entry(holder).or_default() += 1;
            state.plan.is_whole()
        };
        if whole {
            let stored = partial.commit();
            self.state.lock().outcome.get_or_insert(stored);
            self.end();
        } else {
            self.changed.notify_all();
        }
        Ok(())
    }

    /// The store failed: no holder can help.
    fn fail(&self, error: StoreError) -> HolderError {
        self.state.lock().outcome.get_or_insert(Err(error));
        self.end();
        HolderError::Store
    }
}

/// Receives a piece that was asked for.
fn receive(socket: &Socket, piece: usize, bytes: &mut [u8]) -> Result<(), HolderError> {
    let head: wire::PieceHead = socket.receive()?.ok_or(HolderError::Closed)?;
    if (head.piece as usize, head.size_bytes as usize) != (piece, bytes.len()) {
        let (answered, bytes) = (head.piece, head.size_bytes);
        return Err(HolderError::Protocol { asked: piece, answered, bytes });
    }
    Ok(socket.fill(bytes)?)
}
