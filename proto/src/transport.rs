//! How every component dials and listens: one place for windows, time-outs and `TCP_NODELAY`.
//!
//! Control and bytes use separate channels; whoever needs both dials twice.

use std::net::ToSocketAddrs;
use std::os::unix::fs::FileTypeExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};

use crate::address::Address;

/// How long dialling may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which a connection is probed, and a probe's time to be answered.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Bytes in flight on one stream; enough for 1 Gbit/s over 30 ms.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes in flight on one connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest message either side accepts. Senders keep far below it.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Size to which senders fill messages of bulk data.
pub const BULK_MESSAGE_BYTES: usize = 256 << 10;

/// An endpoint that dials when it is first used and again after a failure.
///
/// # Errors
/// An address that makes no URI.
pub fn endpoint(address: &Address) -> Result<Endpoint, tonic::transport::Error> {
    let uri = match address {
        Address::Tcp { .. } => format!("http://{address}"),
        Address::Unix(path) => format!("unix://{}", path.display()),
    };
    Ok(Endpoint::from_shared(uri)?
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

/// Dials now.
///
/// # Errors
/// Nobody listens there, or the dial takes longer than [`CONNECT_TIMEOUT`].
pub async fn connect(address: &Address) -> Result<Channel, tonic::transport::Error> {
    endpoint(address)?.connect().await
}

/// A server with the limits that [`endpoint`] has on the other side.
pub fn server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
}

/// Connections that arrive at an address. Removes its Unix socket when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds an address. A socket file that a dead process left is replaced; a live one is not.
    ///
    /// # Errors
    /// The host does not resolve, the port is taken, or the directory of a socket cannot be written.
    pub async fn bind(address: &Address) -> std::io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let targets: Vec<_> = (host.as_str(), *port).to_socket_addrs()?.collect();
                let listener = TcpListener::bind(&targets[..]).await?;
                let port = listener.local_addr()?.port();
                let address = Address::Tcp { host: host.clone(), port };
                Ok(Self { socket: Socket::Tcp(listener), address })
            }
            Address::Unix(path) => {
                let stale = std::fs::symlink_metadata(path)
                    .is_ok_and(|metadata| metadata.file_type().is_socket())
                    && UnixStream::connect(path).await.is_err();
                if stale {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                Ok(Self { socket: Socket::Unix(listener), address: address.clone() })
            }
        }
    }

    /// The address in force; a port 0 has become the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl futures_core::Stream for Listener {
    type Item = std::io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let accepted = match &self.socket {
            Socket::Tcp(listener) => {
                std::task::ready!(listener.poll_accept(cx)).and_then(|(stream, _)| {
                    stream.set_nodelay(true)?;
                    Ok(Connection::Tcp(stream))
                })
            }
            Socket::Unix(listener) => std::task::ready!(listener.poll_accept(cx))
                .map(|(stream, _)| Connection::Unix(stream)),
        };
        Poll::Ready(Some(accepted))
    }
}

/// One accepted connection.
#[derive(Debug)]
pub enum Connection {
    /// Over TCP, with `TCP_NODELAY` set.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
