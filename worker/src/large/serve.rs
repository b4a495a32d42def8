//! The holder's side of a data connection: pieces of one stored blob, straight from its file.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::pieces::Pieces;
use distbuild_cas::{DiskStore, StoreError};
use distbuild_proto::transport::Connection;
use distbuild_proto::{Digest, wire};
use tokio::sync::{Semaphore, mpsc};

use super::connection::{PREFACE, Socket};

/// Readers at once that are told that this worker is busy; what comes beyond them is closed without a word.
const REFUSALS: usize = 16;
/// How long a reader that is told so may take to say what it wants.
const REFUSAL_SILENCE: Duration = Duration::from_secs(2);

/// Serves data connections until the sender of them has gone. As many at once as `streams` permits: one
/// more is told so, and may read from elsewhere or come again. Each ends after `silence`.
pub async fn serve(
    mut connections: mpsc::Receiver<Connection>,
    store: DiskStore,
    streams: Arc<Semaphore>,
    silence: Duration,
) {
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    while let Some(connection) = connections.recv().await {
        let (permit, is_served) = match streams.clone().try_acquire_owned() {
            Ok(permit) => (permit, true),
            Err(_) => match refusals.clone().try_acquire_owned() {
                Ok(permit) => (permit, false),
                Err(_) => {
                    tracing::debug!("a data connection is closed: too many streams");
                    continue;
                }
            },
        };
        let store = store.clone();
        tokio::task::spawn_blocking(move || {
            let patience = if is_served { silence } else { silence.min(REFUSAL_SILENCE) };
            let served = Socket::from_async(connection, patience).and_then(|socket| {
                if is_served { serve_one(&socket, &store) } else { refuse(&socket) }
            });
            if let Err(error) = served {
                tracing::debug!(%error, "a data connection broke");
            }
            drop(permit);
        });
    }
}

/// What a reader wants; none if it has gone.
fn opened(socket: &Socket) -> io::Result<Option<Digest>> {
    let mut preface = [0; PREFACE.len()];
    socket.fill(&mut preface)?;
    if preface != PREFACE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some(open) = socket.receive::<wire::OpenBlob>()? else { return Ok(None) };
    match Digest::try_from(open.digest) {
        Ok(digest) => Ok(Some(digest)),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Hears a reader out before it answers: closed with bytes unread, the answer would be lost.
fn refuse(socket: &Socket) -> io::Result<()> {
    match opened(socket)? {
        Some(_) => socket.send(&wire::BlobOpened { busy: true, ..Default::default() }, false),
        None => Ok(()),
    }
}

fn serve_one(socket: &Socket, store: &DiskStore) -> io::Result<()> {
    let Some(digest) = opened(socket)? else { return Ok(()) };
    // Not evicted between the look and the last byte.
    let _lease = store.lease(&[digest]);
    let (hashes, file) = match open_stored(store, &digest) {
        Ok(opened) => opened,
        Err(error) => {
            if !error.is_missing() {
                tracing::warn!(blob.digest = %digest, %error, "failed to serve a blob");
            }
            let (not_found, error) = (error.is_missing(), error.to_string());
            let answer = wire::BlobOpened { error, not_found, ..Default::default() };
            return socket.send(&answer, false);
        }
    };
    let answer = wire::BlobOpened { piece_hashes: hashes.into(), ..Default::default() };
    socket.send(&answer, false)?;
    let pieces = Pieces::of(digest.size_bytes());
    while let Some(wire::AskPiece { piece }) = socket.receive()? {
        let range = pieces.range(piece as usize);
        if range.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let size_bytes = pieces.len(piece as usize) as u32;
        socket.send(&wire::PieceHead { piece, size_bytes }, true)?;
        socket.send_file(&file, range)?;
    }
    Ok(())
}

/// The hashes of the pieces, if there are such, and the verified file.
fn open_stored(store: &DiskStore, digest: &Digest) -> Result<(Vec<u8>, std::fs::File), StoreError> {
    let hashes = store.piece_hashes(digest)?;
    let file = store.open_bytes(digest)?;
    Ok((hashes.map(|hashes| hashes.to_bytes()).unwrap_or_default(), file))
}
