//! What lies where in the mount.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distbuild_fs::FileKey;
use distbuild_fs::changing::Named;
use distbuild_fs::inspect::{Catalogue, Folder, Item, Part, TreeItem, Unknown};
use distbuild_fs::tree::NodeKind;
use distbuild_proto::digest::{parse_hex, to_hex};
use distbuild_proto::{Digest, DigestFunction, Name, wire};
use lru::LruCache;
use parking_lot::Mutex;

use super::holdings::Holdings;
use super::json;
use super::records::{JobId, Records};
use crate::output;
use crate::places::output_name;

/// Builds whose job names are remembered.
const NAMED_BUILDS: std::num::NonZeroUsize = std::num::NonZeroUsize::new(16).unwrap();
/// How long the names of a build's jobs are good: while it runs, results come in.
const NAMES_RUNNING: Duration = Duration::from_secs(1);
/// The same for a build that has ended.
const NAMES_ENDED: Duration = Duration::from_secs(60);

/// A directory whose names come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shelf {
    /// Blobs by hash.
    Blobs(DigestFunction),
    /// Directories by hash and size; cannot be listed.
    Trees(DigestFunction),
    /// Results by id.
    Jobs,
    /// Builds by id.
    Builds,
    /// Links by name to the results of this build's jobs.
    BuildJobs(String),
}

/// The names in the root.
pub(super) fn root() -> Folder<Shelf> {
    let by_function = |shelf: fn(DigestFunction) -> Shelf| {
        let shelves = DigestFunction::ALL
            .map(|function| (function.name().as_bytes().into(), Item::Shelf(shelf(function))));
        Item::Folder(Arc::new(Folder::from(shelves)))
    };
    Folder::from([
        (b"blobs"[..].into(), by_function(Shelf::Blobs)),
        (b"trees"[..].into(), by_function(Shelf::Trees)),
        (b"jobs"[..].into(), Item::Shelf(Shelf::Jobs)),
        (b"builds"[..].into(), Item::Shelf(Shelf::Builds)),
    ])
}

/// Records and holdings, shown as shelves.
pub(super) struct Library {
    records: Box<dyn Records>,
    holdings: Arc<dyn Holdings>,
    /// The jobs of builds, by the names of their links.
    jobs: Mutex<LruCache<String, Jobs>>,
}

#[derive(Clone)]
struct Jobs {
    by_name: Arc<BTreeMap<String, JobId>>,
    good_until: Instant,
}

impl Library {
    pub(super) fn new(records: Box<dyn Records>, holdings: Arc<dyn Holdings>) -> Self {
        Self { records, holdings, jobs: Mutex::new(LruCache::new(NAMED_BUILDS)) }
    }

    fn blob(&self, function: DigestFunction, name: &str) -> Result<Option<Item<Shelf>>, Unknown> {
        let mut hash = [0; 32];
        let hash = &mut hash[..function.hash_len()];
        if parse_hex(name, hash).is_err() {
            return Ok(None);
        }
        let held = self.holdings.find(function, hash)?;
        Ok(held.map(|held| blob(held.digest, held.within)))
    }

    fn find(&self, shelf: &Shelf, name: &str) -> Result<Option<Item<Shelf>>, Unknown> {
        let folder = |folder| Item::Folder(Arc::new(folder));
        Ok(match shelf {
            Shelf::Blobs(function) => self.blob(*function, name)?,
            Shelf::Trees(function) => tree(*function, name),
            Shelf::Jobs => {
                let Some(id) = job_id(name) else { return Ok(None) };
                self.records.result(&id)?.map(|named| folder(job(&named)))
            }
            Shelf::Builds => self.records.build(name)?.map(|found| folder(build(name, &found))),
            Shelf::BuildJobs(build_id) => self
                .jobs(build_id)?
                .get(name)
                .map(|id| Item::Symlink(Bytes::from(format!("../../../jobs/{}", to_hex(id))))),
        })
    }

