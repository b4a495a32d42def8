//! Live stdout and stderr of an execution, for who reads its stream names.
//!
//! What a command prints is kept from the start, up to [`MAX_LOG_BYTES`] a stream, and goes with the operations
//! that name it. The whole text is in the store when the execution has ended, whatever was kept here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What one stream keeps, in bytes; the rest of a longer text is not served live.
const MAX_LOG_BYTES: usize = 1 << 20;
/// The longest piece that a reader gets, in bytes.
const MAX_PIECE_BYTES: usize = 64 << 10;
/// What all streams together keep, in bytes.
const MAX_TOTAL_BYTES: usize = 256 << 20;

/// The room that all logs share.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogRoom {
    used: Arc<AtomicUsize>,
}

/// One stream of one execution.
#[derive(Debug)]
pub(crate) struct Log {
    room: LogRoom,
    text: Mutex<Text>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct Text {
    data: Vec<u8>,
    full: bool,
    ended: bool,
}

impl LogRoom {
    /// An empty log.
    pub(crate) fn log(&self) -> Log {
        Log { room: self.clone(), text: Mutex::default(), grown: Notify::new() }
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= MAX_TOTAL_BYTES);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

impl Log {
    /// Adds what the command has printed; from the first piece for which there is no room, nothing more is kept.
    pub(crate) fn append(&self, piece: &[u8]) {
        let mut text = self.text.lock();
        if text.full || text.ended || piece.is_empty() {
            return;
        }
        if text.data.len() + piece.len() > MAX_LOG_BYTES || !self.room.take(piece.len()) {
            text.full = true;
            return;
        }
        text.data.extend_from_slice(piece);
        drop(text);
        self.grown.notify_waiters();
    }

    /// Nothing more comes.
    pub(crate) fn end(&self) {
        self.text.lock().ended = true;
        self.grown.notify_waiters();
    }

    /// The pieces from `offset` on, until the execution has ended.
    pub(crate) fn read(self: Arc<Self>, offset: usize) -> impl Stream<Item = Bytes> + Send {
        futures::stream::unfold((self, offset), |(log, offset)| async move {
            let piece = log.piece_from(offset).await?;
            let next = offset + piece.len();
            Some((piece, (log, next)))
        })
    }

    /// What is at `offset`, once something is; none if the execution has ended before.
    async fn piece_from(&self, offset: usize) -> Option<Bytes> {
        loop {
            let mut grown = std::pin::pin!(self.grown.notified());
            grown.as_mut().enable();
            {
                let text = self.text.lock();
                let rest = text.data.get(offset..).unwrap_or_default();
                if !rest.is_empty() {
                    return Some(Bytes::copy_from_slice(&rest[..rest.len().min(MAX_PIECE_BYTES)]));
                }
                if text.ended {
                    return None;
                }
            }
            grown.await;
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.text.get_mut().data.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn a_reader_gets_what_was_printed_and_what_comes_until_the_end() {
        let log = Arc::new(LogRoom::default().log());
        log.append(b"hello ");
        let mut reader = std::pin::pin!(log.clone().read(1));
        assert_eq!(reader.next().await.unwrap(), "ello ");
        assert!(reader.next().now_or_never().is_none());
        log.append(b"world");
        assert_eq!(reader.next().await.unwrap(), "world");
        log.end();
        assert!(reader.next().await.is_none());
        let again: Vec<_> = log.read(8).collect().await;
        assert_eq!(again, ["rld"]);
    }

    #[test]
    fn room_is_bounded_and_given_back() {
        let room = LogRoom::default();
        let mib = vec![0; 1 << 20];
        let logs: Vec<_> = (0..300)
            .map(|_| {
                let log = room.log();
                log.append(&mib);
                log.append(b"beyond");
                log
            })
            .collect();
        assert_eq!(room.used.load(Ordering::Relaxed), MAX_TOTAL_BYTES);
        drop(logs);
        assert_eq!(room.used.load(Ordering::Relaxed), 0);
    }
}
