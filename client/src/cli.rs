//! The command line as people see it: the doc comments are the help.
//!
//! Values are parsed here, once; what they mean together is decided by the command that takes them.
//! Every flag has the environment variable `DISTBUILD_<FLAG>` and a key in the configuration
//! file: [`crate::config`] adds both.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use distbuild_proto::{Address, DigestFunction};
use distbuild_worker::RootAt;

/// Runs build graphs on many machines; jobs fetch their inputs when they read them.
#[derive(Debug, Parser)]
#[command(
    name = "distbuild",
    version,
    after_help = "Every flag can also be set by the environment variable DISTBUILD_<FLAG> \
(DISTBUILD_KEEP_GOING=1) and in the TOML file given with --config (keep-going = true; a table named \
after a command holds for that command alone). The command line wins, then the environment.

Exit codes: 0 done, 1 a job failed or timed out, 2 usage or invalid graph, 3 infrastructure, \
4 no worker can run a job, 130 cancelled."
)]
pub(crate) struct Cli {
    /// TOML file with values for flags that are not given otherwise
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Build(BuildArgs),
    Check(CheckArgs),
    Coordinator(CoordinatorArgs),
    Worker(WorkerArgs),
    Mount(crate::mount::MountArgs),
    /// Show the builds and queues of a coordinator.
    Status(LookArgs),
    /// Show the workers that are connected to a coordinator.
    Workers(LookArgs),
    Explain(ExplainArgs),
    Cancel(CancelArgs),
    Completion(CompletionArgs),
}

/// Run a graph.
///
/// Each requested job's outputs land in OUT/<job name>/, with "/" written as "%2F"; an earlier
/// directory of that name is replaced whole when the job succeeds, and left alone when it does not.
/// What jobs print appears on stdout and stderr, whether they ran or were cached.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The graph file (JSON)
    pub(crate) graph: PathBuf,

    /// The source root that inputs are relative to [default: the graph file's directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) source: Option<PathBuf>,

    /// Where outputs land [default: distbuild-out beside the graph file]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,

    /// Request this job; may be repeated [default: all jobs]
    #[arg(long, value_name = "NAME")]
    pub(crate) job: Vec<String>,

    /// Coordinator to build with [default: an embedded one, with a worker of its own]
    #[arg(long, value_name = "URL")]
    pub(crate) coordinator: Option<Address>,

    /// Go on after a failure with all jobs that do not depend on it
    #[arg(long)]
    pub(crate) keep_going: bool,

    /// Run every job, whatever is cached; results are recorded all the same
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Hash function that names contents: blake3, sha256 or sha1
    #[arg(long, value_name = "F", default_value = "blake3")]
    pub(crate) digest_function: DigestFunction,

    /// Send all declared source files at once, instead of each when a job first reads it
    #[arg(long)]
    pub(crate) upload: bool,

    /// Write one JSON object about the build here when it ends, however it ends
    #[arg(long, value_name = "FILE")]
    pub(crate) summary: Option<PathBuf>,

    /// Write one JSON object a line here as things happen
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,

    /// Write one JSON object here about what jobs declared and never looked at
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    /// Record what commands look at, and reuse results as long as nothing of it has changed; off: results are
    /// found by their declared inputs alone
    #[arg(
        long,
        value_name = "on|off",
        value_enum,
        default_value = "on",
        hide_possible_values = true
    )]
    pub(crate) observed_inputs: Switch,

    /// How long a coordinator that is lost may take to come back before the build is given up; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) reconnect: u32,

    /// Cache directory [default: distbuild below $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) plaintext: PlaintextArgs,
}

/// Validate a graph and its inputs; run nothing.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The graph file (JSON)
    pub(crate) graph: PathBuf,

    /// The source root that inputs are relative to [default: the graph file's directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) source: Option<PathBuf>,

    /// The output directory of builds, which is never an input [default: distbuild-out beside the graph file]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,

    /// The cache directory of builds, which is never an input [default: as for build]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

/// Serve as coordinator until SIGTERM or SIGINT.
///
/// Prints one line, "listening grpc=HOST:PORT http=HOST:PORT", on stdout once it serves.
#[derive(Debug, Args)]
pub(crate) struct CoordinatorArgs {
    /// Where clients and workers dial: host:port or unix:/path; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8980")]
    pub(crate) listen: Address,

    /// Where the status page, metrics and health check are: host:port, or off
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8981")]
    pub(crate) http: Listen,

    /// State directory [default: distbuild/coordinator below $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// Instance of the Remote Execution API whose action results clients may write; may be repeated, * is every one
    #[arg(long, value_name = "NAME")]
    pub(crate) writable_instance: Vec<String>,

    #[command(flatten)]
    pub(crate) plaintext: PlaintextArgs,
}

