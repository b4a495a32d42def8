//! The scan: everything that patterns name is looked at on disk, once, and nothing else.
//!
//! The known part of the source root is a tree of [`Node`]s. Patterns first leave requests in it: a
//! name wanted below a directory, a directory wanted whole, a glob that starts at a directory. Then
//! the tree is visited level by level, the directories of a level by several threads. A directory
//! is reached at one level only, so one visit serves all requests of all jobs: it lists the
//! directory if a request needs the names, and otherwise asks for the wanted names alone.
//!
//! The scan reads no contents, follows no symlink, and decides nothing about what jobs get.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::graph::InputPattern;
use distbuild_proto::{Digest, Name, RelPath};

use super::guide::Guide;
use super::parallel;
use super::source::{self, Entry, FileMeta, Kind, SourceRoot};

/// Position of a node; a parent's is smaller than its children's.
pub(super) type NodeId = u32;
/// Position of a glob.
pub(super) type GlobId = u32;

/// The node of the source root.
pub(super) const ROOT: NodeId = 0;

/// Directories below the source root nest at most so deep, so that recursion over them is bounded.
pub(super) const MAX_DEPTH: u32 = 256;

/// Levels with fewer directories are visited by one thread.
const INLINE_BELOW: usize = 8;

/// One name of the source tree.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: NodeId,
    /// None for the root.
    pub(super) name: Option<Name>,
    pub(super) fact: Fact,
    /// What is known below a directory, in no order.
    pub(super) children: Vec<NodeId>,
    depth: u32,
    request: Option<Box<Request>>,
}

/// What is known of a name.
#[derive(Debug)]
pub(super) enum Fact {
    /// Not looked at: what lies above it is no directory.
    Unknown,
    Absent,
    Excluded,
    File {
        meta: FileMeta,
        digest: Option<Digest>,
    },
    Symlink(Bytes),
    Directory,
    Special(&'static str),
    Unreadable(Arc<io::Error>),
    /// It changed whenever it was hashed.
    Changing,
}

/// What patterns want to know about a directory.
#[derive(Debug, Default)]
struct Request {
    names: BTreeMap<Name, NodeId>,
    whole: bool,
    globs: Vec<GlobId>,
}

/// A glob and what it has found.
#[derive(Debug)]
pub(super) struct GlobWalk {
    pattern: InputPattern,
    guide: Guide,
    base_depth: u32,
    /// The matches, in ascending order once the scan is over.
    pub(super) found: Vec<NodeId>,
    /// Directories that it had to enter and could not.
    pub(super) blocked: Vec<NodeId>,
}

/// What a scan looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ScanStats {
    pub(super) directories_listed: u64,
    pub(super) names_looked_up: u64,
}

/// The known part of the source root.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) nodes: Vec<Node>,
    pub(super) globs: Vec<GlobWalk>,
    pub(super) stats: ScanStats,
}

/// What a visit found under one name.
struct Found {
    which: Which,
    fact: Fact,
    matched: Vec<GlobId>,
    enter: Vec<GlobId>,
}

enum Which {
    Known(NodeId),
    New(Name),
}

struct Visit {
    found: Vec<Found>,
    listed: bool,
    looked_up: u64,
}

impl Scan {
    pub(super) fn new() -> Self {
        let mut scan = Self { nodes: Vec::new(), globs: Vec::new(), stats: ScanStats::default() };
        scan.push(ROOT, None, 0, Fact::Directory);
        scan
    }

    /// Keeps a path from being found. The root itself cannot be excluded.
    pub(super) fn exclude(&mut self, path: &RelPath) {
        if let Some(node) = self.intern(path).filter(|node| *node != ROOT) {
            self.nodes[node as usize].fact = Fact::Excluded;
        }
    }

    /// Asks for the one path, and for all below it if it is a directory.
    pub(super) fn want_path(&mut self, path: &RelPath) -> Option<NodeId> {
        let node = self.intern(path)?;
        self.request(node).whole = true;
        Some(node)
    }

    /// Asks for whatever a glob matches. Returns the node of its base.
    pub(super) fn want_glob(&mut self, pattern: &InputPattern) -> Option<(NodeId, GlobId)> {
        let base = self.intern(pattern.literal_base())?;
        let id = GlobId::try_from(self.globs.len()).ok()?;
        let base_depth = self.nodes[base as usize].depth;
        self.globs.push(GlobWalk {
            pattern: pattern.clone(),
            guide: Guide::new(pattern),
            base_depth,
            found: Vec::new(),
            blocked: Vec::new(),
        });
        self.request(base).globs.push(id);
        Some((base, id))
    }