    fn names(&self, shelf: &Shelf) -> Result<Vec<Named>, Unknown> {
        fn named(names: impl IntoIterator<Item = String>, kind: NodeKind) -> Vec<Named> {
            let named = |name: String| Named { name: name.into_bytes().into(), kind };
            names.into_iter().map(named).collect()
        }
        Ok(match shelf {
            Shelf::Blobs(function) => named(self.holdings.hashes(*function)?, NodeKind::File),
            Shelf::Trees(_) => Vec::new(),
            Shelf::Jobs => {
                let ids = self.records.job_ids()?;
                named(ids.iter().map(|id| to_hex(id)), NodeKind::Directory)
            }
            Shelf::Builds => named(self.records.build_ids()?, NodeKind::Directory),
            Shelf::BuildJobs(build_id) => {
                named(self.jobs(build_id)?.keys().cloned(), NodeKind::Symlink)
            }
        })
    }

    /// The links of a build; jobs without a result have nothing to lead to, and are left out.
    fn jobs(&self, build_id: &str) -> Result<Arc<BTreeMap<String, JobId>>, Unknown> {
        let now = Instant::now();
        if let Some(known) = self.jobs.lock().get(build_id)
            && now < known.good_until
        {
            return Ok(Arc::clone(&known.by_name));
        }
        let build = self.records.build(build_id)?.unwrap_or_default();
        let ended = build.summary.is_some_and(|summary| summary.finished);
        let ids: Vec<JobId> =
            build.job_ids.iter().filter_map(|id| id[..].try_into().ok()).collect();
        let mut by_name = BTreeMap::new();
        for (id, name) in ids.iter().zip(self.records.job_names(&ids)?) {
            let Some(name) = name.map(|name| output_name(&name)) else { continue };
            if Name::new(name.as_bytes()).is_ok() {
                by_name.entry(name).or_insert(*id);
            }
        }
        let by_name = Arc::new(by_name);
        let good_until = now + if ended { NAMES_ENDED } else { NAMES_RUNNING };
        let known = Jobs { by_name: Arc::clone(&by_name), good_until };
        self.jobs.lock().put(build_id.to_owned(), known);
        Ok(by_name)
    }
}

fn blob(digest: Digest, within: Arc<[Digest]>) -> Item<Shelf> {
    Item::Blob { file: FileKey { digest, executable: false }, within }
}

/// `<hash>-<size>`.
fn tree(function: DigestFunction, name: &str) -> Option<Item<Shelf>> {
    let (hash, size) = name.split_once('-')?;
    let root = Digest::from_hex(function, hash, size.parse().ok()?).ok()?;
    // "007" is a number too.
    let given = format!("{}-{}", root.hex(), root.size_bytes()) == name;
    given.then(|| Item::Tree(TreeItem { root, part: Part::Plain, within: [root].into() }))
}

fn job_id(name: &str) -> Option<JobId> {
    let mut id = JobId::default();
    parse_hex(name, &mut id).ok().map(|()| id)
}

/// A job's directory.
fn job(named: &wire::NamedResult) -> Folder<Shelf> {
    let nothing = wire::JobResult::default();
    let result = named.result.as_ref().unwrap_or(&nothing);
    let digest = |digest: &Option<wire::Digest>| Digest::try_from(digest.as_ref()?).ok();
    let outputs = digest(&result.output_root);
    let within: Arc<[Digest]> = outputs.into_iter().collect();
    let printed = |content: &Option<wire::Content>| {
        let content = content.clone().unwrap_or_default();
        match digest(&content.blob) {
            Some(digest) => blob(digest, Arc::clone(&within)),
            None => Item::Text(content.inline),
        }
    };
    let mut folder = Folder::from([
        (b"stdout"[..].into(), printed(&result.stdout)),
        (b"stderr"[..].into(), printed(&result.stderr)),
        (b"result.json"[..].into(), Item::Text(json::text(&json::result(named, result)))),
    ]);
    let trees = [
        (&b"out"[..], outputs, Part::Plain),
        (b"inputs", digest(&named.input_root), Part::InputRoot),
    ];
    for (name, root, part) in trees {
        if let Some(root) = root {
            let tree = TreeItem { root, part, within: Arc::clone(&within) };
            folder.insert(name.into(), Item::Tree(tree));
        }
    }
    folder
}

