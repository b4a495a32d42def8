//! From patterns to what they select, or to what is wrong with them.
//!
//! Each distinct pattern is one [`Request`], however many jobs declare it. It is put to the scan
//! before the scan runs and judged afterwards; judging touches the disk only to suggest a name.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use distbuild_proto::graph::{InputPattern, nearest};

use super::error::InputProblem;
use super::scan::{Fact, GlobId, NodeId, ROOT, Scan};
use super::source::{self, SourceRoot};

/// Problems of one pattern that are reported; a directory may hold any number of sockets.
const MAX_PROBLEMS: usize = 100;
/// Missing names for which a directory is searched for a similar one.
const MAX_SUGGESTIONS: usize = 100;

/// One distinct pattern.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) target: Target,
    pub(super) problems: Vec<InputProblem>,
}

/// Where a pattern finds what it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A path with all that lies below it.
    Path(NodeId),
    /// `directory/**`: all that lies below a path, which must be something.
    Below(NodeId),
    /// What a glob with this base matches.
    Glob { base: NodeId, glob: GlobId },
}

impl Request {
    /// Puts a pattern to the scan; none if the scan can hold no more names.
    pub(super) fn put(pattern: &InputPattern, scan: &mut Scan) -> Option<Self> {
        let target = if pattern.is_literal() {
            Target::Path(scan.want_path(pattern.literal_base())?)
        } else if is_subtree(pattern) {
            Target::Below(scan.want_path(pattern.literal_base())?)
        } else {
            let (base, glob) = scan.want_glob(pattern)?;
            Target::Glob { base, glob }
        };
        Some(Self { target, problems: Vec::new() })
    }

    /// The nodes that it selects, each with all that lies below it.
    pub(super) fn selected<'a>(&self, scan: &'a Scan) -> Selected<'a> {
        match self.target {
            Target::Path(node) | Target::Below(node) => Selected::Subtree(node),
            Target::Glob { glob, .. } => Selected::Nodes(&scan.globs[glob as usize].found),
        }
    }

    /// Whether it had to look at `node`.
    fn concerns(&self, scan: &Scan, node: NodeId) -> bool {
        match self.selected(scan) {
            Selected::Subtree(above) => scan.contains(above, node),
            Selected::Nodes(found) => found.binary_search(&node).is_ok(),
        }
    }
}

/// What a pattern selects.
#[derive(Clone, Copy, Debug)]
pub(super) enum Selected<'a> {
    /// A node and everything below it.
    Subtree(NodeId),
    /// These nodes and nothing below them; in ascending order.
    Nodes(&'a [NodeId]),
}

/// Whether a glob is `directory/**`, which is a subtree with a digest of its own.
fn is_subtree(glob: &InputPattern) -> bool {
    let source = glob.to_bytes();
    let mut components = source.split(|byte| *byte == b'/');
    let below_base = glob.literal_base().components().count();
    components.nth(below_base) == Some(b"**") && components.next().is_none()
}

/// Judges patterns by what a scan has found.
pub(super) struct Judge<'a> {
    scan: &'a Scan,
    root: &'a SourceRoot,
    /// Names of directories in which something was missing.
    listings: HashMap<NodeId, Vec<String>>,
    suggestions: usize,
}

impl<'a> Judge<'a> {
    pub(super) fn new(scan: &'a Scan, root: &'a SourceRoot) -> Self {
        Self { scan, root, listings: HashMap::new(), suggestions: 0 }
    }

    /// Finds what is wrong with each pattern. Returns whether anything is.
    pub(super) fn judge(&mut self, requests: &mut [Request]) -> bool {
        for request in &mut *requests {
            request.problems.extend(self.own_problem(request.target));
        }
        self.spread_bad_nodes(requests);
        requests.iter().any(|request| !request.problems.is_empty())
    }

    /// What keeps a pattern from selecting anything.
    fn own_problem(&mut self, target: Target) -> Option<InputProblem> {
        let (node, inside) = match target {
            Target::Path(node) => (node, false),
            Target::Below(node) | Target::Glob { base: node, .. } => (node, true),
        };
        if let Err(problem) = self.check_way(node, inside) {
            return Some(problem);
        }
        let matches = match target {
            Target::Path(_) => true,
            Target::Below(node) => {
                let children = &self.scan.nodes[node as usize].children;
                children.iter().any(|child| self.scan.nodes[*child as usize].fact.exists())
            }
            Target::Glob { glob, .. } => {
                let glob = &self.scan.globs[glob as usize];
                !glob.found.is_empty() || !glob.blocked.is_empty()
            }
        };
        (!matches).then_some(InputProblem::NoMatch)
    }

