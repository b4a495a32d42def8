//! `distbuild coordinator` and `distbuild worker`: serve until told to end.

use std::time::Duration;

use distbuild_coordinator::{Config, Coordinator, Limits};
use distbuild_proto::Address;
use distbuild_worker::{RunningWorker, Worker, WorkerConfig};

use crate::build::deliver::with_causes;
use crate::cli::{CoordinatorArgs, Switch, WorkerArgs};
use crate::exit::{Exit, Failure};
use crate::http::StatusPage;
use crate::interrupt::Interrupt;
use crate::output;
use crate::places::daemon_state;
use crate::plaintext::Allowed;

/// How long a worker may take to kill what runs.
const WORKER_END: Duration = Duration::from_secs(10);

/// Serves as coordinator.
///
/// # Errors
/// It cannot serve.
pub(crate) async fn coordinator(
    args: CoordinatorArgs,
    interrupt: Interrupt,
) -> Result<Exit, Failure> {
    let allowed = Allowed::from(&args.plaintext);
    allowed.check(&args.listen)?;
    if let Some(http) = &args.http.0 {
        allowed.check(http)?;
    }
    let state = daemon_state(args.state, "coordinator")?;
    let config = Config {
        listen: args.listen,
        state,
        exclusive: true,
        writable_instances: args.writable_instance.into_iter().collect(),
        limits: Limits::default(),
    };
    let coordinator = Coordinator::start(config).await.map_err(|error| failed(&error))?;
    let page = match &args.http.0 {
        Some(http) => Some(StatusPage::serve(http, coordinator.address()).await?),
        None => None,
    };
    listening(Some(coordinator.address()), page.as_ref().map(StatusPage::address));
    interrupt.first().await;
    tracing::info!("shutting down");
    drop(page);
    tokio::select! {
        () = coordinator.shutdown() => {}
        () = interrupt.second() => tracing::warn!("stopped at once"),
    }
    Ok(Exit::DONE)
}

/// Serves as worker.
///
/// # Errors
/// It cannot serve, or its helper processes have died.
pub(crate) async fn worker(args: WorkerArgs, interrupt: Interrupt) -> Result<Exit, Failure> {
    let config = worker_config(args)?;
    let worker = tokio::select! {
        worker = Worker::start(config) => worker.map_err(|error| failed(&error))?,
        () = interrupt.first() => return Ok(Exit::DONE),
    };
    worker.notes().iter().for_each(|note| tracing::info!(note, "this host limits the worker"));
    listening(worker.peer_address(), None);
    let result = work(&worker, &interrupt).await;
    if tokio::time::timeout(WORKER_END, worker.shutdown()).await.is_err() {
        tracing::warn!("the worker does not end in time");
    }
    result
}

async fn work(worker: &RunningWorker, interrupt: &Interrupt) -> Result<Exit, Failure> {
    let until_drained = async {
        interrupt.first().await;
        tracing::info!("draining; a second signal stops at once");
        tokio::select! {
            () = worker.drain() => {}
            () = interrupt.second() => tracing::warn!("stopped at once"),
        }
    };
    tokio::select! {
        () = until_drained => Ok(Exit::DONE),
        words = worker.failed() => {
            Err(Failure::infrastructure(format!("the helper process has ended: {words}")))
        }
    }
}

fn worker_config(args: WorkerArgs) -> Result<WorkerConfig, Failure> {
    let allowed = Allowed::from(&args.plaintext);
    let coordinator = args
        .coordinator
        .ok_or_else(|| Failure::usage("--coordinator is missing: a worker works for somebody"))?;
    allowed.check(&coordinator)?;
    let peer_listen = match args.peer_listen {
        Some(given) => given.0,
        None => Some(any_port(&coordinator)),
    };
    if let Some(peers) = &peer_listen {
        allowed.check(peers)?;
    }
    let name = args.name.map_or_else(host_name, Ok)?;
    let mut config = WorkerConfig::new(coordinator, name, daemon_state(args.state, "worker")?);
    config.exclusive = true;
    config.insecure_network = args.plaintext.insecure_network;
    config.peer_listen = peer_listen;
    config.peer_advertise = args.peer_advertise;
    config.input_root_at = args.input_root_at.into();
    config.prefetch = args.prefetch == Switch::On;
    if let Some(cores) = args.cores {
        config.milli_cores = cores.0;
    }
    if let Some(memory) = args.memory {
        config.memory_bytes = memory.0;
    }
    for property in args.property {
        if config.properties.insert(property.name.clone(), property.value).is_some() {
            let text = format!("the property {:?} is given twice", property.name);
            return Err(Failure::usage(text));
        }
    }
    Ok(config)
}

/// A free port where peers reach this worker: they are where the coordinator is.
fn any_port(coordinator: &Address) -> Address {
    let host = if coordinator.is_local() { "127.0.0.1" } else { "0.0.0.0" };
    Address::Tcp { host: host.to_owned(), port: 0 }
}

fn host_name() -> Result<String, Failure> {
    match nix::unistd::gethostname() {
        Ok(name) if !name.is_empty() => Ok(name.to_string_lossy().into_owned()),
        _ => Err(Failure::usage("this host has no name; give the worker one with --name")),
    }
}

/// The line that says that a daemon serves.
fn listening(grpc: Option<&Address>, http: Option<&Address>) {
    let text = |address: Option<&Address>| address.map_or("-".to_owned(), Address::to_string);
    output::line(format_args!("listening grpc={} http={}", text(grpc), text(http)));
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::infrastructure(with_causes(error))
}
