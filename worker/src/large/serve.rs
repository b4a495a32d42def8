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

/// Serves data connections until the sender of them has gone. As many at once as `streams` permits: one
/// more is closed, since there are other places to read from. Each ends after `silence`.
pub async fn serve(
    mut connections: mpsc::Receiver<Connection>,
    store: DiskStore,
    streams: Arc<Semaphore>,
    silence: Duration,
) {
    while let Some(connection) = connections.recv().await {
        let Ok(permit) = streams.clone().try_acquire_owned() else {
            tracing::debug!("a data connection is refused: too many streams");
            continue;
        };
        let store = store.clone();
        tokio::task::spawn_blocking(move || {
            let served = Socket::from_async(connection, silence)
                .and_then(|socket| serve_one(&socket, &store));
            if let Err(error) = served {
                tracing::debug!(%error, "a data connection broke");
            }
            drop(permit);
        });
    }
}

fn serve_one(socket: &Socket, store: &DiskStore) -> io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    socket.fill(&mut preface)?;
    if preface != PREFACE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some(open) = socket.receive::<wire::OpenBlob>()? else { return Ok(()) };
    let Ok(digest) = Digest::try_from(open.digest) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
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
