//! Data connections come to the address of the `Blobs` service: the first byte tells them from HTTP/2.
//!
//! Once connections are encrypted, the protocol that both sides agree on (ALPN) tells it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use distbuild_proto::transport::{Connection, Listener};
use futures::{Stream, StreamExt as _};
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::connection::PREFACE;

/// Connections that have not said yet what they are; beyond them, the one that has been silent longest is closed.
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
    let mut undecided = Undecided::default();
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
            let given_up = undecided.one_more();
            let (http, data, stop) = (http.clone(), data.clone(), stop.clone());
            tokio::spawn(async move {
                let first = tokio::time::timeout(FIRST_BYTE, first_byte(&connection));
                let first = tokio::select! {
                    first = stop.run_until_cancelled(first) => first,
                    _ = given_up => return,
                };
                let Some(Ok(Ok(first))) = first else { return };
                let side = if first == PREFACE[0] { data } else { http };
                // If nobody takes it, the worker is ending.
                let _ = side.send(connection).await;
            });
        }
    });
    (ReceiverStream::new(https).map(Ok), datas)
}

/// Connections whose first byte is waited for, oldest first.
#[derive(Default)]
struct Undecided {
    /// Closed when the connection has said what it is; dropped to give it up.
    waiting: VecDeque<oneshot::Sender<()>>,
}

impl Undecided {
    /// One more is waited for; what is returned resolves when it is given up.
    fn one_more(&mut self) -> oneshot::Receiver<()> {
        while self.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            self.waiting.pop_front();
        }
        if self.waiting.len() >= UNDECIDED {
            self.waiting.retain(|one| !one.is_closed());
        }
        if self.waiting.len() >= UNDECIDED {
            self.waiting.pop_front();
        }
        let (give_up, given_up) = oneshot::channel();
        self.waiting.push_back(give_up);
        given_up
    }
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

#[cfg(test)]
mod tests {
    use distbuild_proto::Address;
    use tokio::io::AsyncReadExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn silent_connections_give_way_to_new_ones_the_oldest_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&Address::Unix(path.clone())).await.unwrap();
        let stop = CancellationToken::new();
        let (_http, mut data) = sort(listener, stop.clone());
        let mut silent = Vec::new();
        for _ in 0..=UNDECIDED {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        let half = FIRST_BYTE / 2;
        let closed = tokio::time::timeout(half, silent[0].read(&mut [0])).await;
        assert_eq!(closed.expect("the oldest is closed before it has had its time").unwrap(), 0);
        let mut speaking = UnixStream::connect(&path).await.unwrap();
        speaking.write_all(&PREFACE).await.unwrap();
        let taken = tokio::time::timeout(half, data.recv()).await;
        assert!(taken.expect("who speaks is not kept waiting").is_some());
        stop.cancel();
    }

    #[test]
    fn only_the_silent_are_given_up() {
        let mut undecided = Undecided::default();
        let mut kept: Vec<_> = (0..UNDECIDED).map(|_| undecided.one_more()).collect();
        // One in the middle has said what it is, which makes room.
        drop(kept.remove(1));
        let _new = undecided.one_more();
        assert!(
            kept.iter_mut().all(|one| one.try_recv() == Err(oneshot::error::TryRecvError::Empty))
        );
        let _newer = undecided.one_more();
        assert_eq!(kept[0].try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
