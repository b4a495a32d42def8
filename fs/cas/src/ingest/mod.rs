//! The ingest of source trees: from the inputs that jobs declare to directories and digests.
//!
//! [`Ingest::snapshot`] takes the patterns of all jobs and gives a [`Snapshot`]: for every job the
//! digest of its *pruned* source tree, which holds what the job declares and nothing else; the
//! blobs of all those directories; and the files that the client may lend, by contents. It works in
//! four steps, each for all jobs at once:
//!
//! 1. *scan* looks at what patterns name, each directory and file once, in parallel;
//! 2. *resolve* finds what each distinct pattern selects, and everything that is wrong;
//! 3. *hash* reads the files that the [`StatCache`] does not know;
//! 4. *prune* makes the directories, sharing what jobs have in common.
//!
//! A path selects a file, a symlink, or a directory with all that lies in it, empty directories and
//! dot files included. A glob selects the names that it matches; `directory/**` is the directory.
//! Symlinks are kept and never followed. Of modes only the owner's executable bit is kept. Excluded
//! paths are not there. Ingest never writes into the source tree, never follows a path out of it,
//! and never opens what is no regular file.

mod error;
mod guide;
mod lend;
mod output_tree;
mod parallel;
mod prune;
mod resolve;
mod scan;
mod source;
mod stat_cache;
#[cfg(test)]
mod tests;
mod tree_memory;

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use distbuild_proto::graph::InputPattern;
use distbuild_proto::{Digest, DigestFunction, RelPath};

use prune::{Chosen, Pruner};
use resolve::{Judge, Request, Selected};
use scan::{Fact, NodeId, Scan};
use source::{HashFailure, Hashed, SourceRoot};

pub use error::{IngestError, InputError, InputProblem};
pub use lend::{LendError, LentFile, LentReader, Snapshot};
pub use output_tree::{OutputTreeError, digest_tree};
pub use source::FileIdentity;
pub use stat_cache::{RACY_WINDOW, StatCache, StatCacheError};
pub use tree_memory::TreeMemory;

/// What an ingest did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IngestStats {
    /// Regular files that some job declares.
    pub files_declared: u64,
    /// Distinct bytes of those files, that is, equal contents counted once.
    pub declared_bytes: u64,
    /// Files that were opened and hashed.
    pub files_hashed: u64,
    /// Bytes of the files that were hashed.
    pub bytes_hashed: u64,
    /// Files whose digest the stat cache knew.
    pub files_from_cache: u64,
    /// Directories whose names were listed.
    pub directories_listed: u64,
    /// Names that were asked for with `lstat`.
    pub names_looked_up: u64,
}

/// A source root whose trees can be taken.
#[derive(Debug)]
pub struct Ingest {
    root: PathBuf,
    excluded: Vec<RelPath>,
    cache: Arc<StatCache>,
}

impl Ingest {
    /// Prepares to read below `root` (which itself may be reached through symlinks). `excluded` are
    /// absolute paths that never match: output directory, state directory, graph file. Those that
    /// do not lie below the root, or do not exist, exclude nothing. Digests are of the cache's
    /// function.
    ///
    /// # Errors
    /// The root does not exist.
    pub fn new(
        root: &Path,
        excluded: &[PathBuf],
        cache: Arc<StatCache>,
    ) -> Result<Self, IngestError> {
        let canonical = fs::canonicalize(root)
            .map_err(|source| IngestError::Root { path: root.to_owned(), source })?;
        let excluded = excluded.iter().flat_map(|path| below(&canonical, path)).collect();
        Ok(Self { root: canonical, excluded, cache })
    }