/// A build's directory.
fn build(build_id: &str, build: &wire::FinishedBuild) -> Folder<Shelf> {
    Folder::from([
        (b"jobs"[..].into(), Item::Shelf(Shelf::BuildJobs(build_id.to_owned()))),
        (b"summary.json"[..].into(), Item::Text(json::text(&json::build(build)))),
    ])
}

impl Catalogue for Library {
    type Shelf = Shelf;

    fn find(&self, shelf: &Shelf, name: &[u8]) -> Result<Option<Item<Shelf>>, Unknown> {
        match std::str::from_utf8(name) {
            Ok(name) => self.find(shelf, name).inspect_err(|why| output::note(why)),
            Err(_) => Ok(None),
        }
    }

    fn names(&self, shelf: &Shelf) -> Result<Vec<Named>, Unknown> {
        self.names(shelf).inspect_err(|why| output::note(why))
    }

    fn met(&self, digest: Digest, within: &Arc<[Digest]>) {
        self.holdings.met(digest, within);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::stores::Stores;

    const FUNCTION: DigestFunction = DigestFunction::Blake3;

    /// What a test writes down.
    #[derive(Clone, Default)]
    struct Notes {
        results: Vec<wire::NamedResult>,
        build: wire::FinishedBuild,
    }

    impl Records for Notes {
        fn result(&self, id: &JobId) -> Result<Option<wire::NamedResult>, Unknown> {
            Ok(self.results.iter().find(|named| named.job_id[..] == id[..]).cloned())
        }

        fn job_ids(&self) -> Result<Vec<JobId>, Unknown> {
            Ok(self.results.iter().map(|named| named.job_id[..].try_into().unwrap()).collect())
        }

        fn job_names(&self, ids: &[JobId]) -> Result<Vec<Option<String>>, Unknown> {
            ids.iter().map(|id| Ok(self.result(id)?.map(|named| named.name))).collect()
        }

        fn build(&self, id: &str) -> Result<Option<wire::FinishedBuild>, Unknown> {
            Ok((id == "b1").then(|| self.build.clone()))
        }

        fn build_ids(&self) -> Result<Vec<String>, Unknown> {
            Ok(vec!["b1".to_owned()])
        }
    }

    fn named(id: u8, name: &str) -> wire::NamedResult {
        let content = |inline: &'static str| wire::Content { inline: inline.into(), blob: None };
        let blob = Some(FUNCTION.digest(b"a long story").into());
        let result = wire::JobResult {
            output_root: Some(FUNCTION.digest(b"outputs").into()),
            stdout: Some(content("OK\n")),
            stderr: Some(wire::Content { blob, ..Default::default() }),
            worker: "w1".to_owned(),
            ..Default::default()
        };
        wire::NamedResult {
            job_id: vec![id; 20].into(),
            name: name.to_owned(),
            result: Some(result),
            input_root: Some(FUNCTION.digest(b"inputs").into()),
        }
    }

    fn library(results: &[(u8, &str)], build: &[u8]) -> Library {
        let job_ids = build.iter().map(|id| vec![*id; 20].into()).collect();
        let summary = wire::BuildSummary { title: "graph.json".to_owned(), ..Default::default() };
        let results = results.iter().map(|(id, name)| named(*id, name)).collect();
        let build = wire::FinishedBuild { summary: Some(summary), job_ids };
        Library::new(Box::new(Notes { results, build }), Arc::new(Stores::new(Vec::new())))
    }

    fn folder(item: Option<Item<Shelf>>) -> Arc<Folder<Shelf>> {
        match item {
            Some(Item::Folder(folder)) => folder,
            other => panic!("no folder: {other:?}"),
        }
    }

    fn names(library: &Library, shelf: &Shelf) -> Vec<String> {
        let names = library.names(shelf).unwrap();
        names.into_iter().map(|named| String::from_utf8(named.name.into()).unwrap()).collect()
    }

    #[test]
    fn a_job_shows_outputs_streams_result_and_inputs() {
        let library = library(&[(1, "cc a")], &[]);
        let id = to_hex(&[1; 20]);
        let job = folder(Catalogue::find(&library, &Shelf::Jobs, id.as_bytes()).unwrap());
        let outputs = FUNCTION.digest(b"outputs");
        let tree = |root, part| Item::Tree(TreeItem { root, part, within: [outputs].into() });
        assert_eq!(job[&b"out"[..]], tree(outputs, Part::Plain));
        assert_eq!(job[&b"inputs"[..]], tree(FUNCTION.digest(b"inputs"), Part::InputRoot));
        assert_eq!(job[&b"stdout"[..]], Item::Text("OK\n".into()));
        let story = FUNCTION.digest(b"a long story");
        assert_eq!(job[&b"stderr"[..]], blob(story, [outputs].into()));
        let Item::Text(text) = &job[&b"result.json"[..]] else { panic!("no text") };
        let value: serde_json::Value = serde_json::from_slice(text).unwrap();
        assert_eq!((&value["name"], &value["id"]), (&"cc a".into(), &id.clone().into()));
        assert_eq!(names(&library, &Shelf::Jobs), [id]);
    }

    #[test]
    fn a_build_links_its_jobs_by_name_as_far_as_they_have_results() {
        let library = library(&[(1, "build a/b"), (2, "x"), (3, "of another build")], &[1, 2, 9]);
        let build = folder(Catalogue::find(&library, &Shelf::Builds, b"b1").unwrap());
        let jobs = Shelf::BuildJobs("b1".to_owned());
        assert_eq!(build[&b"jobs"[..]], Item::Shelf(jobs.clone()));
        assert_eq!(names(&library, &jobs), ["build a%2Fb", "x"]);
        let target = format!("../../../jobs/{}", to_hex(&[1; 20]));
        let link = Catalogue::find(&library, &jobs, b"build a%2Fb").unwrap();
        assert_eq!(link, Some(Item::Symlink(target.into())));
        assert_eq!(Catalogue::find(&library, &jobs, b"of another build").unwrap(), None);
        let Item::Text(text) = &build[&b"summary.json"[..]] else { panic!("no text") };
        let value: serde_json::Value = serde_json::from_slice(text).unwrap();
        assert_eq!(value["title"], "graph.json");
        assert_eq!(Catalogue::find(&library, &Shelf::Builds, b"b2").unwrap(), None);
    }

    #[test]
    fn names_that_are_no_digests_or_ids_are_nothing() {
        let library = library(&[(1, "a")], &[]);
        let digest = FUNCTION.digest(b"t");
        let good = format!("{}-1", digest.hex());
        let found = Catalogue::find(&library, &Shelf::Trees(FUNCTION), good.as_bytes()).unwrap();
        assert_eq!(found, tree(FUNCTION, &good));
        assert!(found.is_some());
        for bad in [format!("{}-01", digest.hex()), digest.hex(), good.to_uppercase()] {
            let found = Catalogue::find(&library, &Shelf::Trees(FUNCTION), bad.as_bytes()).unwrap();
            assert_eq!(found, None, "{bad}");
        }
        for shelf in [Shelf::Blobs(FUNCTION), Shelf::Jobs, Shelf::Builds] {
            for bad in [&b"x"[..], b"\xff", b"00"] {
                assert_eq!(
                    Catalogue::find(&library, &shelf, bad).unwrap(),
                    None,
                    "{shelf:?} {bad:?}"
                );
            }
        }
    }
}
