//! The report on inputs: for each job, what it declared and never looked at, and inputs that would do.
//!
//! What a job's commands looked at is in the record of the run that its result is of; the coordinator gives
//! records out when the build is over. A suggestion names what was looked at with success, and whole file
//! types of a directory where all of them were: with these inputs the same run would have seen the same, except
//! that a command may behave otherwise another time. So it is a suggestion.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use distbuild_proto::action::{DEP_NAME, SOURCE_NAME};
use distbuild_proto::digest::to_hex;
use distbuild_proto::wire::builds_client::BuildsClient;
use distbuild_proto::{
    AccessRecord, Child, Digest, Directory, Name, Observed, ObservedDirectory, RelPath, wire,
};
use serde::Serialize;
use tonic::transport::Channel;

use super::record::Record;
use super::sources::Sources;
use crate::exit::Failure;

/// Paths that are listed for one job.
const MAX_LISTED: usize = 10_000;

/// The object, field by field as documented.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    build_id: &'a str,
    jobs: Vec<JobLine<'a>>,
}

#[derive(Debug, Serialize)]
struct JobLine<'a> {
    job: &'a str,
    id: &'a str,
    /// Of the run that the result is of.
    action: Option<String>,
    /// What is known of it: `complete`, `incomplete`, `none`.
    record: &'static str,
    declared: Amount,
    looked_at: Amount,
    /// Declared inputs, a directory with a slash behind it if nothing in it was looked at.
    never_looked_at: Vec<String>,
    /// Beyond those that are listed.
    never_looked_at_more: usize,
    unused_deps: Vec<&'a str>,
    /// Only if the record is complete, and something was never looked at.
    suggested_inputs: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Amount {
    files: u64,
    bytes: u64,
}

impl Amount {
    fn add(&mut self, digest: &Digest) {
        self.files += 1;
        self.bytes += digest.size_bytes();
    }
}

/// Access records by the keys of their actions.
pub(crate) type Runs = HashMap<Bytes, AccessRecord>;

/// Asks for what the runs of a build's results looked at.
///
/// # Errors
/// The coordinator does not tell.
pub(crate) async fn runs(
    mut builds: BuildsClient<Channel>,
    record: &Record,
) -> Result<Runs, Failure> {
    let keys: BTreeSet<&Bytes> = record.runs.values().filter(|key| key.len() == 32).collect();
    let action_keys = keys.into_iter().cloned().collect();
    let request = wire::ListAccessRecordsRequest { action_keys };
    let refused = |status: tonic::Status| Failure::of_status(&status);
    let mut stream = builds.list_access_records(request).await.map_err(refused)?.into_inner();
    let mut runs = Runs::new();
    while let Some(run) = stream.message().await.map_err(refused)? {
        if let Ok(record) = AccessRecord::decode(&run.record) {
            runs.insert(run.action_key, record);
        }
    }
    Ok(runs)
}

impl<'a> Report<'a> {
    /// The report on a build that is over.
    pub(crate) fn new(record: &'a Record, sources: &Sources, runs: &Runs) -> Self {
        let trees = Trees::of(sources);
        let numbers = 0..u32::try_from(record.plan().len()).unwrap_or(u32::MAX);
        let line = |job| JobLine::new(record, job, sources.roots[job as usize], &trees, runs);
        Self { build_id: &record.build_id, jobs: numbers.map(line).collect() }
    }

    /// The text of the object.
    ///
    /// # Errors
    /// None that is known.
    pub(crate) fn to_text(&self) -> std::io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

impl<'a> JobLine<'a> {
    fn new(record: &'a Record, job: u32, root: Option<Digest>, trees: &Trees, runs: &Runs) -> Self {
        let action = record.runs.get(&job);
        let looked = action.and_then(|action| runs.get(action));
        let mut walk = Walk::new(trees);
        if let Some(root) = root {
            walk.directory(&RelPath::root(), root, looked.map(source));
        }
        let is_complete = looked.is_some_and(AccessRecord::is_complete);
        let narrower = is_complete && !walk.unseen.is_empty();
        let suggested_inputs = narrower.then(|| std::mem::take(&mut walk.suggestion).patterns());
        let more = walk.unseen.len().saturating_sub(MAX_LISTED);
        walk.unseen.truncate(MAX_LISTED);
        Self {
            job: record.plan().name(job),
            id: record.id(job),
            action: action.map(|action| to_hex(action)),
            record: match looked {
                Some(_) if is_complete => "complete",
                Some(_) => "incomplete",
                None => "none",
            },
            declared: walk.declared,
            looked_at: walk.looked_at,
            never_looked_at: if looked.is_some() { walk.unseen } else { Vec::new() },
            never_looked_at_more: if looked.is_some() { more } else { 0 },
            unused_deps: looked.map(|looked| unused_deps(record, job, looked)).unwrap_or_default(),
            suggested_inputs,
        }
    }
}

/// What was looked at in the source tree.
fn source(record: &AccessRecord) -> Seen<'_> {
    below(Seen::In(record.root()), SOURCE_NAME.as_bytes())
}