    /// The node of a path, made if need be; none when there are more than 2³² of them.
    fn intern(&mut self, path: &RelPath) -> Option<NodeId> {
        let mut at = ROOT;
        for component in path.components() {
            let known = self.request(at).names.get(component).copied();
            at = match known {
                Some(child) => child,
                None => {
                    let name = Name::new(component).ok()?;
                    let depth = self.nodes[at as usize].depth + 1;
                    let child = self.push(at, Some(name.clone()), depth, Fact::Unknown)?;
                    self.request(at).names.insert(name, child);
                    child
                }
            };
        }
        Some(at)
    }

    fn push(
        &mut self,
        parent: NodeId,
        name: Option<Name>,
        depth: u32,
        fact: Fact,
    ) -> Option<NodeId> {
        let id = NodeId::try_from(self.nodes.len()).ok()?;
        self.nodes.push(Node { parent, name, fact, children: Vec::new(), depth, request: None });
        if id != ROOT {
            self.nodes[parent as usize].children.push(id);
        }
        Some(id)
    }

    fn request(&mut self, node: NodeId) -> &mut Request {
        self.nodes[node as usize].request.get_or_insert_default()
    }

    /// Looks at everything that was asked for.
    pub(super) fn run(&mut self, root: &SourceRoot) {
        let mut level = vec![ROOT];
        while !level.is_empty() {
            let this: &Self = self;
            let visits =
                parallel::map(&level, INLINE_BELOW, || (), |(), node| this.visit(root, *node));
            let mut next = Vec::new();
            for (node, visit) in level.into_iter().zip(visits) {
                match visit {
                    Ok(visit) => self.merge(node, visit, &mut next),
                    Err(error) => self.block(node, error),
                }
            }
            level = next;
        }
        for glob in &mut self.globs {
            glob.found.sort_unstable();
        }
    }

    fn visit(&self, root: &SourceRoot, node: NodeId) -> io::Result<Visit> {
        let mut visit = Visit { found: Vec::new(), listed: false, looked_up: 0 };
        let Some(request) = self.nodes[node as usize].request.as_deref() else {
            return Ok(visit);
        };
        let path = self.path(node);
        if request.whole || !request.globs.is_empty() {
            let mut directory = root.listing(&path)?;
            visit.listed = true;
            for (name, kind) in source::list(&mut directory)? {
                self.visit_name(node, request, &path, &directory, (name, kind), &mut visit)?;
            }
            return Ok(visit);
        }
        let mut unknown = request
            .names
            .iter()
            .filter(|(_, child)| matches!(self.nodes[**child as usize].fact, Fact::Unknown))
            .peekable();
        if unknown.peek().is_none() {
            return Ok(visit);
        }
        let directory = root.directory(&path)?;
        for (name, child) in unknown {
            visit.looked_up += 1;
            let fact = Fact::of(source::look_up(&directory, name.as_bytes()));
            let which = Which::Known(*child);
            visit.found.push(Found { which, fact, matched: Vec::new(), enter: Vec::new() });
        }
        Ok(visit)
    }

    /// One name of a listing.
    fn visit_name(
        &self,
        node: NodeId,
        request: &Request,
        path: &RelPath,
        directory: impl AsFd,
        (name, kind): (Name, Option<Kind>),
        visit: &mut Visit,
    ) -> io::Result<()> {
        let known = request.names.get(name.as_bytes()).copied();
        if known.is_some_and(|child| matches!(self.nodes[child as usize].fact, Fact::Excluded)) {
            return Ok(());
        }
        let mut matched = Vec::new();
        let mut enter = Vec::new();
        if !request.globs.is_empty() {
            let path = path.join(&name);
            for id in &request.globs {
                let glob = &self.globs[*id as usize];
                if glob.pattern.matches(&path) {
                    matched.push(*id);
                }
                let below = self.nodes[node as usize].depth - glob.base_depth;
                if kind != Some(Kind::Other) && glob.guide.leads_into(below as usize, &name) {
                    enter.push(*id);
                }
            }
        }
        let wanted = request.whole || known.is_some() || !matched.is_empty() || !enter.is_empty();
        if !wanted {
            return Ok(());
        }
        let entry = if kind == Some(Kind::Directory) {
            Ok(Some(Entry::Directory))
        } else {
            visit.looked_up += 1;
            source::look_up(directory, name.as_bytes())
        };
        // A name that is only a way to others is of no interest when it is no directory.
        let way_only = !request.whole && known.is_none() && matched.is_empty();
        let fact = match entry {
            Ok(None) => return Ok(()),
            Ok(Some(Entry::Directory)) => Fact::Directory,
            _ if way_only => return Ok(()),
            entry => Fact::of(entry),
        };
        let which = known.map_or(Which::New(name), Which::Known);
        visit.found.push(Found { which, fact, matched, enter });
        Ok(())
    }

