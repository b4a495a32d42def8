//! `distbuild mount`: the cache as a file system, to be looked at with any tool.
//!
//! ```text
//! DIR/blobs/<function>/<hash>          contents of a blob
//! DIR/trees/<function>/<hash>-<size>/  any directory by its digest
//! DIR/jobs/<id>/                       out/, stdout, stderr, result.json, inputs/ of the newest result
//! DIR/builds/<build id>/               summary.json, jobs/<name> -> ../../../jobs/<id>
//! ```
//!
//! [`catalogue`] says what lies where; [`records`] know the results and builds, of a state directory
//! or of a coordinator; [`holdings`] hold the bytes: [`stores`] on this machine, or [`remote`] ones.
//! Nothing here writes to what is looked at, and nothing keeps it from changing or evicting.

mod catalogue;
mod holdings;
mod json;
mod records;
mod remote;
mod state;
mod stores;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_fs::inspect::Inspection;
use distbuild_fs::mount::{MountError, mount_for_owner};
use distbuild_fs::{Contents, FsConfig, Owner, Serving, serve};
use distbuild_proto::Address;
use nix::unistd::{getegid, geteuid};
use tokio_util::sync::CancellationToken;

use crate::backend::dial;
use crate::build::deliver::with_causes;
use crate::cli::PlaintextArgs;
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::output;
use crate::places::Cache;
use crate::plaintext::Allowed;

use catalogue::Library;
use holdings::Holdings;
use records::Records;
use remote::{CoordinatorRecords, RemoteHoldings};
use state::State;

/// Threads that wait: for the disk, for the coordinator's answers, for the hash of a large blob.
const WAITING_THREADS: usize = 8;
/// What the contents that came from a coordinator may take on this machine.
const STORE_BYTES: u64 = 4 << 30;
/// How long the kernel gets to end the session; processes that still use the mount hold it up.
const END: Duration = Duration::from_secs(2);

/// Mount the cache for inspection, read-only, until interrupted.
///
/// Prints one line, "mounted DIR", on stdout once it serves. Only the user who mounts can look in. As
/// root it mounts itself; as an ordinary user through fusermount3 (Debian package fuse3).
///
/// DIR holds blobs/<function>/<hash>, trees/<function>/<hash>-<size>/,
/// jobs/<id>/{out/,stdout,stderr,result.json,inputs/} with the newest result under an id, and
/// builds/<build id>/{jobs/,summary.json}, whose jobs/ holds links by name to those jobs that have a result. New
/// results appear while it is mounted. Listings are cut to what is newest; names beyond that can be looked
/// up all the same.
///
/// Contents that nobody has any more read as an input/output error, with a line on stderr that names
/// the digest. Sources stay with the client that built, so much of inputs/ may have gone with it.
/// A coordinator is asked for blobs by hash and size: there, blobs/ knows those hashes that this mount has
/// met in a directory, and those that it has fetched.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// An existing empty directory
    dir: PathBuf,

    /// Look at the results of this coordinator
    #[arg(long, value_name = "URL", conflicts_with = "state")]
    coordinator: Option<Address>,

    /// Look at this cache, or this state of a coordinator or worker [default: the cache of builds]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    #[command(flatten)]
    plaintext: PlaintextArgs,
}

/// What is shown.
struct Shown {
    records: Box<dyn Records>,
    holdings: Arc<dyn Holdings>,
    /// Where contents lie on this machine.
    store: PathBuf,
}

/// Mounts, and serves until interrupted or unmounted.
///
/// # Errors
/// Nothing to show, or no mount.
pub(crate) async fn run(args: MountArgs, interrupt: Interrupt) -> Result<Exit, Failure> {
    let stop = CancellationToken::new();
    let MountArgs { dir, coordinator, state, plaintext } = args;
    let shown = async {
        match coordinator {
            Some(address) => {
                Allowed::from(&plaintext).check(&address)?;
                of_coordinator(&address, stop.clone()).await
            }
            None => of_state(state).await,
        }
    };
    let shown = tokio::select! {
        shown = shown => shown?,
        () = interrupt.first() => return Ok(Exit::DONE),
    };
    let ended = CancellationToken::new();
    let serving = {
        let (dir, ended) = (dir.clone(), ended.clone());
        blocking(move || mount(dir, shown, ended)).await?
    };
    output::line(format_args!("mounted {}", dir.display()));
    tokio::select! {
        () = interrupt.first() => {}
        () = ended.cancelled() => tracing::info!("somebody else has unmounted"),
    }
    stop.cancel();
    blocking(move || {
        drop(serving);
        Ok(())
    })
    .await?;
    if tokio::time::timeout(END, ended.cancelled()).await.is_err() {
        tracing::info!("the mount is still in use; it ends for its users with this process");
    }
    Ok(Exit::DONE)
}

fn mount(dir: PathBuf, shown: Shown, ended: CancellationToken) -> Result<Serving, Failure> {
    let Shown { records, holdings, store } = shown;
    let mounted = mount_for_owner(&dir).map_err(|error| match &error {
        MountError::Point { .. } | MountError::NotEmpty(_) => Failure::usage(with_causes(&error)),
        _ => Failure::infrastructure(with_causes(&error)),
    })?;
    let library = Library::new(records, Arc::clone(&holdings));
    let tree = Arc::new(Inspection::new(Arc::new(library), catalogue::root()));
    let config = FsConfig {
        owner: Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() },
        loop_threads: 1,
        fetch_threads: WAITING_THREADS,
        open_files: 1024,
        ..FsConfig::new(store)
    };
    let contents: Arc<dyn Contents> = holdings;
    serve(mounted, &config, tree, contents, move || ended.cancel())
        .map_err(|error| Failure::infrastructure(format!("failed to serve the mount: {error}")))
}

async fn of_state(state: Option<PathBuf>) -> Result<Shown, Failure> {
    blocking(move || {
        let directory = Cache::new(state)?;
        let State { records, stores } = State::open(directory.path())?;
        let store = stores.first_root();
        Ok(Shown { records, holdings: Arc::new(stores), store })
    })
    .await
}

async fn of_coordinator(address: &Address, stop: CancellationToken) -> Result<Shown, Failure> {
    let root = Cache::new(None)?.inspected();
    let config = StoreConfig { max_bytes: STORE_BYTES, ..StoreConfig::new(root.clone()) };
    let opening = blocking(move || {
        DiskStore::open(config).map_err(|error| Failure::infrastructure(with_causes(&error)))
    });
    let (store, control, bytes) = tokio::try_join!(opening, dial(address), dial(address))?;
    let records = CoordinatorRecords::new(control, stop);
    let holdings = RemoteHoldings::new(store, bytes);
    Ok(Shown { records: Box::new(records), holdings: Arc::new(holdings), store: root })
}

/// Work for a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Failure::infrastructure(error)))
}