/// Dependencies in whose outputs nothing was looked at.
fn unused_deps<'a>(record: &'a Record, job: u32, looked: &AccessRecord) -> Vec<&'a str> {
    let plan = record.plan();
    let deps = below(Seen::In(looked.root()), DEP_NAME.as_bytes());
    let numbered = plan.job(job).map(|job| job.deps()).unwrap_or_default().iter().enumerate();
    let unused =
        numbered.filter(|(position, _)| below(deps, position.to_string().as_bytes()).is_nothing());
    unused.map(|(_, dep)| plan.graph().job(*dep).name()).collect()
}

/// What was looked at in one directory.
#[derive(Clone, Copy)]
enum Seen<'a> {
    Nothing,
    Everything,
    In(&'a ObservedDirectory),
}

impl Seen<'_> {
    fn is_nothing(self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Everything => false,
            Self::In(directory) => {
                !directory.everything && directory.listing.is_none() && directory.names.is_empty()
            }
        }
    }
}

fn below<'a>(seen: Seen<'a>, name: &[u8]) -> Seen<'a> {
    let Seen::In(directory) = seen else { return seen };
    if directory.everything {
        return Seen::Everything;
    }
    match Name::new(name).ok().and_then(|name| directory.names.get(&name)) {
        Some(Observed::Directory(child)) => Seen::In(child),
        _ => Seen::Nothing,
    }
}

/// The directories of all source trees, decoded once.
struct Trees(HashMap<Digest, Directory>);

impl Trees {
    fn of(sources: &Sources) -> Self {
        let blobs = sources.snapshot.directories().iter();
        let decoded = blobs.filter_map(|(digest, blob)| {
            Some((*digest, Directory::decode(digest.function(), blob).ok()?))
        });
        Self(decoded.collect())
    }
}

/// A walk through what a job declared.
struct Walk<'a> {
    trees: &'a Trees,
    declared: Amount,
    looked_at: Amount,
    unseen: Vec<String>,
    suggestion: Suggestion,
}

impl<'a> Walk<'a> {
    fn new(trees: &'a Trees) -> Self {
        let (declared, looked_at) = (Amount::default(), Amount::default());
        Self { trees, declared, looked_at, unseen: Vec::new(), suggestion: Suggestion::default() }
    }

    /// `seen`: none if nothing is known.
    fn directory(&mut self, at: &RelPath, digest: Digest, seen: Option<Seen<'_>>) {
        let Some(directory) = self.trees.0.get(&digest) else { return };
        let here = seen.unwrap_or(Seen::Nothing);
        let is_listed = matches!(here, Seen::In(directory) if directory.listing.is_some());
        if is_listed {
            self.suggestion.listed(at);
        }
        let mut found = false;
        for child in directory.children() {
            let path = at.join(child.name());
            match child {
                Child::Directory(node) => {
                    let inside = below(here, child.name().as_bytes());
                    let is_named = is_named(here, child.name());
                    if inside.is_nothing() && !is_named {
                        self.unseen.push(format!("{}/", shown(&path)));
                        self.count(node.digest);
                        continue;
                    }
                    if inside.is_nothing() {
                        self.suggestion.whole(&path);
                    }
                    self.directory(&path, node.digest, Some(inside));
                    found = true;
                }
                Child::File(node) => {
                    self.declared.add(&node.digest);
                    let is_seen = is_named(here, child.name());
                    if is_seen {
                        self.looked_at.add(&node.digest);
                    } else {
                        self.unseen.push(shown(&path));
                    }
                    self.suggestion.entry(at, child.name(), is_seen);
                    found |= is_seen;
                }
                Child::Symlink(_) => {
                    let is_seen = is_named(here, child.name());
                    if !is_seen {
                        self.unseen.push(shown(&path));
                    }
                    self.suggestion.entry(at, child.name(), is_seen);
                    found |= is_seen;
                }
            }
        }
        if !found && !is_listed && !at.is_root() && !here.is_nothing() {
            // Names were looked for in it in vain; it has to be there for that.
            self.suggestion.whole(at);
        }
    }

