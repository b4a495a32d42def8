//! A daemon under test, as a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{tied, wait};

/// A running process that ends with this value.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// What stood in the line `listening …`, by name.
    listening: Vec<(String, String)>,
}

impl Daemon {
    /// Starts a daemon and waits for its line `listening …`.
    ///
    /// # Panics
    /// It ends before it serves.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = tied::start(&mut command);
        let stderr = collect(child.stderr.take().expect("stderr is piped"));
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("stdout of the daemon can be read");
        let Some(fields) = line.strip_prefix("listening ") else {
            let status = child.wait();
            let text = String::from_utf8_lossy(&stderr.lock().expect("no panic while locked"))
                .into_owned();
            panic!("the daemon said {line:?} and ended with {status:?}: {text}");
        };
        let listening = fields
            .split_whitespace()
            .filter_map(|field| field.split_once('='))
            .map(|(name, address)| (name.to_owned(), address.to_owned()))
            .collect();
        Self { child, stderr, listening }
    }

    /// The address of one of its services: `grpc`, `http`.
    ///
    /// # Panics
    /// It did not name one.
    pub fn address(&self, service: &str) -> &str {
        let found = self.listening.iter().find(|(name, _)| name == service);
        &found.unwrap_or_else(|| panic!("the daemon did not say where {service} is")).1
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// The process does not exist any more.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the daemon is there to be signalled");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait::until("the end of the daemon", || {
            self.child.try_wait().expect("a child can be waited for")
        })
    }

    /// Kills it at once, as a power cut would, and waits until the process is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.wait();
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().expect("no panic while locked")).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // A failing test is read by people: what the daemon said belongs beside it.
            #[expect(clippy::print_stderr, reason = "shown only when a test fails")]
            {
                eprintln!("--- stderr of a daemon ---\n{}", self.stderr());
            }
        }
    }
}

/// Gathers a stream in the background, until it ends.
fn collect(mut stream: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let gathered = Arc::new(Mutex::new(Vec::new()));
    let into = gathered.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            if let Ok(mut into) = into.lock() {
                into.extend_from_slice(&buffer[..len]);
            }
        }
    });
    gathered
}
