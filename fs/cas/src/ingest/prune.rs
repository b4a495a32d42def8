//! The pruned tree of a job: its directories hold what its patterns select, and nothing else.
//!
//! What one pattern selects is an immutable tree of [`Chosen`] nodes, made once and shared by all
//! jobs that declare it; a job's tree is the union of those of its patterns. The union copies only
//! directories to which two patterns contribute, and digests are remembered in the shared parts, so
//! a job costs what is special about it: one source file and a large common `include/**` cost as
//! much as the file alone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use distbuild_proto::{
    Digest, DigestFunction, Directory, DirectoryNode, FileNode, SymlinkNode, TreeError,
};

use super::resolve::{Request, Selected};
use super::scan::{Fact, NodeId, ROOT, Scan};

/// What is chosen of a node.
#[derive(Clone, Debug)]
pub(super) enum Chosen {
    /// A file, a symlink, or a directory with all that lies in it.
    Whole,
    /// A directory with some of its children.
    Part(Arc<Part>),
}

/// Some children of a directory.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Sorted by node, each node once.
    children: Vec<(NodeId, Chosen)>,
    digest: OnceLock<Digest>,
}

impl Chosen {
    fn part(children: Vec<(NodeId, Chosen)>) -> Self {
        Self::Part(Arc::new(Part { children, digest: OnceLock::new() }))
    }

    /// What a pattern chooses of the source root.
    pub(super) fn of(request: &Request, scan: &Scan) -> Self {
        match request.selected(scan) {
            Selected::Subtree(node) => Self::subtree(scan, node),
            Selected::Nodes(nodes) => Self::nodes(scan, nodes),
        }
    }

    fn subtree(scan: &Scan, node: NodeId) -> Self {
        let mut chosen = Self::Whole;
        let mut at = node;
        while at != ROOT {
            chosen = Self::part(vec![(at, chosen)]);
            at = scan.nodes[at as usize].parent;
        }
        chosen
    }

    fn nodes(scan: &Scan, nodes: &[NodeId]) -> Self {
        let mut below: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        let mut seen = HashSet::new();
        for node in nodes {
            let mut at = *node;
            while at != ROOT && seen.insert(at) {
                let parent = scan.nodes[at as usize].parent;
                below.entry(parent).or_default().push(at);
                at = parent;
            }
        }
        Self::grow(scan, ROOT, &mut below)
    }

    fn grow(scan: &Scan, node: NodeId, below: &mut HashMap<NodeId, Vec<NodeId>>) -> Self {
        if !matches!(scan.nodes[node as usize].fact, Fact::Directory) {
            return Self::Whole;
        }
        let mut children = below.remove(&node).unwrap_or_default();
        children.sort_unstable();
        let grown = children.into_iter().map(|child| (child, Self::grow(scan, child, below)));
        Self::part(grown.collect())
    }

    /// What is chosen by any of `chosen`.
    pub(super) fn union(chosen: &[&Self]) -> Self {
        let mut parts: Vec<&Arc<Part>> = Vec::with_capacity(chosen.len());
        for one in chosen {
            match one {
                Self::Whole => return Self::Whole,
                Self::Part(part) => parts.push(part),
            }
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.children.len()));
        let Some((largest, others)) = parts.split_first() else {
            return Self::part(Vec::new());
        };
        let new: Vec<_> = others.iter().filter(|part| !largest.covers(part)).collect();
        if new.is_empty() {
            return Self::Part(Arc::clone(largest));
        }
        let mut all: Vec<&(NodeId, Self)> = largest.children.iter().collect();
        all.extend(new.into_iter().flat_map(|part| &part.children));
        all.sort_by_key(|(node, _)| *node);
        let same_node = all.chunk_by(|(a, _), (b, _)| a == b);
        let children = same_node.filter_map(|group| match group {
            [] => None,
            [(node, only)] => Some((*node, only.clone())),
            [(node, _), ..] => {
                let chosen: Vec<&Self> = group.iter().map(|(_, chosen)| chosen).collect();
                Some((*node, Self::union(&chosen)))
            }
        });
        Self::part(children.collect())
    }
}

impl Part {
    /// Whether everything in `other` is chosen here, too.
    fn covers(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let has = |(node, theirs): &(NodeId, Chosen)| {
            let Ok(at) = self.children.binary_search_by_key(node, |(node, _)| *node) else {
                return false;
            };
            match (&self.children[at].1, theirs) {
                (Chosen::Whole, _) => true,
                (Chosen::Part(_), Chosen::Whole) => false,
                (Chosen::Part(ours), Chosen::Part(theirs)) => ours.covers(theirs),
            }
        };
        Arc::ptr_eq(self, other) || other.children.iter().all(has)
    }
}

/// Makes directories of what is chosen, each distinct one once.
pub(super) struct Pruner<'a> {
    scan: &'a Scan,
    function: DigestFunction,
    whole: HashMap<NodeId, Digest>,
    /// The blobs of all directories made.
    pub(super) directories: HashMap<Digest, Bytes>,
}

impl<'a> Pruner<'a> {
    pub(super) fn new(scan: &'a Scan, function: DigestFunction) -> Self {
        Self { scan, function, whole: HashMap::new(), directories: HashMap::new() }
    }

    /// The digest of the source root as far as it is chosen.
    pub(super) fn root(&mut self, chosen: &Chosen) -> Result<Digest, TreeError> {
        self.directory(ROOT, chosen)
    }

    fn directory(&mut self, node: NodeId, chosen: &Chosen) -> Result<Digest, TreeError> {
        match chosen {
            Chosen::Whole => {
                if let Some(digest) = self.whole.get(&node) {
                    return Ok(*digest);
                }
                let children = &self.scan.nodes[node as usize].children;
                let children = children.iter().map(|child| (*child, &Chosen::Whole));
                let digest = self.encode(children)?;
                self.whole.insert(node, digest);
                Ok(digest)
            }
            Chosen::Part(part) => {
                if let Some(digest) = part.digest.get() {
                    return Ok(*digest);
                }
                let children = part.children.iter().map(|(child, chosen)| (*child, chosen));
                let digest = self.encode(children)?;
                Ok(*part.digest.get_or_init(|| digest))
            }
        }
    }

    fn encode<'c>(
        &mut self,
        children: impl Iterator<Item = (NodeId, &'c Chosen)>,
    ) -> Result<Digest, TreeError> {
        let (mut files, mut directories, mut symlinks) = (Vec::new(), Vec::new(), Vec::new());
        let scan = self.scan;
        for (child, chosen) in children {
            let node = &scan.nodes[child as usize];
            let Some(name) = node.name.clone() else { continue };
            match &node.fact {
                Fact::File { meta, digest: Some(digest) } => {
                    files.push(FileNode { name, digest: *digest, executable: meta.executable });
                }
                Fact::Symlink(target) => {
                    symlinks.push(SymlinkNode { name, target: target.clone() })
                }
                Fact::Directory => {
                    let digest = self.directory(child, chosen)?;
                    directories.push(DirectoryNode { name, digest });
                }
                // Not there, or an error that has ended the ingest before.
                Fact::File { digest: None, .. }
                | Fact::Unknown
                | Fact::Absent
                | Fact::Excluded
                | Fact::Special(_)
                | Fact::Unreadable(_)
                | Fact::Changing => {}
            }
        }
        let directory = Directory::new(files, directories, symlinks)?;
        let (digest, blob) = directory.encode_with_digest(self.function);
        self.directories.entry(digest).or_insert(blob);
        Ok(digest)
    }
}
