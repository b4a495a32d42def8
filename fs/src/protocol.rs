//! What the agent and its file-system process say to each other, over a unix stream socket.
//!
//! A frame is a length (4 bytes, big-endian) and a message in postcard's encoding. Both ends are the
//! same program, so there are no versions. The functions here are pure; each end brings its own
//! reading and writing. The framing is that of tokio-util's `LengthDelimitedCodec` by default, with
//! its limit set to [`FRAME_LIMIT`].

use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;

use distbuild_proto::{AccessRecord, Digest, RelPath};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::contents::{BlobKind, WantError};
use crate::messages::MessageCounts;
use crate::ranges::Ranges;

/// Longest message in bytes: a record at its limits, with room.
pub const FRAME_LIMIT: usize = 64 << 20;

/// From the agent to the file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToFs {
    /// Show a tree at `/action/<view>`. Answered by `ViewAdded` or `ViewRefused`.
    AddView {
        /// A number that was never used before.
        view: u64,
        /// The `Directory` at the root.
        #[serde(with = "codec::digest")]
        root: Digest,
        /// Whether directories in it may have node properties, which are then shown.
        properties: bool,
    },
    /// Before a view's processes are killed: what they wait for fails now, so that they can die.
    /// Requests that also serve another view stay, up to their deadline.
    FailView {
        /// The view.
        view: u64,
    },
    /// A view's processes have ended. Fails what is left and is answered by `Record`; the kernel
    /// forgets the view a little later.
    DropView {
        /// The view.
        view: u64,
    },
    /// The answer to a `Want`.
    WantDone {
        /// The number in the `Want`.
        request: u64,
        /// In the store, whole and verified; or why not.
        result: Result<(), WantError>,
    },
    /// The blob of a `Want` is on its way, and some of it can be read. Comes as often as there is more;
    /// the time that the blob may take begins anew each time.
    Arriving {
        /// The number in the `Want`.
        request: u64,
        /// The file that it is written to.
        path: PathBuf,
        /// What of the file is verified.
        readable: Ranges,
    },
    /// Answered by `FromFs::Stats`.
    Stats,
}

/// From the file system to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromFs {
    /// The mounts answer.
    Ready {
        /// Why large files are read through this process; `None` if the kernel reads them from the store.
        no_passthrough: Option<String>,
    },
    /// The view can be used.
    ViewAdded {
        /// The view.
        view: u64,
    },
    /// The view was not added.
    ViewRefused {
        /// The view.
        view: u64,
        /// Why.
        reason: String,
    },
    /// Bring a blob into the store and keep it there as long as these views exist; answered by
    /// `WantDone`, else it fails after the file system's own deadline. Comes again, under another
    /// number, when further views come to wait; the first answer counts.
    Want {
        /// Names the answer.
        request: u64,
        /// The blob.
        #[serde(with = "codec::digest")]
        digest: Digest,
        /// What it is used as.
        kind: BlobKind,
        /// Who looked it up so far.
        views: Vec<u64>,
        /// The first up to two components of the directory that it was found in, in one of the views.
        #[serde(with = "codec::path")]
        hint: RelPath,
    },
    /// Which reads wait for a blob of which there was an `Arriving`: of these bytes one more; or, without
    /// bytes, none any more.
    Reads {
        /// The number in the `Want`.
        request: u64,
        /// The bytes.
        bytes: Option<Range<u64>>,
    },
    /// A dropped view's record; `None` if there was no such view.
    Record {
        /// The view.
        view: u64,
        /// What was looked at.
        record: Option<Recorded>,
    },
    /// Processes of these views may have seen an input error that is not theirs. Arrives before the
    /// `Record` of any of them.
    ReadFailed {
        /// What could not be read.
        #[serde(with = "codec::digest")]
        digest: Digest,
        /// Every view that looked it up.
        views: Vec<u64>,
        /// Why.
        reason: WantError,
    },
    /// The answer to `ToFs::Stats`.
    Stats(Stats),
}

/// A record on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded(#[serde(with = "codec::record")] pub AccessRecord);

