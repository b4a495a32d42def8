//! `GetTree`, and the walk over what a directory reaches.
//!
//! A directory that many others hold is visited once: a few small blobs can name more paths than anybody could send.

use std::collections::{HashSet, VecDeque};

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_cas::DiskStore;
use distbuild_proto::{Digest, DigestFunction};
use prost::Message;
use tonic::Status;

use super::pull::{Answers, pull};
use super::{digest, status};

/// Different directories of one tree.
pub(crate) const MAX_DIRECTORIES: usize = 1 << 19;
/// Encoded directories that one page holds at least, if there are so many.
const PAGE_BYTES: usize = 1 << 20;

/// The different directories that a root reaches, itself first, each before those that only it holds.
#[derive(Debug)]
pub(crate) struct Walk {
    store: DiskStore,
    function: DigestFunction,
    next: VecDeque<Digest>,
    seen: HashSet<Digest>,
}

/// What a walk comes to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// A directory, and the size of its encoding.
    Directory(Box<api::Directory>, u64),
    /// A directory that is not here, nor is what it reaches looked at.
    Missing(Digest),
}

impl Walk {
    pub(crate) fn new(store: DiskStore, root: Digest) -> Self {
        Self {
            store,
            function: root.function(),
            next: VecDeque::from([root]),
            seen: HashSet::from([root]),
        }
    }

    /// The next directory.
    ///
    /// # Errors
    /// A blob that is no directory, more than [`MAX_DIRECTORIES`], a store that fails.
    pub(crate) fn step(&mut self) -> Result<Option<Step>, Status> {
        let Some(digest) = self.next.pop_front() else { return Ok(None) };
        let blob = match self.store.read(&digest) {
            Ok(blob) => blob,
            Err(error) if error.is_missing() => return Ok(Some(Step::Missing(digest))),
            Err(error) => return Err(status::of_store(&error)),
        };
        let directory = api::Directory::decode(blob)
            .map_err(|error| status::invalid(format!("{digest} is no Directory: {error}")))?;
        for node in &directory.directories {
            let child = digest::parse_one(self.function as i32, node.digest.as_ref())
                .map_err(|error| status::invalid(format!("in directory {digest}: {error}")))?;
            if self.seen.insert(child) {
                self.next.push_back(child);
            }
        }
        if self.seen.len() > MAX_DIRECTORIES {
            let text = format!("the tree has over {MAX_DIRECTORIES} different directories");
            return Err(Status::resource_exhausted(text));
        }
        Ok(Some(Step::Directory(Box::new(directory), digest.size_bytes())))
    }
}

/// A `GetTree` call that may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeRequest {
    root: Digest,
    /// Directories that a page holds at most.
    page_size: usize,
    /// Steps of the walk that the client has seen.
    skip: u64,
}

impl TreeRequest {
    /// Checks a request.
    ///
    /// # Errors
    /// No valid digest, a page size below zero, a token that was not given out.
    pub(crate) fn parse(request: &api::GetTreeRequest) -> Result<Self, Status> {
        let root = digest::parse_one(request.digest_function, request.root_digest.as_ref())
            .map_err(status::invalid)?;
        let page_size = usize::try_from(request.page_size)
            .map_err(|_| status::invalid(format!("a page size of {}", request.page_size)))?;
        let skip = match &request.page_token[..] {
            "" => 0,
            token => token
                .parse()
                .map_err(|_| status::invalid(format!("page token {token:?} was not given out")))?,
        };
        Ok(Self { root, page_size: if page_size == 0 { usize::MAX } else { page_size }, skip })
    }

    /// The pages. They are made as the client takes them.
    pub(crate) fn answer(self, store: DiskStore) -> Answers<api::GetTreeResponse> {
        let walk = Walk::new(store, self.root);
        let pages = Pages { request: self, walk, steps: 0, over: None, sent: false };
        pull(pages, Pages::next)
    }
}

/// The pages of a tree.
#[derive(Debug)]
struct Pages {
    request: TreeRequest,
    walk: Walk,
    /// Steps that were made.
    steps: u64,
    /// A directory that did not fit the page before.
    over: Option<(Box<api::Directory>, usize)>,
    /// There was a page.
    sent: bool,
}

impl Pages {
    fn next(&mut self) -> Result<Option<api::GetTreeResponse>, Status> {
        let mut page = api::GetTreeResponse::default();
        let mut page_bytes = 0;
        while let Some((directory, size_bytes)) = self.directory()? {
            // A page is full when one more comes: the last one has no token.
            if page.directories.len() >= self.request.page_size || page_bytes >= PAGE_BYTES {
                self.over = Some((directory, size_bytes));
                page.next_page_token = (self.steps - 1).to_string();
                break;
            }
            page_bytes += size_bytes;
            page.directories.push(*directory);
        }
        let is_answer = !page.directories.is_empty() || !self.sent;
        self.sent = true;
        Ok(is_answer.then_some(page))
    }

    /// The next directory that the client has not seen, and the size of its encoding.
    fn directory(&mut self) -> Result<Option<(Box<api::Directory>, usize)>, Status> {
        if let Some(over) = self.over.take() {
            return Ok(Some(over));
        }
        while let Some(step) = self.walk.step()? {
            self.steps += 1;
            match step {
                Step::Missing(digest) if digest == self.request.root => {
                    return Err(status::not_found(&digest));
                }
                Step::Directory(directory, size_bytes) if self.steps > self.request.skip => {
                    return Ok(Some((
                        directory,
                        usize::try_from(size_bytes).unwrap_or(usize::MAX),
                    )));
                }
                Step::Missing(_) | Step::Directory(..) => {}
            }
        }
        Ok(None)
    }
}
