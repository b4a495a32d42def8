//! A link that is far away and narrow: a TCP proxy in this process, for hosts whose kernel has no `netem`.
//!
//! Each direction of a link is one wire: what all connections send that way passes it one after the other, at the
//! link's bandwidth, and arrives half a round trip later. Opening a connection costs the round trip that it costs
//! elsewhere. Bytes come out as they went in; an end of either side reaches the other one behind them.
//!
//! Every connection has threads of its own and buffers of a fixed size; a reader that is slow slows its sender
//! down. Dropping a link cuts what goes over it and waits for its threads.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that travel together.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks of one connection on their way in one direction: 4 MiB, thrice what 10 ms at 1 Gbit/s hold.
const CHUNKS_UNDER_WAY: usize = 256;
/// Connections at once; further ones are refused.
const MAX_CONNECTIONS: usize = 256;

/// What a link is like.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// From a question to its answer, the size of both aside.
    pub round_trip: Duration,
    /// Each way; `None` is as fast as this machine.
    pub bytes_per_second: Option<u64>,
}

impl Conditions {
    /// A round trip of 10 ms and 1 Gbit/s each way.
    pub const WIDE_AREA: Self =
        Self { round_trip: Duration::from_millis(10), bytes_per_second: Some(125_000_000) };
}

/// A link; it exists until it is dropped.
#[derive(Debug)]
pub struct SlowLink {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    conditions: Conditions,
    there: Wire,
    back: Wire,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    target: Option<SocketAddr>,
    closed: bool,
    connections: BTreeMap<u64, Connection>,
    last: u64,
}

/// Both sockets of a connection, to cut it, and the thread that passes on.
#[derive(Debug)]
struct Connection {
    near: TcpStream,
    far: TcpStream,
    thread: Option<JoinHandle<()>>,
}

/// One direction.
#[derive(Debug, Default)]
struct Wire {
    /// When what has been sent so far has left the sender.
    free_at: Mutex<Option<Instant>>,
}

struct Chunk {
    arrives: Instant,
    bytes: Vec<u8>,
}

impl SlowLink {
    /// A link that leads nowhere yet: connections end at once until [`lead_to`](Self::lead_to).
    ///
    /// # Panics
    /// This machine has no free port, or no thread.
    pub fn new(conditions: Conditions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port exists");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (there, back) = (Wire::default(), Wire::default());
        let shared = Arc::new(Shared { conditions, there, back, state: Mutex::default() });
        let accepting = {
            let shared = shared.clone();
            std::thread::spawn(move || shared.accept(&listener))
        };
        Self { address, shared, accepting: Some(accepting) }
    }

    /// A link to `target`, `host:port` with a numeric host.
    ///
    /// # Panics
    /// It is no such address.
    pub fn to(target: &str, conditions: Conditions) -> Self {
        let link = Self::new(conditions);
        link.lead_to(target);
        link
    }

    /// From now on, connections go to `target`, `host:port` with a numeric host.
    ///
    /// # Panics
    /// It is no such address.
    pub fn lead_to(&self, target: &str) {
        let target = target.parse().expect("a target is a numeric address with a port");
        self.shared.state().target = Some(target);
    }

    /// Cuts every connection that goes over the link now; new ones can be opened.
    pub fn cut(&self) {
        for connection in self.shared.state().connections.values() {
            let _ = connection.near.shutdown(Shutdown::Both);
            let _ = connection.far.shutdown(Shutdown::Both);
        }
    }

    /// What to dial at the near end: `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        // The acceptor looks up when somebody comes.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let connections = std::mem::take(&mut self.shared.state().connections);
        for (_, mut connection) in connections {
            let _ = connection.near.shutdown(Shutdown::Both);
            let _ = connection.far.shutdown(Shutdown::Both);
            if let Some(thread) = connection.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for near in listener.incoming() {
            if self.state().closed {
                return;
            }
            // Whoever cannot be served sees a connection that ends, as with a target that is gone.
            let Ok(near) = near else { continue };
            let _ = self.clone().connect(near);
        }
    }

