//! Programs that others use to the same end, on this machine: `distcc` against ours from empty caches, and
//! `ccache` when it has everything against ours when all is cached. Each under `make -j2`.
//!
//! `distcc` sends preprocessed sources to a daemon on the loopback interface with two slots, and may not compile
//! by itself. Ours: two workers of one core. What is not installed is told and left out.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use distbuild_tests::{Project, example, wait};

use crate::builds::on_a_farm;
use crate::plain_build::{self, Compiler, Plain, is_here};
use crate::samples::Samples;
use crate::section::Section;
use crate::summary::{Row, Target};
use crate::table::{self, Unit};

const ROUNDS: usize = 5;
const SLOTS: usize = 2;

pub(crate) fn run(section: &mut Section) {
    table::head();
    for (name, project, share) in [("Lua", example::lua(), 0.33), ("zstd", example::zstd(), 1.0)] {
        plain_build::write(&project);
        measure(name, &project, share, section);
    }
    println!();
}

fn measure(name: &str, project: &Project, share: f64, section: &mut Section) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let distcc = Distccd::start();
    let distcc_compiler = distcc.as_ref().map(|daemon| daemon.compiler(path("distcc")));
    let ccache_compiler = is_here("ccache").then(|| Compiler {
        command: "ccache cc".into(),
        environment: vec![("CCACHE_DIR".into(), path("ccache"))],
    });
    let build = |compiler: &Option<Compiler>| match compiler {
        Some(compiler) => Plain::Make.build(project, SLOTS, compiler),
        // What is not here takes no time, and is not shown.
        None => f64::NAN,
    };
    build(&ccache_compiler);

    let mut cached = Samples::new();
    let [cold, with_distcc, with_ccache] = section.in_turns(
        ROUNDS,
        section.share(share),
        [
            &mut || {
                let build = on_a_farm(project, SLOTS);
                cached.push(build.cached);
                build.cold
            },
            &mut || build(&distcc_compiler),
            &mut || build(&ccache_compiler),
        ],
    );
    for (what, ours, program, compiler, theirs) in [
        ("empty caches", &cold, "distcc", &distcc_compiler, &with_distcc),
        ("fully cached", &cached, "ccache", &ccache_compiler, &with_ccache),
    ] {
        let what = format!("build of {name}, {what}, {SLOTS} workers ÷ {program}");
        if compiler.is_none() {
            section.add(Row::skipped(&what, &format!("{program} is not installed")));
            continue;
        }
        table::line(&what, Unit::Seconds, ours, (program, theirs));
        section.row(&what, Unit::Ratio, &ours.over(theirs), Target::AtMost(1.0));
    }
}

/// A daemon that compiles, ended with this value.
struct Distccd {
    child: Child,
    port: u16,
}

impl Distccd {
    /// None if it is not installed.
    fn start() -> Option<Self> {
        if !is_here("distcc") || !is_here("distccd") {
            return None;
        }
        // Free now; nobody else on this machine looks for one in the meantime.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut command = Command::new("distccd");
        command.args(["--daemon", "--no-detach", "--listen", "127.0.0.1", "--allow", "127.0.0.1"]);
        command.args(["--port", &port.to_string(), "--jobs", &SLOTS.to_string()]);
        // Any compiler that a client names; it listens to this machine alone.
        command.args(["--enable-tcp-insecure", "--log-stderr", "--log-level", "critical"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = Self { child: command.spawn().unwrap(), port };
        wait::until("distccd to listen", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(drop)
        });
        Some(daemon)
    }

    /// Whose locks lie in a directory, which is made.
    fn compiler(&self, directory: String) -> Compiler {
        std::fs::create_dir(&directory).unwrap();
        let hosts = format!("127.0.0.1:{}/{SLOTS}", self.port);
        let environment =
            [("DISTCC_HOSTS", hosts), ("DISTCC_DIR", directory), ("DISTCC_FALLBACK", "0".into())];
        Compiler {
            command: "distcc cc".into(),
            environment: environment.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }
}

impl Drop for Distccd {
    fn drop(&mut self) {
        // It starts others, and ends them when it is asked to end.
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