    /// Takes the trees of all jobs, given the patterns of each. `now` is the time at which this
    /// starts: what changed within [`RACY_WINDOW`] before it is not remembered in the cache, which
    /// the caller saves. Blocks and uses several threads; for a thread that may.
    ///
    /// # Errors
    /// Every invalid input of every job. Unreadable contents are found only when all else is
    /// valid, because nothing is hashed before.
    pub fn snapshot<J: AsRef<[InputPattern]>>(
        &self,
        jobs: &[J],
        now: SystemTime,
    ) -> Result<Snapshot, IngestError> {
        let root = SourceRoot::open(&self.root)
            .map_err(|source| IngestError::Root { path: self.root.clone(), source })?;
        let mut scan = Scan::new();
        for path in &self.excluded {
            scan.exclude(path);
        }
        let mut declared = Declared::gather(jobs, &mut scan)?;
        scan.run(&root);
        if Judge::new(&scan, &root).judge(&mut declared.requests) {
            return Err(declared.errors(jobs));
        }
        let mut stats = IngestStats {
            directories_listed: scan.stats.directories_listed,
            names_looked_up: scan.stats.names_looked_up,
            ..IngestStats::default()
        };
        let files = declared.files(&scan);
        let failed = self.hash(&mut scan, &root, &files, now, &mut stats);
        if failed && Judge::new(&scan, &root).judge(&mut declared.requests) {
            return Err(declared.errors(jobs));
        }
        let (roots, directories) = declared.prune(&scan, self.cache.function())?;
        let files = lendable(&scan, &files, &mut stats);
        let cache = Arc::clone(&self.cache);
        Ok(Snapshot { roots, directories, files, source: root, cache, stats })
    }

    /// Fills in the digests of files. Returns whether any file failed.
    fn hash(
        &self,
        scan: &mut Scan,
        root: &SourceRoot,
        files: &[NodeId],
        now: SystemTime,
        stats: &mut IngestStats,
    ) -> bool {
        let known: &Scan = scan;
        let digested = parallel::map(files, 2, Vec::new, |buffer, node| {
            if let Fact::File { meta, .. } = known.nodes[*node as usize].fact
                && let Some(digest) = self.cache.get(&meta.identity)
            {
                return Ok((Hashed { meta, digest }, true));
            }
            let hashed = root.hash_file(&known.path(*node), self.cache.function(), buffer)?;
            self.cache.remember(&hashed.meta.identity, &hashed.digest, now);
            Ok((hashed, false))
        });
        let mut failed = false;
        for (node, digested) in files.iter().zip(digested) {
            scan.nodes[*node as usize].fact = match digested {
                Ok((Hashed { meta, digest }, from_cache)) => {
                    stats.files_from_cache += u64::from(from_cache);
                    stats.files_hashed += u64::from(!from_cache);
                    stats.bytes_hashed += if from_cache { 0 } else { digest.size_bytes() };
                    Fact::File { meta, digest: Some(digest) }
                }
                Err(HashFailure::Changed) => Fact::Changing,
                Err(HashFailure::Io(error)) => Fact::Unreadable(Arc::new(error)),
            };
            failed |= !matches!(scan.nodes[*node as usize].fact, Fact::File { .. });
        }
        failed
    }
}

/// What all jobs declare, each distinct pattern and each distinct list of patterns once.
struct Declared {
    requests: Vec<Request>,
    /// Positions in `requests`, in the order in which a job declares them.
    lists: Vec<Vec<usize>>,
    /// For every job the position of its list.
    job_lists: Vec<usize>,
}

impl Declared {
    fn gather<J: AsRef<[InputPattern]>>(jobs: &[J], scan: &mut Scan) -> Result<Self, IngestError> {
        let mut requests = Vec::new();
        let mut lists: Vec<Vec<usize>> = Vec::new();
        let mut known_paths: HashMap<&RelPath, usize> = HashMap::new();
        let mut known_globs: HashMap<Bytes, usize> = HashMap::new();
        let mut known_lists: HashMap<Vec<usize>, usize> = HashMap::new();
        let mut job_lists = Vec::with_capacity(jobs.len());
        for job in jobs {
            let mut list = Vec::with_capacity(job.as_ref().len());
            for pattern in job.as_ref() {
                let request = if pattern.is_literal() {
                    known_paths.entry(pattern.literal_base()).or_insert(requests.len())
                } else {
                    known_globs.entry(pattern.to_bytes()).or_insert(requests.len())
                };
                if *request == requests.len() {
                    let new = Request::put(pattern, scan).ok_or(IngestError::TooManyNames)?;
                    requests.push(new);
                }
                list.push(*request);
            }
            let list = match known_lists.get(&list) {
                Some(known) => *known,
                None => {
                    let new = lists.len();
                    lists.push(list.clone());
                    known_lists.insert(list, new);
                    new
                }
            };
            job_lists.push(list);
        }
        Ok(Self { requests, lists, job_lists })
    }

