//! Network namespaces that are made ahead of the jobs that will run in them, and given to another job
//! when nothing of the one before is left in them (ADR 7).
//!
//! Making a network namespace and taking it down costs several times as much as everything else that a
//! sandbox is made of, and most jobs never open a socket. A namespace is used again only if it is
//! *as new*: no socket exists in it, and what the kernel counts and lists of it reads byte for byte
//! as it did before the first job. Whoever cannot change a namespace's settings, which takes a
//! capability that no job has, can leave nothing else in it. Anything different, and the namespace goes.
//!
//! Nothing here is ever waited for: without a spare namespace a job makes its own.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use super::error::{AtStep, SandboxError};
use super::namespaces::loopback_up;

/// Namespaces at once, used and spare; jobs beyond that make their own. Each takes six descriptors here
/// and some hundred kilobytes of the kernel.
const MAX_NETWORKS: usize = 64;
/// What a namespace tells of its past, below `/proc/net`: traffic, since every packet passes its only
/// device, the loopback; errors of what has no route; flow labels, which outlive their sockets.
const TRACES: [&str; 4] = ["dev", "snmp", "snmp6", "ip6_flowlabel"];
/// Below `/proc/net`; its first line counts the sockets of this namespace, the others those of the host.
const SOCKETS: &str = "sockstat";
/// What is read at once. All of these files are smaller.
const READ_BYTES: usize = 16 << 10;

/// The namespaces that wait.
#[derive(Debug)]
pub(super) struct Networks {
    proc: OwnedFd,
    /// The namespace of the spawner.
    home: OwnedFd,
    /// Used last, given next.
    spare: Vec<Network>,
    lent: usize,
    /// Making one has failed; nobody tries again before a job asks.
    failed: bool,
}

/// A network namespace with a loopback device that is up.
#[derive(Debug)]
pub(super) struct Network {
    namespace: OwnedFd,
    sockets: File,
    traces: Vec<File>,
    /// What all of these said before the first job.
    as_new: Vec<u8>,
}

impl Networks {
    /// None yet. To be called while the host's `/proc` is visible.
    pub(super) fn new() -> Result<Self, SandboxError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = open("/proc", flags, Mode::empty()).at(|| "open /proc".to_owned())?;
        let home = own_namespace(&proc)?;
        Ok(Self { proc, home, spare: Vec::new(), lent: 0, failed: false })
    }

    /// A spare namespace, if there is one; to be given back when no process is left in it.
    pub(super) fn take(&mut self) -> Option<Network> {
        self.failed = false;
        let network = self.spare.pop()?;
        self.lent += 1;
        Some(network)
    }

    /// Keeps a namespace if it is as new; else lets it go.
    pub(super) fn give_back(&mut self, network: Network) {
        self.lent = self.lent.saturating_sub(1);
        match network.is_as_new() {
            Ok(true) => self.spare.push(network),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "failed to look at a job's network"),
        }
    }

    /// Whether the next job might find none, and another one may be made.
    pub(super) fn wants_spare(&self) -> bool {
        self.spare.is_empty() && self.lent < MAX_NETWORKS && !self.failed
    }

    /// Makes a namespace; for when nothing else is to be done.
    pub(super) fn make_spare(&mut self) {
        match self.make() {
            Ok(network) => self.spare.push(network),
            Err(error) => {
                self.failed = true;
                tracing::warn!(%error, "failed to make a network ahead");
            }
        }
    }

    fn make(&self) -> Result<Network, SandboxError> {
        unshare(CloneFlags::CLONE_NEWNET).at(|| "make a network namespace".to_owned())?;
        let made = loopback_up().and_then(|()| Network::open(&self.proc));
        // Whatever became of it. Should this fail, jobs do not notice: each enters its network itself.
        setns(&self.home, CloneFlags::CLONE_NEWNET)
            .at(|| "return from a network namespace".to_owned())?;
        made
    }

    /// The host's network, for jobs that share it.
    pub(super) fn home(&self) -> &OwnedFd {
        &self.home
    }
}

impl Network {
    /// The one that this thread is in.
    fn open(proc: &OwnedFd) -> Result<Self, SandboxError> {
        let namespace = own_namespace(proc)?;
        let mut traces = Vec::with_capacity(TRACES.len());
        for name in TRACES {
            match open_own(proc, &format!("net/{name}")) {
                Ok(trace) => traces.push(trace.into()),
                // A kernel without IPv6.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno).at(|| format!("open /proc/net/{name}")),
            }
        }
        let sockets = open_own(proc, &format!("net/{SOCKETS}"));
        let sockets = sockets.at(|| format!("open /proc/net/{SOCKETS}"))?.into();
        let mut network = Self { namespace, sockets, traces, as_new: Vec::new() };
        network.as_new = network.look().at(|| "look at a new network".to_owned())?;
        Ok(network)
    }

    /// The namespace, to be entered.
    pub(super) fn namespace(&self) -> &OwnedFd {
        &self.namespace
    }

    fn is_as_new(&self) -> io::Result<bool> {
        Ok(self.look()? == self.as_new)
    }

    /// What can be seen of its past.
    fn look(&self) -> io::Result<Vec<u8>> {
        let mut seen = Vec::with_capacity(READ_BYTES);
        read(&self.sockets, &mut seen)?;
        let line = seen.iter().position(|byte| *byte == b'\n').unwrap_or(seen.len());
        seen.truncate(line);
        for trace in &self.traces {
            read(trace, &mut seen)?;
        }
        Ok(seen)
    }
}