    fn connect(self: Arc<Self>, near: TcpStream) -> std::io::Result<()> {
        let opened = Instant::now() + self.conditions.round_trip;
        let target = self.state().target;
        let far = TcpStream::connect(target.ok_or(std::io::ErrorKind::NotConnected)?)?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (our_near, our_far) = (near.try_clone()?, far.try_clone()?);
        // Held until the entry is whole, so that its end finds it.
        let mut state = self.state();
        if state.connections.len() >= MAX_CONNECTIONS {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        state.last += 1;
        let number = state.last;
        let shared = self.clone();
        let thread = std::thread::spawn(move || {
            shared.pass_both(&near, &far, opened);
            shared.state().connections.remove(&number);
        });
        let connection = Connection { near: our_near, far: our_far, thread: Some(thread) };
        state.connections.insert(number, connection);
        Ok(())
    }

    fn pass_both(&self, near: &TcpStream, far: &TcpStream, opened: Instant) {
        std::thread::scope(|scope| {
            scope.spawn(|| self.pass(&self.there, near, far, opened));
            self.pass(&self.back, far, near, opened);
        });
    }

    /// One direction of one connection, until one of its ends is reached.
    fn pass(&self, wire: &Wire, from: &TcpStream, to: &TcpStream, opened: Instant) {
        let (sender, receiver) = sync_channel(CHUNKS_UNDER_WAY);
        std::thread::scope(|scope| {
            scope.spawn(|| deliver(receiver, from, to));
            self.send(wire, from, &sender, opened);
            drop(sender);
        });
    }

    fn send(&self, wire: &Wire, mut from: &TcpStream, to: &SyncSender<Chunk>, opened: Instant) {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let left = wire.leave(len, opened, self.conditions.bytes_per_second);
            let arrives = left + self.conditions.round_trip / 2;
            if to.send(Chunk { arrives, bytes: buffer[..len].to_vec() }).is_err() {
                return;
            }
        }
    }
}

impl Wire {
    /// When so many bytes have left, that could leave from `earliest` on.
    fn leave(&self, bytes: usize, earliest: Instant, bytes_per_second: Option<u64>) -> Instant {
        let now = Instant::now().max(earliest);
        let Some(rate) = bytes_per_second else { return now };
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = free_at.map_or(now, |free_at| free_at.max(now));
        let left = begins + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        *free_at = Some(left);
        left
    }
}

/// The far end of one direction: each chunk when it arrives, then the end.
fn deliver(chunks: Receiver<Chunk>, from: &TcpStream, mut to: &TcpStream) {
    for chunk in chunks {
        std::thread::sleep(chunk.arrives.saturating_duration_since(Instant::now()));
        if to.write_all(&chunk.bytes).is_err() {
            // Nobody reads any more: the sender learns of it.
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each connection with what it says, until it ends.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut &connection, &mut &connection);
                });
            }
        });
        address
    }

    fn link(round_trip_ms: u64, bytes_per_second: Option<u64>) -> SlowLink {
        let round_trip = Duration::from_millis(round_trip_ms);
        SlowLink::to(&echo().to_string(), Conditions { round_trip, bytes_per_second })
    }

    /// Sends, and reads everything until the end.
    fn exchange(link: &SlowLink, bytes: &[u8]) -> Vec<u8> {
        let mut socket = TcpStream::connect(link.address()).unwrap();
        let sending = {
            let (mut socket, bytes) = (socket.try_clone().unwrap(), bytes.to_vec());
            std::thread::spawn(move || {
                socket.write_all(&bytes).unwrap();
                socket.shutdown(Shutdown::Write).unwrap();
            })
        };
        let mut heard = Vec::new();
        socket.read_to_end(&mut heard).unwrap();
        sending.join().unwrap();
        heard
    }

    #[test]
    fn an_answer_takes_the_round_trip_and_the_first_one_another() {
        let link = link(20, None);
        let mut socket = TcpStream::connect(link.address()).unwrap();
        let mut answer = [0; 4];
        for (number, least_ms) in [40, 20, 20].into_iter().enumerate() {
            let asked = Instant::now();
            socket.write_all(b"ping").unwrap();
            socket.read_exact(&mut answer).unwrap();
            assert!(asked.elapsed() >= Duration::from_millis(least_ms), "question {number}");
            assert_eq!(&answer, b"ping");
        }
    }

    #[test]
    fn bytes_and_the_end_arrive_as_they_were_sent() {
        let link = link(1, None);
        let bytes: Vec<u8> = (0..20_000_000u32).map(|at| (at >> 3) as u8).collect();
        assert!(exchange(&link, &bytes) == bytes);
    }

    #[test]
    fn connections_share_the_bandwidth() {
        let link = link(0, Some(20_000_000));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| assert_eq!(exchange(&link, &[7; 1_000_000]).len(), 1_000_000));
            }
        });
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_link_that_leads_nowhere_ends_its_connections() {
        let link = SlowLink::new(Conditions::WIDE_AREA);
        let mut socket = TcpStream::connect(link.address()).unwrap();
        assert!(matches!(socket.read(&mut [0; 1]), Ok(0) | Err(_)));
    }

    #[test]
    fn a_dropped_link_cuts_what_went_over_it() {
        let link = link(1, None);
        let mut socket = TcpStream::connect(link.address()).unwrap();
        socket.write_all(b"x").unwrap();
        socket.read_exact(&mut [0; 1]).unwrap();
        let address = link.address();
        drop(link);
        assert!(matches!(socket.read(&mut [0; 1]), Ok(0) | Err(_)));
        assert!(TcpStream::connect(address).is_err());
    }
}
