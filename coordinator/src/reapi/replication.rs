//! What a result names, brought from the worker that made it into the coordinator's store.
//!
//! A result is announced only when all of it is there. Small blobs come together, a bounded amount an order; a
//! large one comes by itself and is streamed to the disk.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use distbuild_cas::chunks::{Arrival, ChunkReceiver};
use distbuild_cas::{DiskStore, Lease};
use distbuild_proto::{Digest, Directory};
use futures::{StreamExt, TryStreamExt};

use super::result::Directories;
use crate::core::{Handle, Message, Shared};
use crate::relay::{Lender, Relay, SHARED_ORDER_BYTES};

/// Orders of one result that are under way at once.
const ORDERS_AT_ONCE: usize = 4;
/// Blobs in one order.
const BLOBS_PER_ORDER: usize = 4096;

/// Brings blobs of output trees here.
#[derive(Clone, Debug)]
pub(crate) struct Replication {
    core: Handle,
    store: DiskStore,
    relay: Relay,
}

/// Why the outputs of a result are not here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplicationError {
    /// Nobody gave them; they may be made again.
    #[error("{count} outputs could not be fetched from the worker, among them {first}{why}")]
    Lost {
        /// How many.
        count: usize,
        /// One of them.
        first: Digest,
        /// Empty, or a colon and a text.
        why: String,
    },
    /// They came, and the store does not take them.
    #[error("the coordinator's store failed: {0}")]
    Store(String),
    /// The coordinator is going down.
    #[error(transparent)]
    Stopped(#[from] crate::core::Stopped),
}

impl Replication {
    pub(crate) fn new(core: Handle, shared: &Shared) -> Self {
        Self { core, store: shared.store.clone(), relay: shared.relay.clone() }
    }

