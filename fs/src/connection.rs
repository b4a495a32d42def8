//! One connection to the kernel: the session of one mount and the threads that answer it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;

use fuser::{Config, Notifier, Session, SessionACL};

use crate::adapter::Adapter;
use crate::messages::{MessageCounts, Messages};
use crate::mount::{MountPoint, MountedFuse};

/// A session that has begun; nothing is answered yet.
pub(crate) struct Begun {
    session: Session<Adapter>,
    point: MountPoint,
    messages: Arc<Messages>,
}

/// A connection that is answered. Dropping it unmounts and does not wait.
pub(crate) struct Connection {
    _point: MountPoint,
    messages: Arc<Messages>,
    notifier: Notifier,
}

impl Begun {
    /// Agrees with the kernel on what the connection can do.
    ///
    /// # Errors
    /// The kernel does not begin a session.
    pub(crate) fn new(
        mount: MountedFuse,
        adapter: Adapter,
        loop_threads: usize,
    ) -> io::Result<Self> {
        let MountedFuse { device, point } = mount;
        let messages = adapter.messages();
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(loop_threads.max(1));
        let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
        Ok(Self { session, point, messages })
    }

    /// The device of this connection.
    pub(crate) fn device(&self) -> BorrowedFd<'_> {
        self.session.as_fd()
    }

    /// Answers from now on. `on_end` is called when the kernel has ended the session.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn answer(self, on_end: impl FnOnce() + Send + 'static) -> io::Result<Connection> {
        let Self { session, point, messages } = self;
        let notifier = session.notifier();
        point.raise_read_ahead();
        thread::Builder::new().name("fs-session".into()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "the FUSE session failed");
            }
            on_end();
        })?;
        Ok(Connection { _point: point, messages, notifier })
    }
}

impl Connection {
    /// The messages of the kernel so far.
    pub(crate) fn counts(&self) -> MessageCounts {
        self.messages.counts()
    }

    /// Tells the kernel things of its own accord.
    pub(crate) fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }
}