    /// Counts files that were declared.
    fn count(&mut self, digest: Digest) {
        let Some(directory) = self.trees.0.get(&digest) else { return };
        directory.files().iter().for_each(|file| self.declared.add(&file.digest));
        directory.directories().iter().for_each(|child| self.count(child.digest));
    }
}

fn is_named(seen: Seen<'_>, name: &Name) -> bool {
    match seen {
        Seen::Nothing => false,
        Seen::Everything => true,
        Seen::In(directory) => directory.everything || directory.names.contains_key(name),
    }
}

fn shown(path: &RelPath) -> String {
    String::from_utf8_lossy(path.as_bytes()).into_owned()
}

/// Files of one type in one directory.
#[derive(Debug, Default)]
struct Alike {
    /// The names that were looked at.
    seen: Vec<Vec<u8>>,
    /// There are others.
    others: bool,
}

/// Inputs that hold what was looked at.
#[derive(Debug, Default)]
struct Suggestion {
    /// By directory and file type.
    types: BTreeMap<(Vec<u8>, Vec<u8>), Alike>,
    listed: BTreeSet<Vec<u8>>,
    whole: BTreeSet<Vec<u8>>,
}

impl Suggestion {
    fn listed(&mut self, at: &RelPath) {
        self.listed.insert(at.as_bytes().to_vec());
    }

    fn whole(&mut self, at: &RelPath) {
        self.whole.insert(at.as_bytes().to_vec());
    }

    fn entry(&mut self, at: &RelPath, name: &Name, is_seen: bool) {
        let kind = match name.as_bytes().iter().rposition(|byte| *byte == b'.') {
            Some(dot @ 1..) => name.as_bytes()[dot..].to_vec(),
            // Files without a type have nothing in common.
            _ => name.as_bytes().to_vec(),
        };
        let alike = self.types.entry((at.as_bytes().to_vec(), kind)).or_default();
        match is_seen {
            true => alike.seen.push(name.as_bytes().to_vec()),
            false => alike.others = true,
        }
    }

    /// As they are written in a graph, sorted.
    fn patterns(self) -> Vec<String> {
        let mut patterns = BTreeSet::new();
        for at in &self.whole {
            patterns.insert(written(at, b""));
        }
        for at in &self.listed {
            patterns.insert(format!("{}*", prefix(at)));
        }
        for ((at, kind), Alike { seen, others }) in &self.types {
            if self.listed.contains(at) {
                continue;
            }
            if !others && seen.len() > 1 {
                patterns.insert(format!("{}*{}", prefix(at), escaped(kind)));
            } else {
                patterns.extend(seen.iter().map(|name| written(at, name)));
            }
        }
        patterns.into_iter().collect()
    }
}

fn prefix(at: &[u8]) -> String {
    match at {
        [] => String::new(),
        at => format!("{}/", escaped(at)),
    }
}

fn written(at: &[u8], name: &[u8]) -> String {
    match name {
        [] => escaped(at),
        name => format!("{}{}", prefix(at), escaped(name)),
    }
}

/// A meta-character stands for itself in brackets.
fn escaped(path: &[u8]) -> String {
    let mut written = String::new();
    for letter in String::from_utf8_lossy(path).chars() {
        match letter {
            '*' | '?' | '[' | '{' => written.extend(['[', letter, ']']),
            letter => written.push(letter),
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_type_of_which_all_was_looked_at_is_one_pattern() {
        let mut suggestion = Suggestion::default();
        for (file, seen) in [("a.h", true), ("b.h", true), ("a.c", true), ("b.c", false)] {
            suggestion.entry(&path("src"), &name(file), seen);
        }
        assert_eq!(suggestion.patterns(), ["src/*.h", "src/a.c"]);
    }

    #[test]
    fn a_listed_directory_keeps_its_names_and_metacharacters_are_escaped() {
        let mut suggestion = Suggestion::default();
        suggestion.listed(&path("docs"));
        suggestion.entry(&path("docs"), &name("x"), true);
        suggestion.entry(&RelPath::root(), &name("a[1].c"), true);
        suggestion.whole(&path("empty"));
        assert_eq!(suggestion.patterns(), ["a[[]1].c", "docs/*", "empty"]);
    }
}
