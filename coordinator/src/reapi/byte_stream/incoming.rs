//! The messages of a `Write` call: checked one against the other, gathered into pieces.

use std::time::Duration;

use bazel_remote_apis::google::bytestream::WriteRequest;
use futures::{Stream, StreamExt};
use tonic::Status;

use super::WriteName;
use crate::reapi::status;

/// Size to which small messages are gathered before they are written.
pub(super) const PIECE_BYTES: usize = 512 << 10;
/// How long a client may be silent in the middle of a call. What it sent is kept for the next one.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// What a client sends in one `Write` call.
#[derive(Debug)]
pub(super) struct Incoming<S> {
    messages: S,
    text: String,
    /// What is written.
    pub(super) name: WriteName,
    /// Where the call began.
    pub(super) first_offset: u64,
    /// Bytes that have come in this call.
    pub(super) received_bytes: u64,
    /// A message that came while the piece before it was full.
    next: Option<WriteRequest>,
}

/// Bytes that follow each other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) data: Vec<u8>,
    pub(super) end: End,
}

/// What comes after a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    /// More.
    #[default]
    More,
    /// Nothing: the blob is whole.
    Finished,
    /// Nothing in this call.
    Broken,
}

impl<S: Stream<Item = Result<WriteRequest, Status>> + Unpin> Incoming<S> {
    /// Reads the first message.
    ///
    /// # Errors
    /// There is none; it names nothing that can be written; an offset below zero.
    pub(super) async fn begin(mut messages: S) -> Result<Self, Status> {
        let first = next(&mut messages).await?;
        let first = first.ok_or_else(|| status::invalid("the stream has no request"))?;
        let name = WriteName::parse(&first.resource_name)?;
        let first_offset = u64::try_from(first.write_offset)
            .map_err(|_| status::invalid(format!("a write_offset of {}", first.write_offset)))?;
        let text = first.resource_name.clone();
        let next = Some(first);
        Ok(Self { messages, text, name, first_offset, received_bytes: 0, next })
    }

    /// The next piece: about [`PIECE_BYTES`], or what is left.
    ///
    /// # Errors
    /// A message that does not continue the one before; a connection that broke.
    pub(super) async fn piece(&mut self) -> Result<Piece, Status> {
        let mut piece = Piece::default();
        loop {
            let message = match self.next.take() {
                Some(message) => message,
                None => match next(&mut self.messages).await? {
                    Some(message) => message,
                    None => return Ok(Piece { end: End::Broken, ..piece }),
                },
            };
            if !piece.data.is_empty() && piece.data.len() + message.data.len() > PIECE_BYTES {
                self.next = Some(message);
                return Ok(piece);
            }
            self.take(message, &mut piece)?;
            if piece.end == End::Finished {
                return Ok(piece);
            }
        }
    }

    fn take(&mut self, message: WriteRequest, piece: &mut Piece) -> Result<(), Status> {
        if !message.resource_name.is_empty() && message.resource_name != self.text {
            let other = message.resource_name;
            return Err(status::invalid(format!("the stream of {:?} names {other:?}", self.text)));
        }
        let expected = self.first_offset.checked_add(self.received_bytes);
        if expected.is_none() || u64::try_from(message.write_offset).ok() != expected {
            let text = format!(
                "write_offset {} after {} bytes from {} on",
                message.write_offset, self.received_bytes, self.first_offset
            );
            return Err(status::invalid(text));
        }
        self.received_bytes += message.data.len() as u64;
        match piece.data.is_empty() {
            true => piece.data = message.data,
            false => piece.data.extend_from_slice(&message.data),
        }
        if message.finish_write {
            piece.end = End::Finished;
        }
        Ok(())
    }

    /// Whether something came after the last message; does not wait.
    pub(super) fn continues(&mut self) -> bool {
        use futures::FutureExt;
        matches!(self.messages.next().now_or_never(), Some(Some(Ok(_))))
    }
}