/// What the file system is made of at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Messages of the kernel since the mount, of the usual connection.
    pub messages: MessageCounts,
    /// The same of the passthrough connection.
    pub passthrough_messages: MessageCounts,
    /// Inodes that are open on their file in the store.
    pub backed: u64,
    /// Inodes in memory.
    pub inodes: u64,
    /// Views that are not dropped.
    pub views: u64,
    /// Blobs that are wanted and not there yet.
    pub pending: u64,
}

/// A message as a frame.
///
/// # Errors
/// It is longer than [`FRAME_LIMIT`].
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, ProtocolError> {
    let mut frame = postcard::to_extend(message, vec![0_u8; 4])?;
    let len = frame.len() - 4;
    let header = u32::try_from(len).ok().filter(|_| len <= FRAME_LIMIT);
    let header = header.ok_or(ProtocolError::TooLong(len))?;
    frame[..4].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

/// A message from the body of a frame, without its length.
///
/// # Errors
/// The bytes are no message of this type.
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, ProtocolError> {
    Ok(postcard::from_bytes(body)?)
}

/// Reads the next message; `None` at the end of the stream.
///
/// # Errors
/// The stream fails or ends within a frame, or the frame is no message of this type.
pub fn read<M: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<M>, ProtocolError> {
    let mut header = [0_u8; 4];
    let mut have = 0;
    while have < header.len() {
        match stream.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let len = u32::from_be_bytes(header) as usize;
    if len > FRAME_LIMIT {
        return Err(ProtocolError::TooLong(len));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The stream failed.
    #[error("the control stream failed")]
    Stream(#[from] io::Error),
    /// A frame beyond the limit.
    #[error("a message of {0} bytes, the limit is {FRAME_LIMIT} bytes")]
    TooLong(usize),
    /// Bytes that are no message.
    #[error("not a message of this protocol: {0}")]
    Encoding(#[from] postcard::Error),
}

#[cfg(test)]
mod tests {
    use distbuild_proto::{DigestFunction, Name, Observed, ObservedDirectory};

    use super::*;

    #[test]
    fn messages_of_both_directions_survive_the_wire() {
        let digest = DigestFunction::Sha1.digest(b"abc");
        let path = RelPath::new(b"dep/3\xff").unwrap();
        let mut root = ObservedDirectory::unseen(digest);
        root.names.insert(Name::new(b"none").unwrap(), Observed::Absent);
        let record = AccessRecord::new(root, true);
        let sent = [
            FromFs::Want {
                request: 7,
                digest,
                kind: BlobKind::File { executable: true },
                views: vec![1, 2],
                hint: path,
            },
            FromFs::Record { view: 3, record: Some(Recorded(record)) },
            FromFs::ReadFailed { digest, views: vec![], reason: WantError::Deadline(5) },
            FromFs::Reads { request: 8, bytes: Some(4096..8192) },
            FromFs::Stats(Stats::default()),
        ];
        let stream: Vec<u8> = sent.iter().flat_map(|message| encode(message).unwrap()).collect();
        let mut stream = stream.as_slice();
        for message in sent {
            assert_eq!(read::<FromFs>(&mut stream).unwrap(), Some(message));
        }
        assert_eq!(read::<FromFs>(&mut stream).unwrap(), None);

        let failed = ToFs::WantDone { request: 1, result: Err(WantError::Refused("no".into())) };
        let frame = encode(&failed).unwrap();
        assert_eq!(decode::<ToFs>(&frame[4..]).unwrap(), failed);
    }

    #[test]
    fn a_cut_frame_is_an_error_and_not_an_end() {
        let frame = encode(&ToFs::AddView {
            view: 1,
            root: DigestFunction::Blake3.digest(b""),
            properties: false,
        });
        let frame = frame.unwrap();
        for len in 1..frame.len() {
            assert!(read::<ToFs>(&mut &frame[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused_before_it_is_read() {
        let frame = u32::MAX.to_be_bytes();
        assert!(matches!(read::<ToFs>(&mut &frame[..]), Err(ProtocolError::TooLong(_))));
    }
}
