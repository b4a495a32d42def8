//! A job's stdout or stderr: passed on while it comes, and kept whole.
//!
//! What is kept stays in memory up to a size, then moves to a file of the action's directory, which
//! becomes a blob. Beyond a maximum the job is not read any more, and whoever watches it is told.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use distbuild_cas::{DiskStore, StoreError};
use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::{Digest, DigestFunction, wire};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::outbox::{Epoch, Outbox};

/// Largest piece that is read and passed on at once, in bytes.
const PIECE_BYTES: usize = 32 << 10;

/// Where a stream goes while it comes.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) outbox: Outbox,
    pub(crate) epoch: Epoch,
    pub(crate) attempt: u64,
    pub(crate) stderr: bool,
}

/// How much is kept, and where.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    /// In memory up to so many bytes.
    pub(crate) inline_bytes: usize,
    /// Altogether at most.
    pub(crate) max_bytes: u64,
    /// The file for more than fits into memory.
    pub(crate) spool: PathBuf,
}

/// What a stream was.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    memory: BytesMut,
    spool: Option<PathBuf>,
}

/// Reads a stream to its end. `overflow` is cancelled when it is longer than may be kept; the rest is not
/// read.
///
/// # Errors
/// The pipe or the spool file failed.
pub(crate) async fn capture(
    mut pipe: pipe::Receiver,
    live: Live,
    keep: Keep,
    overflow: CancellationToken,
) -> io::Result<Captured> {
    let mut captured = Captured::default();
    let mut spool: Option<File> = None;
    let mut total = 0_u64;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE_BYTES);
        let mut limited = (&mut pipe).take(PIECE_BYTES as u64);
        if limited.read_buf(&mut buffer).await? == 0 {
            break;
        }
        let piece = buffer.split().freeze();
        total += piece.len() as u64;
        if total > keep.max_bytes {
            overflow.cancel();
            break;
        }
        captured.add(&piece, &keep, &mut spool).await?;
        live.pass_on(piece).await;
    }
    if let Some(mut spool) = spool {
        spool.flush().await?;
    }
    Ok(captured)
}

impl Live {
    async fn pass_on(&self, data: Bytes) {
        let output = wire::AttemptOutput { attempt: self.attempt, stderr: self.stderr, data };
        self.outbox.send_live(self.epoch, Body::AttemptOutput(output)).await;
    }
}

impl Captured {
    async fn add(&mut self, piece: &[u8], keep: &Keep, spool: &mut Option<File>) -> io::Result<()> {
        if let Some(spool) = spool {
            return spool.write_all(piece).await;
        }
        self.memory.extend_from_slice(piece);
        if self.memory.len() > keep.inline_bytes {
            let mut file = File::create_new(&keep.spool).await?;
            file.write_all(&std::mem::take(&mut self.memory)).await?;
            self.spool = Some(keep.spool.clone());
            *spool = Some(file);
        }
        Ok(())
    }

    /// Adds a line of the worker's own.
    ///
    /// # Errors
    /// The spool file failed.
    pub(crate) fn add_line(&mut self, line: &str) -> io::Result<()> {
        use std::io::Write as _;
        let line = format!("distbuild: {line}\n");
        match &self.spool {
            Some(spool) => {
                std::fs::OpenOptions::new().append(true).open(spool)?.write_all(line.as_bytes())
            }
            None => {
                self.memory.extend_from_slice(line.as_bytes());
                Ok(())
            }
        }
    }

    /// What goes into the result; a long stream becomes a blob. Blocks on the disk.
    ///
    /// # Errors
    /// The store has no room, or the disk failed.
    pub(crate) fn store(
        self,
        store: &DiskStore,
        function: DigestFunction,
    ) -> Result<Stored, StoreError> {
        let Some(spool) = self.spool else { return Ok(Stored::Inline(self.memory.freeze())) };
        Ok(Stored::Blob(store.hash_and_adopt(Path::new(&spool), function, false)?))
    }
}

/// A stream in its final place.
#[derive(Debug)]
pub(crate) enum Stored {
    /// In the result.
    Inline(Bytes),
    /// In the store.
    Blob(Digest),
}

impl Stored {
    /// The blob, if it is one.
    pub(crate) fn blob(&self) -> Option<Digest> {
        match self {
            Self::Inline(_) => None,
            Self::Blob(digest) => Some(*digest),
        }
    }
}

impl From<Stored> for wire::Content {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Inline(inline) => Self { inline, blob: None },
            Stored::Blob(digest) => Self { inline: Bytes::new(), blob: Some(digest.into()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(stderr: bool) -> Live {
        let (outbox, _queued) = Outbox::new();
        let epoch = outbox.epoch();
        Live { outbox, epoch, attempt: 1, stderr }
    }

    async fn captured(text: &[u8], keep: &Keep) -> (Captured, bool) {
        let (mut sender, receiver) = pipe::pipe().unwrap();
        let overflow = CancellationToken::new();
        let reading = tokio::spawn(capture(receiver, live(false), keep.clone(), overflow.clone()));
        // Fails when the reader has seen enough.
        let _ = sender.write_all(text).await;
        drop(sender);
        (reading.await.unwrap().unwrap(), overflow.is_cancelled())
    }

    #[tokio::test]
    async fn a_short_stream_is_inline_and_a_long_one_a_blob() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(distbuild_cas::StoreConfig::new(dir.path().join("s"))).unwrap();
        let keep = Keep { inline_bytes: 10, max_bytes: 1 << 20, spool: dir.path().join("stdout") };
        let (short, _) = captured(b"0123456789", &keep).await;
        let stored = short.store(&store, DigestFunction::Blake3).unwrap();
        assert!(matches!(stored, Stored::Inline(text) if &text[..] == b"0123456789"));

        let text = vec![b'x'; 200_000];
        let (mut long, overflow) = captured(&text, &keep).await;
        assert!(!overflow);
        long.add_line("end").unwrap();
        let stored = long.store(&store, DigestFunction::Blake3).unwrap();
        let blob = store.read(&stored.blob().unwrap()).unwrap();
        assert_eq!(blob, [&text[..], b"distbuild: end\n"].concat());
    }

    #[tokio::test]
    async fn more_than_the_maximum_is_an_overflow() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep { inline_bytes: 10, max_bytes: 100_000, spool: dir.path().join("stdout") };
        let (_, overflow) = captured(&vec![b'x'; 400_000], &keep).await;
        assert!(overflow);
    }
}