async fn next<S: Stream<Item = Result<WriteRequest, Status>> + Unpin>(
    messages: &mut S,
) -> Result<Option<WriteRequest>, Status> {
    let message = tokio::time::timeout(MAX_SILENCE, messages.next()).await;
    message
        .map_err(|_| {
            let text = format!("nothing came for {} s", MAX_SILENCE.as_secs());
            Status::deadline_exceeded(text)
        })?
        .transpose()
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;
    use futures::stream;
    use proptest::prelude::*;

    use super::*;

    fn name() -> String {
        let hex = DigestFunction::Sha256.digest(b"x").hex();
        format!("i/uploads/u/blobs/{hex}/1")
    }

    fn message(name: &str, offset: i64, len: usize, finish: bool) -> WriteRequest {
        WriteRequest {
            resource_name: name.to_owned(),
            write_offset: offset,
            finish_write: finish,
            data: vec![7; len],
        }
    }

    /// The lengths of the pieces and the last end, or the code.
    async fn pieces(messages: Vec<WriteRequest>) -> Result<(Vec<usize>, End), tonic::Code> {
        let messages = stream::iter(messages.into_iter().map(Ok));
        let mut incoming = Incoming::begin(messages).await.map_err(|error| error.code())?;
        let mut lengths = Vec::new();
        loop {
            let piece = incoming.piece().await.map_err(|error| error.code())?;
            lengths.push(piece.data.len());
            if piece.end != End::More {
                return Ok((lengths, piece.end));
            }
        }
    }

    const INVALID: Result<(Vec<usize>, End), tonic::Code> = Err(tonic::Code::InvalidArgument);

    #[tokio::test]
    async fn the_name_stands_in_the_first_message_and_may_be_repeated_but_not_changed() {
        let name = name();
        let first = message(&name, 0, 3, false);
        let done = Ok((vec![5], End::Finished));
        assert_eq!(pieces(vec![first.clone(), message("", 3, 2, true)]).await, done);
        assert_eq!(pieces(vec![first.clone(), message(&name, 3, 2, true)]).await, done);
        let other = message(&format!("{name}/other"), 3, 2, true);
        assert_eq!(pieces(vec![first, other]).await, INVALID);
        assert_eq!(pieces(vec![message("", 0, 3, true)]).await, INVALID);
        assert_eq!(pieces(vec![]).await, INVALID);
    }

    #[tokio::test]
    async fn offsets_are_contiguous() {
        let name = name();
        for (first, second) in [(0, 2), (0, 4), (0, -1), (5, 3), (-1, 2), (i64::MAX, i64::MIN + 2)]
        {
            let messages = vec![message(&name, first, 3, false), message("", second, 2, true)];
            assert_eq!(pieces(messages).await, INVALID, "{first}, {second}");
        }
        let messages = vec![message(&name, 5, 3, false), message("", 8, 2, true)];
        assert_eq!(pieces(messages).await, Ok((vec![5], End::Finished)));
    }

    #[tokio::test]
    async fn small_messages_are_gathered_and_large_ones_stay_as_they_are() {
        let mut messages = vec![message(&name(), 0, 16 << 10, false)];
        for at in 1..64 {
            messages.push(message("", at << 14, 16 << 10, false));
        }
        messages.push(message("", 1 << 20, 3 << 20, false));
        let expected = vec![PIECE_BYTES, PIECE_BYTES, 3 << 20];
        assert_eq!(pieces(messages).await, Ok((expected, End::Broken)));
    }

    proptest! {
        #[test]
        fn no_sequence_of_messages_panics(
            messages in proptest::collection::vec((any::<bool>(), any::<i64>(), 0..9_usize, any::<bool>()), 0..5),
        ) {
            let name = name();
            let messages = messages.into_iter().map(|(named, offset, len, finish)| {
                message(if named { &name } else { "" }, offset, len, finish)
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let _ = runtime.unwrap().block_on(pieces(messages.collect()));
        }
    }
}
