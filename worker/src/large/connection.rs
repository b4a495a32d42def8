//! A data connection: a blocking socket, messages behind their length, and pieces out of files.
//!
//! All that depends on what carries the bytes is [`Socket`]: where the transport is to be encrypted,
//! this is what is wrapped, and `send_file` reads and writes instead.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use distbuild_proto::Address;
use distbuild_proto::transport::{CONNECT_TIMEOUT, Connection};
use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, send};
use prost::Message;

/// The first bytes of a data connection. HTTP/2 begins with another letter.
pub const PREFACE: [u8; 8] = *b"DBPIECE1";
/// Longest message in bytes: the hashes of a blob with the most pieces, with room.
const MESSAGE_LIMIT_BYTES: usize = 4 << 20;
/// What one `sendfile` sends at most: an answer to a shutdown is not kept waiting for long.
const SEND_BYTES: u64 = 1 << 20;

/// One end of a connection. Both ends may be used by several threads.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Dials; what is read or written later gives up after `silence`.
    pub(crate) async fn dial(address: &Address, silence: Duration) -> io::Result<Self> {
        let dialling = async {
            match address {
                Address::Tcp { host, port } => {
                    let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    Ok::<_, io::Error>(Connection::Tcp(stream))
                }
                Address::Unix(path) => {
                    Ok(Connection::Unix(tokio::net::UnixStream::connect(path).await?))
                }
            }
        };
        let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dialling).await;
        Self::from_async(dialled.map_err(|_| io::ErrorKind::TimedOut)??, silence)
    }

    /// Takes a connection over for threads that block.
    pub(crate) fn from_async(connection: Connection, silence: Duration) -> io::Result<Self> {
        match connection {
            Connection::Tcp(stream) => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(silence))?;
                stream.set_write_timeout(Some(silence))?;
                Ok(Self::Tcp(stream))
            }
            Connection::Unix(stream) => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(silence))?;
                stream.set_write_timeout(Some(silence))?;
                Ok(Self::Unix(stream))
            }
        }
    }

    /// Ends it for both sides; whoever reads or writes returns.
    pub(crate) fn shutdown(&self) {
        // It may have ended already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Sends a message; `more` says that bytes follow at once.
    pub(crate) fn send(&self, message: &impl Message, more: bool) -> io::Result<()> {
        let mut frame = Vec::with_capacity(4 + message.encoded_len());
        let len = u32::try_from(message.encoded_len()).map_err(io::Error::other)?;
        frame.extend_from_slice(&len.to_be_bytes());
        frame.extend_from_slice(&message.encode_to_vec());
        // nix has no name for it.
        let more = MsgFlags::from_bits_retain(if more { libc::MSG_MORE } else { 0 });
        let mut rest = &frame[..];
        while !rest.is_empty() {
            match send(self.as_fd().as_raw_fd(), rest, more | MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::EINTR) => {}
                Err(error) => return Err(timed_out(error.into())),
            }
        }
        Ok(())
    }

    /// Receives a message; none at the end of the connection.
    pub(crate) fn receive<M: Message + Default>(&self) -> io::Result<Option<M>> {
        let mut len = [0; 4];
        let mut reader = self;
        match reader.read(&mut len) {
            Ok(0) => return Ok(None),
            Ok(read) => self.fill(&mut len[read..])?,
            Err(error) => return Err(timed_out(error)),
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > MESSAGE_LIMIT_BYTES {
            return Err(invalid(format!("a message of {len} bytes")));
        }
        let mut body = vec![0; len];
        self.fill(&mut body)?;
        M::decode(&body[..]).map(Some).map_err(|error| invalid(error.to_string()))
    }

    /// Receives exactly so many bytes.
    pub(crate) fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut reader = self;
        reader.read_exact(bytes).map_err(timed_out)
    }

    /// Sends bytes of a file.
    pub(crate) fn send_file(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        let mut at = i64::try_from(range.start).map_err(io::Error::other)?;
        while (at as u64) < range.end {
            let len = (range.end - at as u64).min(SEND_BYTES) as usize;
            match sendfile64(self, file, Some(&mut at), len) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(timed_out(error.into())),
            }
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).read(buffer),
            Socket::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).write(data),
            Socket::Unix(stream) => (&mut &*stream).write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that waited for as long as it may says that it would block.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