    /// Everything that is wrong, in the order of jobs and their patterns.
    fn errors<J: AsRef<[InputPattern]>>(&self, jobs: &[J]) -> IngestError {
        let mut errors = Vec::new();
        for (job, (patterns, list)) in jobs.iter().zip(&self.job_lists).enumerate() {
            for (pattern, request) in patterns.as_ref().iter().zip(&self.lists[*list]) {
                for problem in &self.requests[*request].problems {
                    let (pattern, problem) = (pattern.clone(), problem.clone());
                    errors.push(InputError { job, pattern, problem });
                }
            }
        }
        IngestError::Inputs(errors)
    }

    /// The regular files that are selected, each once, in ascending order.
    fn files(&self, scan: &Scan) -> Vec<NodeId> {
        let mut seen = vec![false; scan.nodes.len()];
        let mut files = Vec::new();
        for request in &self.requests {
            let mut stack = match request.selected(scan) {
                Selected::Subtree(node) => vec![node],
                Selected::Nodes(nodes) => {
                    let is_file = |node: &&NodeId| {
                        matches!(scan.nodes[**node as usize].fact, Fact::File { .. })
                    };
                    nodes.iter().filter(is_file).copied().collect()
                }
            };
            while let Some(node) = stack.pop() {
                if std::mem::replace(&mut seen[node as usize], true) {
                    continue;
                }
                let known = &scan.nodes[node as usize];
                if matches!(known.fact, Fact::File { .. }) {
                    files.push(node);
                }
                stack.extend(&known.children);
            }
        }
        files.sort_unstable();
        files
    }

    fn prune(
        &self,
        scan: &Scan,
        function: DigestFunction,
    ) -> Result<(Vec<Digest>, HashMap<Digest, Bytes>), IngestError> {
        let chosen: Vec<Chosen> =
            self.requests.iter().map(|request| Chosen::of(request, scan)).collect();
        let mut pruner = Pruner::new(scan, function);
        let mut digests = Vec::with_capacity(self.lists.len());
        for list in &self.lists {
            let parts: Vec<&Chosen> = list.iter().map(|at| &chosen[*at]).collect();
            digests.push(pruner.root(&Chosen::union(&parts))?);
        }
        let roots = self.job_lists.iter().map(|list| digests[*list]).collect();
        Ok((roots, pruner.directories))
    }
}

/// The declared files by contents, and their sizes summed up.
fn lendable(scan: &Scan, files: &[NodeId], stats: &mut IngestStats) -> HashMap<Digest, LentFile> {
    let mut lendable = HashMap::with_capacity(files.len());
    for node in files {
        if let Fact::File { meta, digest: Some(digest) } = &scan.nodes[*node as usize].fact {
            stats.files_declared += 1;
            lendable.entry(*digest).or_insert_with(|| {
                stats.declared_bytes += digest.size_bytes();
                LentFile { path: scan.path(*node), identity: meta.identity }
            });
        }
    }
    lendable
}

/// Where an absolute path lies below a canonical root: both as it is named and, should it be a
/// symlink, where it leads.
fn below(root: &Path, path: &Path) -> Vec<RelPath> {
    let named = path.parent().zip(path.file_name()).and_then(|(parent, name)| {
        let parent = fs::canonicalize(parent).ok()?;
        Some(parent.join(name))
    });
    let places = named.into_iter().chain(fs::canonicalize(path));
    places
        .filter_map(|place| {
            let below = place.strip_prefix(root).ok()?;
            RelPath::new(below.as_os_str().as_bytes()).ok()
        })
        .filter(|place| !place.is_root())
        .collect()
}
