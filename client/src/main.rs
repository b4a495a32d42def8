//! One binary: build, coordinator, worker, mount, and what looks at them.
//!
//! `main` tells the roles apart, sets logging up and turns results into exit codes. The helper process of a
//! worker is the same binary; it is recognised before anything else, because it must have no
//! other thread.

mod backend;
mod build;
mod check;
mod cli;
mod config;
mod daemons;
mod embedded;
mod exit;
mod explain;
mod http;
mod interrupt;
mod look;
mod mount;
mod output;
mod places;
mod plaintext;
mod progress;

use std::ffi::OsString;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};
use crate::config::CliError;
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;

/// The variable that says what is logged, in the syntax of `tracing`'s `EnvFilter`.
const LOG_VARIABLE: &str = "DISTBUILD_LOG";

/// What daemons log.
const DAEMON_LOG: &str = "info";
/// What everything else logs. What an embedded worker warns of reaches the user in the results.
const LOG: &str = "warn,distbuild_worker=error,distbuild_fs=error,distbuild_coordinator=error";

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == distbuild_worker::HELPER_COMMAND) {
        log(LOG);
        return distbuild_worker::helper_main(words.into_iter().skip(2));
    }
    let cli = match config::parse(words) {
        Ok(cli) => cli,
        Err(CliError::Usage(error)) => error.exit(),
        Err(error) => {
            output::error(error);
            return Exit::USAGE.into();
        }
    };
    match run(cli) {
        Ok(exit) if output::is_lost() => Exit::of_all([exit, Exit::INFRASTRUCTURE]).into(),
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::error(&failure);
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    log(match cli.command {
        Command::Coordinator(_) | Command::Worker(_) => DAEMON_LOG,
        _ => LOG,
    });
    match cli.command {
        Command::Check(args) => check::run(args),
        Command::Completion(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut config::command(), "distbuild", &mut script);
            output::bytes(script.as_slice()).map_err(Failure::infrastructure)?;
            Ok(Exit::DONE)
        }
        command => run_async(command),
    }
}

fn run_async(command: Command) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::infrastructure(format!("failed to start threads: {error}")))?;
    let result = runtime.block_on(async {
        let interrupt = || {
            Interrupt::listen().map_err(|error| {
                Failure::infrastructure(format!("failed to catch signals: {error}"))
            })
        };
        match command {
            Command::Build(args) => build::run(args, interrupt()?).await,
            Command::Coordinator(args) => daemons::coordinator(args, interrupt()?).await,
            Command::Worker(args) => daemons::worker(args, interrupt()?).await,
            Command::Mount(args) => mount::run(args, interrupt()?).await,
            Command::Status(args) => look::status(args).await,
            Command::Workers(args) => look::workers(args).await,
            Command::Explain(args) => explain::run(args).await,
            Command::Cancel(args) => look::cancel(args).await,
            Command::Check(_) | Command::Completion(_) => Ok(Exit::DONE),
        }
    });
    // Whatever still runs has had its time.
    runtime.shutdown_background();
    result
}

/// Logs to stderr what the variable asks for, else this.
fn log(default: &str) {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = subscriber.with_ansi(terminal && !no_colour).try_init();
}
