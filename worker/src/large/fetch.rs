//! Reading a blob from its holders: a few at once, the others when one of those fails.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::{DiskStore, StoreError};
use distbuild_proto::{Address, Digest};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::HOLDERS;
use super::connection::Socket;
use super::transfer::{Arrived, HolderError, Transfer};

/// How a fetch ended.
#[derive(Debug)]
pub struct Fetched {
    /// In the store, or not.
    pub result: Result<(), FetchFailure>,
    /// What became of each holder that was asked.
    pub holders: Vec<Holder>,
}

/// A holder that was asked.
#[derive(Debug)]
pub struct Holder {
    /// Where it is.
    pub address: Address,
    /// Pieces that came first from it.
    pub pieces: usize,
    /// Why it was not read from any longer.
    pub error: Option<HolderError>,
}

/// Why a blob is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum FetchFailure {
    /// No holder is left that could be asked.
    #[error("no holder could send the whole blob")]
    NobodyLeft,
    /// It could not be stored.
    #[error("failed to store the blob")]
    Store(#[from] StoreError),
}

/// A blob that is to be fetched.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which blob.
    pub digest: Digest,
    /// In which variant it is best stored.
    pub executable: bool,
    /// Where it goes.
    pub store: DiskStore,
    /// Silence after which a holder is given up.
    pub silence: Duration,
}

/// Fetches a blob into a store from those that hold it. May be dropped, which leaves nothing.
///
/// `begun` is told each transfer that begins; there is a second one only if bytes turned out wrong that
/// came from several holders and cannot be told apart: then they are asked one by one.
pub async fn fetch(
    wanted: &Wanted,
    holders: &[Address],
    arrived: &watch::Sender<Arrived>,
    begun: impl Fn(&Arc<Transfer>),
) -> Fetched {
    let start = || {
        let Wanted { digest, executable, store, .. } = wanted.clone();
        let transfer = Arc::new(Transfer::new(store, digest, executable, arrived.clone()));
        begun(&transfer);
        transfer
    };
    let mut all = read_all(start(), wanted.silence, holders).await;
    if !matches!(all.result, Err(FetchFailure::Store(StoreError::Mismatch { .. }))) {
        return all;
    }
    let suspects: Vec<_> =
        (0..all.holders.len()).filter(|at| all.holders[*at].pieces > 0).collect();
    if let [suspect] = suspects[..] {
        blame(&mut all.holders[suspect]);
        return all;
    }
    for suspect in suspects {
        let address = all.holders[suspect].address.clone();
        let alone = read_all(start(), wanted.silence, &[address]).await;
        all.result = alone.result;
        match all.result {
            Ok(()) => return all,
            Err(FetchFailure::Store(StoreError::Mismatch { .. })) => {
                blame(&mut all.holders[suspect])
            }
            Err(_) => {
                all.holders[suspect].error = alone.holders.into_iter().find_map(|one| one.error)
            }
        }
    }
    all
}

fn blame(holder: &mut Holder) {
    holder.error = Some(HolderError::Wrong("the blob is another one".to_owned()));
}

/// Ends a transfer that nobody waits for.
struct End(Arc<Transfer>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}

async fn read_all(transfer: Arc<Transfer>, silence: Duration, holders: &[Address]) -> Fetched {
    let _end = End(transfer.clone());
    let mut reserve: VecDeque<_> = holders.iter().cloned().enumerate().collect();
    let mut reading = JoinSet::new();
    let mut asked = Vec::new();
    loop {
        while reading.len() < HOLDERS
            && !transfer.is_ended()
            && let Some((number, address)) = reserve.pop_front()
        {
            let (transfer, dialled) = (transfer.clone(), address.clone());
            asked.push(Holder { address, pieces: 0, error: None });
            reading.spawn(async move {
                let read = match Socket::dial(&dialled, silence).await {
                    Ok(socket) => {
                        let read = move || transfer.read_from(number, socket);
                        let read = tokio::task::spawn_blocking(read).await;
                        read.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
                    }
                    Err(error) => Err(error.into()),
                };
                (number, read)
            });
        }
        // Those that hang in dialling are not waited for when the blob is whole.
        let outcome = transfer.take_outcome();
        let ended = match outcome {
            Some(outcome) => Some(outcome.map_err(FetchFailure::from)),
            None => match reading.join_next().await {
                Some(Ok((number, read))) => {
                    asked[number].error = read.err();
                    None
                }
                Some(Err(_)) => None,
                None => Some(Err(FetchFailure::NobodyLeft)),
            },
        };
        if let Some(result) = ended {
            for (number, holder) in asked.iter_mut().enumerate() {
                holder.pieces = transfer.brought_by(number);
            }
            return Fetched { result, holders: asked };
        }
    }
}