    fn merge(&mut self, node: NodeId, visit: Visit, next: &mut Vec<NodeId>) {
        self.stats.directories_listed += u64::from(visit.listed);
        self.stats.names_looked_up += visit.looked_up;
        let parent = &self.nodes[node as usize];
        let depth = parent.depth + 1;
        let whole = parent.request.as_ref().is_some_and(|request| request.whole);
        for found in visit.found {
            let child = match found.which {
                Which::Known(child) => Some(child),
                Which::New(name) => self.push(node, Some(name), depth, Fact::Unknown),
            };
            let Some(child) = child else {
                return self.block(node, io::Error::other("the source tree has too many names"));
            };
            let directory = matches!(found.fact, Fact::Directory);
            self.nodes[child as usize].fact = found.fact;
            for glob in found.matched {
                self.globs[glob as usize].found.push(child);
            }
            if !directory {
                continue;
            }
            if whole || !found.enter.is_empty() {
                let request = self.request(child);
                request.whole |= whole;
                request.globs.extend(found.enter);
            }
            if self.nodes[child as usize].request.is_none() {
                continue;
            }
            if depth > MAX_DEPTH {
                self.block(child, too_deep());
            } else {
                next.push(child);
            }
        }
        self.miss_the_rest(node);
    }

    /// Wanted names that a visit did not find do not exist.
    fn miss_the_rest(&mut self, node: NodeId) {
        let Some(request) = self.nodes[node as usize].request.take() else { return };
        for child in request.names.values() {
            let fact = &mut self.nodes[*child as usize].fact;
            if matches!(fact, Fact::Unknown) {
                *fact = Fact::Absent;
            }
        }
        self.nodes[node as usize].request = Some(request);
    }

    /// A directory that cannot be read: whoever had to enter it learns so.
    fn block(&mut self, node: NodeId, error: io::Error) {
        let globs = self.request(node).globs.clone();
        for glob in globs {
            self.globs[glob as usize].blocked.push(node);
        }
        self.nodes[node as usize].fact = Fact::Unreadable(Arc::new(error));
    }

    /// The path of a node below the source root.
    pub(super) fn path(&self, node: NodeId) -> RelPath {
        let mut names = Vec::new();
        let mut at = node;
        while let Some(name) = &self.nodes[at as usize].name {
            names.push(name.as_bytes());
            at = self.nodes[at as usize].parent;
        }
        names.reverse();
        // Components that are names make a path.
        RelPath::new(&names.join(&b'/')).unwrap_or_default()
    }

    /// Whether `below` is `above` or lies below it.
    pub(super) fn contains(&self, above: NodeId, below: NodeId) -> bool {
        let mut at = below;
        // A parent is older than its children.
        while at > above {
            at = self.nodes[at as usize].parent;
        }
        at == above
    }
}

/// Why a directory is not entered that lies deeper than [`MAX_DEPTH`].
pub(super) fn too_deep() -> io::Error {
    io::Error::other(format!("directories nest more than {MAX_DEPTH} deep"))
}

impl Fact {
    /// Whether the name is there and may be matched.
    pub(super) fn exists(&self) -> bool {
        !matches!(self, Self::Unknown | Self::Absent | Self::Excluded)
    }

    fn of(entry: io::Result<Option<Entry>>) -> Self {
        match entry {
            Ok(None) => Self::Absent,
            Ok(Some(Entry::File(meta))) => Self::File { meta, digest: None },
            Ok(Some(Entry::Symlink(target, _))) => Self::Symlink(target),
            Ok(Some(Entry::Directory)) => Self::Directory,
            Ok(Some(Entry::Special(kind))) => Self::Special(kind),
            Err(error) => Self::Unreadable(Arc::new(error)),
        }
    }
}