/// Adds what a file says now.
fn read(file: &File, to: &mut Vec<u8>) -> io::Result<()> {
    let begin = to.len();
    loop {
        let end = to.len();
        to.resize(end + READ_BYTES, 0);
        let read = file.read_at(&mut to[end..], (end - begin) as u64);
        to.truncate(end + *read.as_ref().unwrap_or(&0));
        if read? == 0 {
            return Ok(());
        }
    }
}

fn own_namespace(proc: &OwnedFd) -> Result<OwnedFd, SandboxError> {
    open_own(proc, "ns/net").at(|| "open a network namespace".to_owned())
}

/// Opens what `/proc` has of this thread.
fn open_own(proc: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let path = format!("thread-self/{name}");
    openat(proc, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd as _;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use nix::sys::stat::fstat;

    use super::*;

    fn number(network: &Network) -> u64 {
        fstat(network.namespace()).unwrap().st_ino
    }

    /// Whether a namespace is used again after a job that does this in it.
    fn is_kept_after<T: Send>(job: impl FnOnce() -> T + Send) -> bool {
        let mut networks = Networks::new().unwrap();
        networks.make_spare();
        let network = networks.take().unwrap();
        let before = number(&network);
        // A thread of its own, which is thrown away, as a job's processes are.
        let left = std::thread::scope(|scope| {
            let run = || {
                setns(network.namespace(), CloneFlags::CLONE_NEWNET).unwrap();
                job()
            };
            scope.spawn(run).join().unwrap()
        });
        networks.give_back(network);
        drop(left);
        match networks.take() {
            Some(network) => {
                assert_eq!(number(&network), before);
                true
            }
            None => false,
        }
    }

    #[test]
    fn a_network_that_nobody_used_is_kept() {
        assert!(is_kept_after(|| ()));
    }

    #[test]
    fn a_network_in_which_only_names_were_used_is_kept_and_the_names_are_free() {
        let bind = || {
            let name = SocketAddr::from_abstract_name("distbuild").unwrap();
            UnixListener::bind_addr(&name).unwrap();
            UdpSocket::bind("127.0.0.1:4711").unwrap();
            TcpListener::bind("127.0.0.1:4711").unwrap();
        };
        let twice = || {
            bind();
            bind();
        };
        assert!(is_kept_after(twice));
    }

    #[test]
    fn a_network_with_a_socket_left_is_not_kept() {
        let name = || SocketAddr::from_abstract_name("distbuild").unwrap();
        assert!(!is_kept_after(|| UnixListener::bind_addr(&name()).unwrap()));
        assert!(!is_kept_after(|| TcpListener::bind("127.0.0.1:0").unwrap()));
        assert!(!is_kept_after(|| UdpSocket::bind("127.0.0.1:0").unwrap()));
    }

    #[test]
    fn a_network_with_traffic_is_not_kept() {
        // It leaves a connection in TIME_WAIT, which is no socket any more.
        let connect = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            server.write_all(b"x").unwrap();
            drop(server);
            client.read_to_end(&mut Vec::new()).unwrap();
        };
        assert!(!is_kept_after(connect));
        let refused = || TcpStream::connect("127.0.0.1:9").unwrap_err();
        assert!(!is_kept_after(refused));
    }

    #[test]
    fn a_network_with_a_failed_attempt_to_leave_it_is_not_kept() {
        let unreachable = || drop(TcpStream::connect("192.0.2.1:9").unwrap_err());
        assert!(!is_kept_after(unreachable));
    }

    #[test]
    fn a_network_with_a_flow_label_is_not_kept() {
        assert!(!is_kept_after(lease_flow_label));
    }

    /// Takes a flow label, which stays for some seconds after its socket.
    #[expect(unsafe_code, reason = "an option that no library knows")]
    fn lease_flow_label() {
        /// `struct in6_flowlabel_req` of linux/in6.h.
        #[repr(C)]
        struct Request {
            destination: [u8; 16],
            label: u32,
            action: u8,
            share: u8,
            flags: u16,
            expires: u16,
            linger: u16,
            pad: u32,
        }
        const IPV6_FLOWLABEL_MGR: libc::c_int = 32;
        let destination = std::net::Ipv6Addr::LOCALHOST.octets();
        // Get, shared by all, create.
        let request = Request {
            destination,
            label: 7_u32.to_be(),
            action: 0,
            share: 255,
            flags: 1,
            expires: 0,
            linger: 6,
            pad: 0,
        };
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        // SAFETY: the kernel reads and writes one struct of the size given, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IPV6,
                IPV6_FLOWLABEL_MGR,
                (&raw const request).cast(),
                size_of::<Request>() as libc::socklen_t,
            )
        };
        Errno::result(result).unwrap();
    }

    #[test]
    fn one_is_made_ahead_when_the_last_is_taken() {
        let mut networks = Networks::new().unwrap();
        assert!(networks.take().is_none());
        assert!(networks.wants_spare());
        networks.make_spare();
        assert!(!networks.wants_spare());
        let first = networks.take().unwrap();
        assert!(networks.wants_spare());
        networks.make_spare();
        let second = networks.take().unwrap();
        assert_ne!(number(&first), number(&second));
    }
}
