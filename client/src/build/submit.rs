//! The submission: header, directories, jobs, run, in messages of bounded size.

use std::sync::Arc;

use distbuild_proto::wire::build_request::Body;
use distbuild_proto::{DigestFunction, wire};
use prost::Message;
use tokio::sync::mpsc;

use super::plan::Plan;
use super::sources::Sources;

/// Version of the protocol that this client speaks.
const PROTOCOL: u32 = 1;
/// Priority class of a build that asks for none.
const PRIORITY_CLASS: u32 = 100;
/// Messages are closed when they reach this size.
const BATCH_BYTES: usize = 1 << 20;
/// What was heard of so many jobs goes in one message.
const HEARD_AT_ONCE: usize = 8192;

/// How a build is to be run.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) digest_function: DigestFunction,
    pub(crate) keep_going: bool,
    pub(crate) no_cache: bool,
    pub(crate) observed_inputs: bool,
    pub(crate) title: String,
    /// The client comes back if its stream breaks.
    pub(crate) resumable: bool,
}

/// The coordinator has stopped listening.
#[derive(Debug)]
pub(crate) struct Gone;

/// Sends a submission, of a build that goes on with what was heard of it; waits while the coordinator takes no more.
///
/// # Errors
/// The call has ended; it says why.
pub(crate) async fn submit(
    requests: &mpsc::Sender<wire::BuildRequest>,
    terms: Terms,
    plan: Arc<Plan>,
    sources: Sources,
    going_on: Option<(wire::ResumeBuild, wire::HeardBatch)>,
) -> Result<(), Gone> {
    let (resume, heard) = going_on.unzip();
    let header = wire::BuildHeader { resume, ..header(&terms, &plan) };
    send(requests, Body::Header(header)).await?;
    let mut batch = Batch::default();
    for blob in sources.snapshot.directories().values() {
        if let Some(blobs) = batch.push(blob.clone(), blob.len()) {
            send(requests, Body::Directories(wire::DirectoryBatch { blobs })).await?;
        }
    }
    send(requests, Body::Directories(wire::DirectoryBatch { blobs: batch.items })).await?;
    let mut batch = Batch::default();
    for (number, index) in plan.indexes().enumerate() {
        let job = wire::SubmittedJob {
            job: Some(plan.graph().to_wire(index)),
            source_root: sources.roots.get(number).copied().flatten().map(Into::into),
            requested: plan.is_requested(u32::try_from(number).unwrap_or(u32::MAX)),
        };
        let bytes = job.encoded_len();
        if let Some(jobs) = batch.push(job, bytes) {
            send(requests, Body::Jobs(wire::JobBatch { jobs })).await?;
        }
    }
    send(requests, Body::Jobs(wire::JobBatch { jobs: batch.items })).await?;
    let heard = heard.unwrap_or_default();
    for some in heard.finished.chunks(HEARD_AT_ONCE) {
        let batch = wire::HeardBatch { finished: some.to_vec(), attempts: Vec::new() };
        send(requests, Body::Heard(batch)).await?;
    }
    for some in heard.attempts.chunks(HEARD_AT_ONCE) {
        let batch = wire::HeardBatch { finished: Vec::new(), attempts: some.to_vec() };
        send(requests, Body::Heard(batch)).await?;
    }
    send(requests, Body::Run(wire::RunBuild {})).await
}

/// Sends one message.
///
/// # Errors
/// The call has ended.
pub(crate) async fn send(
    requests: &mpsc::Sender<wire::BuildRequest>,
    body: Body,
) -> Result<(), Gone> {
    requests.send(wire::BuildRequest { body: Some(body) }).await.map_err(|_| Gone)
}

fn header(terms: &Terms, plan: &Plan) -> wire::BuildHeader {
    wire::BuildHeader {
        protocol: PROTOCOL,
        user: user(),
        digest_function: terms.digest_function as i32,
        keep_going: terms.keep_going,
        no_cache: terms.no_cache,
        wants_outputs: true,
        priority_class: PRIORITY_CLASS,
        salt: plan.graph().salt().to_owned(),
        title: terms.title.clone(),
        without_observed_inputs: !terms.observed_inputs,
        resumable: terms.resumable,
        resume: None,
    }
}

/// Who builds: the name of the account, for fair shares and for people.
fn user() -> String {
    let account = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten();
    account.map_or_else(|| nix::unistd::Uid::effective().to_string(), |account| account.name)
}

/// Items up to [`BATCH_BYTES`].
#[derive(Debug)]
struct Batch<T> {
    items: Vec<T>,
    bytes: usize,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { items: Vec::new(), bytes: 0 }
    }
}

impl<T> Batch<T> {
    /// Adds an item; gives a full batch back before it would grow too large.
    fn push(&mut self, item: T, bytes: usize) -> Option<Vec<T>> {
        let full = self.bytes + bytes > BATCH_BYTES && !self.items.is_empty();
        let out = full.then(|| std::mem::take(&mut self.items));
        self.bytes = if full { bytes } else { self.bytes + bytes };
        self.items.push(item);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_below_their_size_and_lose_nothing() {
        let mut batch = Batch::default();
        let mut batches = Vec::new();
        for item in 0..5 {
            batches.extend(batch.push(item, BATCH_BYTES / 2));
        }
        batches.push(batch.items);
        assert_eq!(batches, [vec![0, 1], vec![2, 3], vec![4]]);
    }

    #[test]
    fn an_item_larger_than_a_batch_goes_alone() {
        let mut batch = Batch::default();
        assert_eq!(batch.push(1, 3 * BATCH_BYTES), None);
        assert_eq!(batch.push(2, 1), Some(vec![1]));
        assert_eq!(batch.items, [2]);
    }
}
