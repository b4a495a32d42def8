//! Puts many small actions on a server of the Remote Execution API and tells how it bears them.
//!
//! `cargo run --release -p distbuild-tests --bin reapi-load -- --help`

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use distbuild_tests::Farm;
use distbuild_tests::reapi::{Client, ClientError, Load, Report, Run};

/// Put many small actions on a server of the Remote Execution API.
///
/// Every action is a new one, so nothing is cached. Reports actions per second, and of the latency of an action the
/// median, the 99th percentile and the greatest.
#[derive(Debug, Parser)]
struct Arguments {
    /// Server to dial, host:port; without it, a coordinator and a worker are started for the run
    #[arg(long, value_name = "ADDR")]
    address: Option<String>,

    /// Instance name
    #[arg(long, default_value = "")]
    instance: String,

    /// Cores of the worker that is started
    #[arg(long, default_value = "2")]
    cores: NonZeroUsize,

    /// Actions to run
    #[arg(long, default_value = "1000")]
    actions: NonZeroUsize,

    /// Actions at a time
    #[arg(long, default_value = "8")]
    concurrency: NonZeroUsize,

    /// Files in the input root of each action
    #[arg(long, default_value_t = 0)]
    input_files: usize,

    /// Size of each input file, in bytes
    #[arg(long, default_value_t = 64)]
    file_bytes: usize,

    /// Input files that the command of each action reads; with none, the command is /bin/true
    #[arg(long, default_value_t = 0)]
    read_files: usize,

    /// Give each action an input root of its own, whose directories are those of all
    #[arg(long)]
    distinct_roots: bool,

    /// Look up, ask what is missing and upload that before each action, and count the time
    #[arg(long)]
    whole_client: bool,

    /// Times to run it all
    #[arg(long, default_value = "1")]
    rounds: NonZeroUsize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let farm = arguments.address.is_none().then(|| {
        let mut farm = Farm::without_workers();
        farm.add_worker(0, &["--cores", &arguments.cores.to_string()]);
        farm.wait_for_workers(1);
        farm
    });
    let address = match (&arguments.address, &farm) {
        (Some(address), _) => address.clone(),
        (None, Some(farm)) => farm.address(),
        (None, None) => return ExitCode::FAILURE,
    };
    match run(&arguments, &address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: &Arguments, address: &str) -> Result<(), ClientError> {
    let client = Client::connect(address, &arguments.instance).await?;
    let load = Load {
        input_files: arguments.input_files,
        file_bytes: arguments.file_bytes,
        read_files: arguments.read_files,
        distinct_roots: arguments.distinct_roots,
    };
    let prepared = Arc::new(load.prepare(&client).await?);
    let run = Run {
        actions: arguments.actions.get(),
        concurrency: arguments.concurrency.get(),
        whole_client: arguments.whole_client,
    };
    // What the first action of a kind costs is another question.
    prepared.run(Run { actions: run.concurrency, ..run }).await?;
    for _ in 0..arguments.rounds.get() {
        tell(&run, &prepared.run(run).await?);
    }
    Ok(())
}

fn tell(run: &Run, report: &Report) {
    let ms = |latency: Duration| latency.as_secs_f64() * 1e3;
    let _ = writeln!(
        std::io::stdout(),
        "{} actions, {} at a time: {:.0} a second; latency: median {:.2} ms, 99 % {:.2} ms, greatest {:.2} ms",
        run.actions,
        run.concurrency,
        report.rate(),
        ms(report.median()),
        ms(report.percentile(99)),
        ms(report.percentile(100)),
    );
}