    /// Has these blobs in the store, and keeps them there while the lease lasts. `tree` is the output tree that they
    /// belong to or lie beside of.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub(crate) async fn bring(
        &self,
        tree: &Digest,
        digests: &[Digest],
    ) -> Result<Lease, ReplicationError> {
        let lease = self.store.lease(digests);
        let mut missing: Vec<Digest> =
            digests.iter().filter(|digest| !self.has(digest)).copied().collect();
        if missing.is_empty() {
            return Ok(lease);
        }
        let tree = *tree;
        let mut why = String::new();
        for session in self.core.ask(|reply| Message::Holders { tree, reply }).await? {
            let lender = Lender::Worker(session);
            let orders: Vec<_> =
                orders(missing).into_iter().map(|order| self.receive(&lender, order)).collect();
            let received: Vec<Received> = futures::stream::iter(orders)
                .buffer_unordered(ORDERS_AT_ONCE)
                .try_collect()
                .await?;
            missing = Vec::new();
            for mut received in received {
                missing.append(&mut received.missing);
                why = received.why.unwrap_or(why);
            }
            if missing.is_empty() {
                return Ok(lease);
            }
        }
        let why = if why.is_empty() { why } else { format!(": {why}") };
        Err(ReplicationError::Lost { count: missing.len(), first: missing[0], why })
    }

    fn has(&self, digest: &Digest) -> bool {
        digest.size_bytes() == 0 || self.store.contains(digest)
    }

    /// Receives one order.
    async fn receive(
        &self,
        lender: &Lender,
        digests: Vec<Digest>,
    ) -> Result<Received, ReplicationError> {
        let mut transfer = match self.relay.order(lender, &digests).await {
            Ok(transfer) => transfer,
            Err(error) => return Ok(Received { missing: digests, why: Some(error.to_string()) }),
        };
        let mut receiver = ChunkReceiver::new(self.store.clone(), digests.clone());
        let (mut missing, mut why) = (Vec::new(), None);
        loop {
            let chunks = match transfer.next().await {
                Ok(Some(chunks)) => chunks,
                Ok(None) => break,
                Err(error) => {
                    why = Some(error.to_string());
                    break;
                }
            };
            let arrived;
            (receiver, arrived) = blocking(move || {
                let arrived = chunks.iter().map(|chunk| receiver.take(chunk)).collect();
                let arrived: Result<Vec<Option<Arrival>>, _> = arrived;
                (receiver, arrived)
            })
            .await?;
            match arrived {
                Ok(arrived) => {
                    for Arrival { index, result } in arrived.into_iter().flatten() {
                        if let Err(error) = result {
                            missing.push(digests[index]);
                            why = Some(error.to_string());
                        }
                    }
                }
                Err(error) => {
                    why = Some(error.to_string());
                    break;
                }
            }
        }
        missing.extend(receiver.finish().into_iter().map(|index| digests[index]));
        Ok(Received { missing, why })
    }

    /// Stores what was made here, and keeps it while the lease lasts.
    ///
    /// # Errors
    /// The store has no room, or its disk fails.
    pub(crate) async fn insert(
        &self,
        made: Vec<(Digest, Bytes)>,
    ) -> Result<Lease, ReplicationError> {
        let digests: Vec<Digest> = made.iter().map(|(digest, _)| *digest).collect();
        let lease = self.store.lease(&digests);
        if made.iter().all(|(digest, _)| self.has(digest)) {
            return Ok(lease);
        }
        let store = self.store.clone();
        let inserted = blocking(move || {
            let mut new = made.iter().filter(|(digest, _)| digest.size_bytes() > 0);
            new.try_for_each(|(digest, blob)| store.insert(digest, blob, false))
        });
        inserted.await?.map_err(|error| ReplicationError::Store(error.to_string()))?;
        Ok(lease)
    }

    /// All directories of an output tree. `inline` came with the result, and may be all of them or none.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub(crate) async fn directories(
        &self,
        root: &Digest,
        inline: Vec<Bytes>,
    ) -> Result<Directories, ReplicationError> {
        let function = root.function();
        let mut known: HashMap<Digest, Bytes> =
            inline.into_iter().map(|blob| (function.digest(&blob), blob)).collect();
        let mut directories = Directories::new();
        let mut level = vec![*root];
        while !level.is_empty() {
            let unknown: Vec<Digest> =
                level.iter().filter(|digest| !known.contains_key(digest)).copied().collect();
            if !unknown.is_empty() {
                let _lease = self.bring(root, &unknown).await?;
                known.extend(self.read_all(unknown).await?);
            }
            let mut next = Vec::new();
            for digest in level {
                let Some(blob) = known.remove(&digest) else { continue };
                let directory = Directory::decode(function, &blob).map_err(|error| {
                    ReplicationError::Store(format!("directory {digest}: {error}"))
                })?;
                next.extend(directory.directories().iter().map(|node| node.digest));
                directories.insert(digest, (blob, Arc::new(directory)));
            }
            next.sort_unstable();
            next.dedup();
            next.retain(|digest| !directories.contains_key(digest));
            level = next;
        }
        Ok(directories)
    }

    async fn read_all(
        &self,
        digests: Vec<Digest>,
    ) -> Result<Vec<(Digest, Bytes)>, ReplicationError> {
        let store = self.store.clone();
        let read = move || {
            let read = |digest: Digest| match digest.size_bytes() {
                0 => Ok((digest, Bytes::new())),
                _ => store.read(&digest).map(|blob| (digest, blob)),
            };
            digests.into_iter().map(read).collect::<Result<_, _>>()
        };
        blocking(read).await?.map_err(|error| ReplicationError::Store(error.to_string()))
    }
}

struct Received {
    missing: Vec<Digest>,
    why: Option<String>,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReplicationError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ReplicationError::Store(error.to_string()))
}

/// Small blobs together, up to the size of an order that is answered on the lender's stream; large ones alone.
fn orders(mut digests: Vec<Digest>) -> Vec<Vec<Digest>> {
    digests.sort_unstable_by_key(Digest::size_bytes);
    let mut orders: Vec<Vec<Digest>> = Vec::new();
    let mut room = 0;
    for digest in digests {
        let cost = Relay::cost_bytes(&digest);
        match orders.last_mut() {
            Some(order) if cost <= room && order.len() < BLOBS_PER_ORDER => {
                order.push(digest);
                room -= cost;
            }
            _ => {
                orders.push(vec![digest]);
                room = SHARED_ORDER_BYTES.saturating_sub(cost);
            }
        }
    }
    orders
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;

    use super::*;

    #[test]
    fn small_blobs_are_ordered_together_and_a_large_one_alone() {
        let blob = |seed: u8, size| Digest::new(DigestFunction::Blake3, &[seed; 32], size).unwrap();
        let mut digests: Vec<_> = (0..100).map(|seed| blob(seed, 10)).collect();
        digests.push(blob(200, 5 * SHARED_ORDER_BYTES));
        digests.push(blob(201, SHARED_ORDER_BYTES / 2));
        digests.push(blob(202, SHARED_ORDER_BYTES / 2));
        let lengths: Vec<_> = orders(digests).iter().map(Vec::len).collect();
        assert_eq!(lengths, [101, 1, 1]);
    }
}