/// Serve as worker until SIGTERM, which drains it, or SIGINT.
///
/// Prints one line, "listening grpc=HOST:PORT http=-", on stdout once it serves; grpc is where it listens
/// for peers, or "-".
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// The coordinator to work for: host:port or unix:/path
    #[arg(long, value_name = "URL")]
    pub(crate) coordinator: Option<Address>,

    /// Name of this worker [default: the host's]
    #[arg(long, value_name = "N")]
    pub(crate) name: Option<String>,

    /// State directory with the blob store [default: distbuild/worker below $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// Cores to offer, in steps of 0.001 [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) cores: Option<Cores>,

    /// Memory to offer in bytes, or with K, M, G, T (powers of 1024) [default: three quarters of the host's]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,

    /// Platform property to offer; may be repeated
    #[arg(long, value_name = "K=V")]
    pub(crate) property: Vec<Property>,

    /// Where peer workers dial this one: host:port, or off to be reached through the coordinator [default: a
    /// free port of this machine's loopback address, or of all addresses if the coordinator is elsewhere]
    #[arg(long, value_name = "ADDR|off")]
    pub(crate) peer_listen: Option<Listen>,

    /// What peer workers are told to dial instead, where an address is translated on the way: host:port
    #[arg(long, value_name = "ADDR")]
    pub(crate) peer_advertise: Option<Address>,

    /// Fetch what a command read last time before it asks for it
    #[arg(
        long,
        value_name = "on|off",
        value_enum,
        default_value = "on",
        hide_possible_values = true
    )]
    pub(crate) prefetch: Switch,

    /// Where actions of the Remote Execution API see their input root: /distbuild/root, beside the host's
    /// toolchain directories; or /, with nothing of the host but /proc, /dev and an empty /tmp, as BuildStream
    /// expects it
    #[arg(
        long,
        value_name = "PATH",
        value_enum,
        default_value = "/distbuild/root",
        hide_possible_values = true
    )]
    pub(crate) input_root_at: InputRootAt,

    #[command(flatten)]
    pub(crate) plaintext: PlaintextArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LookArgs {
    /// The coordinator to ask
    #[arg(long, value_name = "URL")]
    pub(crate) coordinator: Option<Address>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) plaintext: PlaintextArgs,
}

/// Tell why a job ran, or what stood for it.
///
/// Names, for each earlier run of the same command, the first thing that it looked at and that is not as it was.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Name or id of the job
    pub(crate) job: String,

    /// The build in question [default: the newest that had the job]
    #[arg(long, value_name = "ID")]
    pub(crate) build: Option<String>,

    /// The coordinator to ask [default: what embedded builds left in the cache directory]
    #[arg(long, value_name = "URL")]
    pub(crate) coordinator: Option<Address>,

    /// Cache directory of embedded builds [default: distbuild below $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "DIR", conflicts_with = "coordinator")]
    pub(crate) state: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) plaintext: PlaintextArgs,
}

/// Cancel a running build.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Id of the build, as `distbuild status` shows it
    pub(crate) build: String,

    /// The coordinator to ask
    #[arg(long, value_name = "URL")]
    pub(crate) coordinator: Option<Address>,

    #[command(flatten)]
    pub(crate) plaintext: PlaintextArgs,
}

/// Print a completion script for a shell.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell
    pub(crate) shell: Shell,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PlaintextArgs {
    /// Speak plaintext, on loopback addresses and unix sockets
    #[arg(long)]
    pub(crate) insecure: bool,

    /// With --insecure: speak plaintext to other machines as well
    #[arg(long)]
    pub(crate) insecure_network: bool,
}

/// Something that is done or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// Where an input root that actions may change is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum InputRootAt {
    #[value(name = "/distbuild/root")]
    Fixed,
    #[value(name = "/")]
    Slash,
}

impl From<InputRootAt> for RootAt {
    fn from(at: InputRootAt) -> Self {
        match at {
            InputRootAt::Fixed => Self::Fixed,
            InputRootAt::Slash => Self::Slash,
        }
    }
}

/// An address to listen on, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) Option<Address>);

impl std::str::FromStr for Listen {
    type Err = distbuild_proto::AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text == "off" { None } else { Some(text.parse()?) }))
    }
}

/// Thousandths of a core; above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores(pub(crate) u32);

impl std::str::FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let most = f64::from(distbuild_proto::graph::Resources::MAX_MILLI_CORES) / 1000.0;
        match text.parse::<f64>() {
            Ok(cores) if (0.001..=most).contains(&cores) => {
                Ok(Self((cores * 1000.0).round() as u32))
            }
            _ => Err(format!("cores are a number between 0.001 and {most}")),
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            other => return Err(format!("{other:?} is not a unit; known are K, M, G and T")),
        };
        let number: u64 =
            digits.parse().map_err(|_| "a size is a whole number of bytes".to_owned())?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| "more bytes than can be counted".to_owned())
    }
}

/// A platform property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl std::str::FromStr for Property {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("a property is written NAME=VALUE".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_units() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("2G".parse(), Ok(Size(2 << 30)));
        assert_eq!("3mib".parse(), Ok(Size(3 << 20)));
        assert!("2.5G".parse::<Size>().is_err());
        assert!("G".parse::<Size>().is_err());
        assert!("99999999999T".parse::<Size>().is_err());
    }

    #[test]
    fn cores_are_thousandths() {
        assert_eq!("1.5".parse(), Ok(Cores(1500)));
        assert!("0".parse::<Cores>().is_err());
        assert!("nan".parse::<Cores>().is_err());
    }

    #[test]
    fn a_property_is_split_at_the_first_sign() {
        let property: Property = "image=a=b".parse().unwrap();
        assert_eq!((property.name.as_str(), property.value.as_str()), ("image", "a=b"));
        assert!("=x".parse::<Property>().is_err());
    }
}
