//! Data connections come to the address of the `Blobs` service: the first byte tells them from HTTP/2.
//!
//! Once connections are encrypted, the protocol that both sides agree on (ALPN) tells it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use distbuild_proto::transport::{Connection, Listener};
use futures::{Stream, StreamExt as _};
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::connection::PREFACE;

/// Connections that have not said yet what they are.
const UNDECIDED: usize = 256;
/// How long they may take to.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// Connections that wait to be taken up.
const WAITING: usize = 64;
/// Pause after a connection could not be accepted: the process may have no descriptor left.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Sorts what arrives until `stop` is cancelled: HTTP/2 on one side, data connections on the other.
pub(crate) fn sort(
    mut listener: Listener,
    stop: CancellationToken,
) -> (impl Stream<Item = io::Result<Connection>>, mpsc::Receiver<Connection>) {
    let ((http, https), (data, datas)) = (mpsc::channel(WAITING), mpsc::channel(WAITING));
    let undecided = Arc::new(Semaphore::new(UNDECIDED));
    tokio::spawn(async move {
        while let Some(Some(accepted)) = stop.run_until_cancelled(listener.next()).await {
            let connection = match accepted {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a peer's connection");
                    tokio::time::sleep(AFTER_FAILURE).await;
                    continue;
                }
            };
            let Ok(permit) = undecided.clone().acquire_owned().await else { return };
            let (http, data, stop) = (http.clone(), data.clone(), stop.clone());
            tokio::spawn(async move {
                let first = tokio::time::timeout(FIRST_BYTE, first_byte(&connection));
                let Some(Ok(Ok(first))) = stop.run_until_cancelled(first).await else { return };
                drop(permit);
                let side = if first == PREFACE[0] { data } else { http };
                // If nobody takes it, the worker is ending.
                let _ = side.send(connection).await;
            });
        }
    });
    (ReceiverStream::new(https).map(Ok), datas)
}

/// The first byte that will be read from a connection.
async fn first_byte(connection: &Connection) -> io::Result<u8> {
    let peek = |fd: RawFd| {
        let mut byte = [0];
        match recv(fd, &mut byte, MsgFlags::MSG_PEEK) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(byte[0]),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    match connection {
        Connection::Tcp(stream) => {
            stream.async_io(Interest::READABLE, || peek(stream.as_raw_fd())).await
        }
        Connection::Unix(stream) => {
            stream.async_io(Interest::READABLE, || peek(stream.as_raw_fd())).await
        }
    }
}
