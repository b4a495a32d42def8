//! One `Locate` call: where the blobs of a request are, told as the coordinator learns it. A small source blob
//! comes in the answer itself, and goes into the store here.

use std::collections::VecDeque;
use std::time::Duration;

use distbuild_cas::DiskStore;
use distbuild_cas::chunks::Arrival;
use distbuild_proto::wire::located::Place;
use distbuild_proto::wire::workers_client::WorkersClient;
use distbuild_proto::{Digest, wire};
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Channel;

/// What the coordinator says of blobs, by their place in the request.
#[derive(Debug)]
pub(crate) enum Found {
    /// They came along.
    Arrived(Vec<Arrival>),
    /// They are there.
    Places(Vec<(usize, Place)>),
    /// Another worker fetches this one just now; its place follows.
    Waits(usize),
    /// Of these it says nothing any more.
    Broke { left: Vec<usize>, why: String },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Locating {
    call: Call,
    digests: Vec<Digest>,
    /// Blobs whose place is not known yet.
    left: Vec<bool>,
    /// What was said and not told yet.
    found: VecDeque<Found>,
    store: DiskStore,
    silence: Duration,
}

#[derive(Debug)]
enum Call {
    Asking(WorkersClient<Channel>, wire::LocateRequest),
    Answered(Streaming<wire::LocateResponse>),
    Ended,
}

impl Locating {
    /// A call that begins with the first [`next`](Self::next), for blobs with these digests.
    pub(crate) fn new(
        client: WorkersClient<Channel>,
        request: wire::LocateRequest,
        digests: Vec<Digest>,
        store: DiskStore,
        silence: Duration,
    ) -> Self {
        let left = vec![true; digests.len()];
        let call = Call::Asking(client, request);
        Self { call, digests, left, found: VecDeque::new(), store, silence }
    }

    /// What is said next; none after the end. An answer may take long: another worker may be fetching.
    pub(crate) async fn next(&mut self) -> Option<Found> {
        while self.found.is_empty() {
            match self.message().await {
                Ok(located) => self.sort(located).await,
                Err(why) => {
                    self.call = Call::Ended;
                    let left = std::mem::take(&mut self.left);
                    let left: Vec<_> = (0..left.len()).filter(|index| left[*index]).collect();
                    return (!left.is_empty()).then_some(Found::Broke { left, why });
                }
            }
        }
        self.found.pop_front()
    }

    /// The next message, or why there is none.
    async fn message(&mut self) -> Result<Vec<wire::Located>, String> {
        if let Call::Asking(client, request) = &mut self.call {
            let request = std::mem::take(request);
            let answered = timeout(self.silence, client.locate(request)).await;
            let answered = answered.map_err(|_| "the coordinator does not answer".to_owned())?;
            let answered = answered
                .map_err(|status| format!("the coordinator failed: {}", status.message()))?;
            self.call = Call::Answered(answered.into_inner());
        }
        let Call::Answered(answers) = &mut self.call else { return Err(String::new()) };
        match answers.message().await {
            Ok(Some(response)) => Ok(response.located),
            Ok(None) => Err("the coordinator did not say where it is".to_owned()),
            Err(status) => Err(format!("the coordinator failed: {}", status.message())),
        }
    }

    async fn sort(&mut self, located: Vec<wire::Located>) {
        let mut places = Vec::new();
        let mut contents = Vec::new();
        for wire::Located { index, place } in located {
            let (index, Some(place)) = (index as usize, place) else { continue };
            // Once each; what was not asked for is nothing to us.
            let Some(left) = self.left.get_mut(index).filter(|left| **left) else { continue };
            *left = matches!(place, Place::Waits(_));
            match place {
                Place::Waits(_) => self.found.push_back(Found::Waits(index)),
                Place::Contents(data) => contents.push((index, self.digests[index], data)),
                place => places.push((index, place)),
            }
        }
        if !places.is_empty() {
            self.found.push_back(Found::Places(places));
        }
        if contents.is_empty() {
            return;
        }
        let store = self.store.clone();
        // Hashing and writing are work for a thread that may block.
        let stored = tokio::task::spawn_blocking(move || {
            let insert = |(index, digest, data): (usize, Digest, bytes::Bytes)| Arrival {
                index,
                result: store.insert(&digest, &data, false).map_err(Into::into),
            };
            contents.into_iter().map(insert).collect()
        });
        // Blobs that a panic took with it have no answer, and that is an answer.
        self.found.extend(stored.await.ok().map(Found::Arrived));
    }
}
