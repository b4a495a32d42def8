//! Frames and file descriptors over a unix stream socket.
//!
//! A frame is its length (4 bytes, little-endian) and a `postcard` message. Descriptors travel with
//! the first byte of their frame; since the kernel never delivers them later than that byte, a
//! complete frame finds its own descriptors at the head of the queue. A stream and not packets: the
//! text of a command may be larger than a socket's packet limit.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{AtStep, SandboxError};
use super::protocol::MAX_MESSAGE_BYTES;

const HEADER_BYTES: usize = 4;
const READ_BYTES: usize = 64 << 10;
/// Most descriptors that one frame carries.
const MAX_DESCRIPTORS: usize = 2;

/// Sends one message whole; waits while the other side's buffer is full.
pub(super) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), SandboxError> {
    let mut frame = postcard::to_extend(message, vec![0; HEADER_BYTES])?;
    let size_bytes = frame.len() - HEADER_BYTES;
    let length = u32::try_from(size_bytes).ok().filter(|_| size_bytes <= MAX_MESSAGE_BYTES);
    let length = length
        .ok_or(SandboxError::MessageTooLong { size_bytes, limit_bytes: MAX_MESSAGE_BYTES })?;
    frame[..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());

    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let mut control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let mut rest = &frame[..];
    while !rest.is_empty() {
        let flags = MsgFlags::MSG_NOSIGNAL;
        let fd = socket.as_fd().as_raw_fd();
        match sendmsg::<()>(fd, &[IoSlice::new(rest)], control, flags, None) {
            Ok(sent) => {
                rest = &rest[sent..];
                control = &[];
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(SandboxError::Lost),
            Err(errno) => return Err(errno).at(|| "send to the other process".to_owned()),
        }
    }
    Ok(())
}

/// What has arrived and was not read yet: at most one incomplete frame, and its descriptors.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// What the kernel writes to, never cleared: of the spawner's, each job copies the pages that are written while
    /// it lives.
    arriving: Box<[u8]>,
    descriptors: VecDeque<OwnedFd>,
}

impl Default for Inbox {
    fn default() -> Self {
        let arriving = vec![0; READ_BYTES].into_boxed_slice();
        Self { bytes: Vec::new(), arriving, descriptors: VecDeque::new() }
    }
}

/// What one read of the socket brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Some bytes.
    Bytes,
    /// The other side has closed.
    End,
}

impl Inbox {
    /// Reads what is there, waiting for the first byte.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> Result<Arrival, SandboxError> {
        let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut self.arriving)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let fd = socket.as_fd().as_raw_fd();
            match recvmsg::<()>(fd, &mut parts, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => break Ok(0),
                Err(errno) => break Err(errno).at(|| "receive from the other process".to_owned()),
                Ok(message) => {
                    let lost = message.flags.contains(MsgFlags::MSG_CTRUNC);
                    for part in message.cmsgs().into_iter().flatten() {
                        if let ControlMessageOwned::ScmRights(raw) = part {
                            self.descriptors.extend(raw.into_iter().map(own));
                        }
                    }
                    break if lost {
                        Err(SandboxError::DescriptorsLost)
                    } else {
                        Ok(message.bytes)
                    };
                }
            }
        };
        let received = received?;
        self.bytes.extend_from_slice(&self.arriving[..received]);
        Ok(if received == 0 { Arrival::End } else { Arrival::Bytes })
    }

    /// The next message, if it has arrived whole.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, SandboxError> {
        let Some(header) = self.bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let size_bytes = u32::from_le_bytes(*header) as usize;
        if size_bytes > MAX_MESSAGE_BYTES {
            let limit_bytes = MAX_MESSAGE_BYTES;
            return Err(SandboxError::MessageTooLong { size_bytes, limit_bytes });
        }
        let end = HEADER_BYTES + size_bytes;
        if self.bytes.len() < end {
            return Ok(None);
        }
        let message = postcard::from_bytes(&self.bytes[HEADER_BYTES..end])?;
        self.bytes.drain(..end);
        Ok(Some(message))
    }

    /// The next descriptor of the message that was just returned.
    pub(super) fn next_descriptor(&mut self) -> Result<OwnedFd, SandboxError> {
        self.descriptors.pop_front().ok_or(SandboxError::DescriptorsLost)
    }
}

#[expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]
fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for the message; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_larger_than_a_socket_buffer_arrive_whole_and_with_their_descriptors() {
        let (left, right) = UnixStream::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let text = vec![7_u8; 3 << 20];
        let expected = text.clone();
        let sender = std::thread::spawn(move || {
            send(&left, &1_u32, &[]).unwrap();
            send(&left, &text, &[write.as_fd()]).unwrap();
            send(&left, &2_u32, &[]).unwrap();
        });
        let mut inbox = Inbox::default();
        assert_eq!(wait::<u32>(&mut inbox, &right), 1);
        assert_eq!(wait::<Vec<u8>>(&mut inbox, &right), expected);
        File::from(inbox.next_descriptor().unwrap()).write_all(b"through").unwrap();
        assert_eq!(wait::<u32>(&mut inbox, &right), 2);
        sender.join().unwrap();
        assert_eq!(inbox.fill(&right).unwrap(), Arrival::End);
        let mut written = String::new();
        File::from(read).read_to_string(&mut written).unwrap();
        assert_eq!(written, "through");
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_buffered() {
        let (mut left, right) = UnixStream::pair().unwrap();
        left.write_all(&u32::MAX.to_le_bytes()).unwrap();
        let mut inbox = Inbox::default();
        inbox.fill(&right).unwrap();
        assert!(matches!(inbox.next::<u32>(), Err(SandboxError::MessageTooLong { .. })));
    }

    fn wait<T: DeserializeOwned>(inbox: &mut Inbox, socket: &UnixStream) -> T {
        loop {
            if let Some(message) = inbox.next().unwrap() {
                return message;
            }
            assert_eq!(inbox.fill(socket).unwrap(), Arrival::Bytes);
        }
    }
}