    /// Walks from the root to a node. `inside`: the node must be a directory.
    fn check_way(&mut self, node: NodeId, inside: bool) -> Result<(), InputProblem> {
        let mut way = vec![node];
        let mut at = node;
        while at != ROOT {
            at = self.scan.nodes[at as usize].parent;
            way.push(at);
        }
        for at in way.into_iter().rev() {
            let enters = inside || at != node;
            match &self.scan.nodes[at as usize].fact {
                Fact::Directory => {}
                Fact::File { .. } | Fact::Symlink(_) if !enters => {}
                Fact::Symlink(_) => {
                    return Err(InputProblem::ThroughSymlink { path: self.display(at) });
                }
                Fact::File { .. } => {
                    return Err(InputProblem::NotADirectory { path: self.display(at) });
                }
                Fact::Unknown | Fact::Absent => return Err(self.missing(at)),
                Fact::Excluded => {
                    return Err(InputProblem::Excluded { path: self.display(at) });
                }
                fact => {
                    if let Some(problem) = bad(fact, || self.display(at)) {
                        return Err(problem);
                    }
                }
            }
        }
        Ok(())
    }

    /// What cannot be an input is the fault of every pattern that selects it.
    fn spread_bad_nodes(&self, requests: &mut [Request]) {
        for (node, known) in (0..).zip(&self.scan.nodes) {
            let path = || self.display(node);
            let Some(problem) = bad(&known.fact, path) else { continue };
            for request in &mut *requests {
                let has_own = matches!(request.target, Target::Path(own) if own == node);
                let blocked = match request.target {
                    Target::Glob { glob, .. } => {
                        self.scan.globs[glob as usize].blocked.contains(&node)
                    }
                    Target::Path(_) | Target::Below(_) => false,
                };
                let concerned = blocked || request.concerns(self.scan, node);
                if concerned && !has_own && request.problems.len() < MAX_PROBLEMS {
                    request.problems.push(problem.clone());
                }
            }
        }
    }

    fn missing(&mut self, node: NodeId) -> InputProblem {
        InputProblem::Missing { path: self.display(node), nearest: self.nearest(node) }
    }

    /// What lies beside a missing name and looks like it.
    fn nearest(&mut self, node: NodeId) -> Option<PathBuf> {
        self.suggestions += 1;
        if self.suggestions > MAX_SUGGESTIONS {
            return None;
        }
        let missing = &self.scan.nodes[node as usize];
        let wanted = std::str::from_utf8(missing.name.as_ref()?.as_bytes()).ok()?;
        let directory = self.scan.path(missing.parent);
        let names = self.listings.entry(missing.parent).or_insert_with(|| {
            let listed = self.root.listing(&directory).and_then(|mut dir| source::list(&mut dir));
            let names = listed.unwrap_or_default().into_iter();
            names.filter_map(|(name, _)| String::from_utf8(name.as_bytes().to_vec()).ok()).collect()
        });
        let nearest = nearest(wanted, names.iter().map(String::as_str))?;
        Some(directory.as_path().join(nearest))
    }

    fn display(&self, node: NodeId) -> PathBuf {
        if node == ROOT { PathBuf::from(".") } else { self.scan.path(node).as_path().to_owned() }
    }
}

/// The problem of a node that nobody can have as an input.
fn bad(fact: &Fact, path: impl FnOnce() -> PathBuf) -> Option<InputProblem> {
    Some(match fact {
        Fact::Special(kind) => InputProblem::Special { path: path(), kind },
        Fact::Unreadable(source) => {
            InputProblem::Unreadable { path: path(), source: Arc::clone(source) }
        }
        Fact::Changing => InputProblem::Changing { path: path() },
        Fact::Unknown
        | Fact::Absent
        | Fact::Excluded
        | Fact::File { .. }
        | Fact::Symlink(_)
        | Fact::Directory => return None,
    })
}
