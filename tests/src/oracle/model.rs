//! A plain model of which jobs have to run: it remembers of every run where its commands looked and what was
//! there, and looks at the same places again.
//!
//! It reads files, not digests of trees, forgets no run, and knows nothing of how the coordinator compares.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::compare::Ends;
use super::project::Job;
use super::records::{Look, Way};

/// What is at a place: a hash over its kind and all that a look shows.
type There = blake3::Hash;

/// A run: where it looked, and what was there.
type Run = Vec<(Look, There)>;

/// The jobs, and all that they did.
#[derive(Debug)]
pub struct Model {
    jobs: Vec<Job>,
    runs: HashMap<String, Vec<Run>>,
    /// Keys of jobs that succeeded.
    job_keys: HashSet<blake3::Hash>,
    action_keys: HashSet<blake3::Hash>,
}

/// Jobs of one build.
#[derive(Debug, Default)]
pub struct Counted {
    /// They were run.
    pub ran: usize,
    /// They had to.
    pub minimum: usize,
    /// They would have been, with keys over declared inputs.
    pub by_job_key: usize,
    /// Likewise, with the outputs of dependencies in the place of their keys.
    pub by_action_key: usize,
    /// They were not run, and had to.
    pub unjustified: Vec<String>,
}

impl Model {
    /// Of jobs that have never run.
    pub fn new(jobs: &[Job]) -> Self {
        let (job_keys, action_keys) = (HashSet::new(), HashSet::new());
        Self { jobs: jobs.to_vec(), runs: HashMap::new(), job_keys, action_keys }
    }

    /// Counts the jobs of a build, and remembers what its runs saw. `outputs` are those from scratch.
    pub fn count(
        &mut self,
        source: &Path,
        outputs: &Path,
        ours: &Ends,
        theirs: &Ends,
        looks: &BTreeMap<String, Vec<Look>>,
    ) -> Counted {
        let mut counted = Counted::default();
        let mut disk = Disk { source, outputs, seen: HashMap::new() };
        let mut keys: HashMap<&str, blake3::Hash> = HashMap::new();
        for job in &self.jobs {
            let (Some(our), Some(their)) = (ours.get(&job.name), theirs.get(&job.name)) else {
                continue;
            };
            let trees: Vec<There> = job
                .inputs
                .iter()
                .map(|input| disk.look(job, &(format!("src/{input}"), Way::Everything)))
                .collect();
            let dep_keys = job.deps.iter().map(|dep| keys.get(dep.as_str()).copied());
            let job_key = key(&job.name, &trees, dep_keys.flatten().map(|key| key.to_string()));
            keys.insert(&job.name, job_key);
            let outputs = job.deps.iter().filter_map(|dep| theirs.get(dep));
            let action_key = key(&job.name, &trees, outputs.map(|end| end.output_root.clone()));
            counted.ran += usize::from(our.ran());
            let has_inputs =
                job.deps.iter().all(|dep| theirs.get(dep).is_some_and(|end| end.succeeded()));
            if !has_inputs {
                continue;
            }
            let runs = self.runs.entry(job.name.clone()).or_default();
            let holds = |run: &Run, disk: &mut Disk<'_>| {
                run.iter().all(|(look, was)| disk.look(job, look) == *was)
            };
            let has_to_run = !runs.iter().rev().any(|run| holds(run, &mut disk));
            counted.minimum += usize::from(has_to_run);
            if has_to_run && !our.ran() {
                counted.unjustified.push(format!("{} was {}", job.name, our.how));
            }
            counted.by_job_key += usize::from(!self.job_keys.contains(&job_key));
            counted.by_action_key += usize::from(!self.action_keys.contains(&action_key));
            if their.succeeded() {
                self.job_keys.insert(job_key);
                self.action_keys.insert(action_key);
            }
            if let Some(looks) = looks.get(&job.name) {
                let run = looks.iter().map(|look| (look.clone(), disk.look(job, look)));
                runs.push(run.collect());
            }
        }
        counted
    }
}

fn key(name: &str, trees: &[There], deps: impl Iterator<Item = String>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes()).update(&[0]);
    for tree in trees {
        hasher.update(tree.as_bytes());
    }
    for dep in deps {
        hasher.update(dep.as_bytes());
    }
    hasher.finalize()
}

/// What is on the disk now, each place read once.
struct Disk<'a> {
    source: &'a Path,
    outputs: &'a Path,
    seen: HashMap<(Option<PathBuf>, Way), There>,
}

impl Disk<'_> {
    fn look(&mut self, job: &Job, (path, way): &Look) -> There {
        // The directories that make an input root: as every declared directory exists, they hold the same always.
        if !path.contains('/') {
            return blake3::hash(b"fixed");
        }
        let place = self.place(job, path);
        let known = (place, *way);
        if let Some(there) = self.seen.get(&known) {
            return *there;
        }
        let there = match &known.0 {
            Some(place) => read(place, *way),
            None => blake3::hash(b"absent"),
        };
        self.seen.insert(known, there);
        there
    }

    /// Where a path of the job's input root is on the disk; none if it is not there. Links are not followed: whoever
    /// follows one looks at what it leads to by a path of its own.
    fn place(&self, job: &Job, path: &str) -> Option<PathBuf> {
        let mut names = path.split('/');
        let root = match (names.next()?, names.next()) {
            ("src", Some(first)) => {
                job.inputs.iter().any(|input| input == first).then(|| self.source.join(first))?
            }
            ("dep", Some(position)) => {
                let dep = job.deps.get(position.parse::<usize>().ok()?)?;
                self.outputs.join(dep.replace('/', "%2F"))
            }
            _ => return None,
        };
        let mut place = root;
        for name in names {
            if !fs::symlink_metadata(&place).ok()?.is_dir() {
                return None;
            }
            place.push(name);
        }
        fs::symlink_metadata(&place).ok()?;
        Some(place)
    }
}

fn read(place: &Path, way: Way) -> There {
    let metadata = fs::symlink_metadata(place).expect("it was there");
    let mut hasher = blake3::Hasher::new();
    if metadata.is_symlink() {
        let target = fs::read_link(place).expect("a link can be read");
        hasher.update(b"link").update(target.as_os_str().as_encoded_bytes());
    } else if metadata.is_file() {
        let executable = metadata.permissions().mode() & 0o100 != 0;
        hasher.update(if executable { b"tool" } else { b"file" });
        hasher.update(&fs::read(place).expect("a file can be read"));
    } else {
        hasher.update(b"directory");
        if way != Way::Name {
            let mut entries: Vec<_> = fs::read_dir(place)
                .expect("a directory")
                .map(|entry| entry.expect("a name"))
                .collect();
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                hasher.update(entry.file_name().as_encoded_bytes()).update(&[0]);
                let kind = entry.file_type().expect("a kind");
                match way {
                    Way::Everything => hasher.update(read(&entry.path(), way).as_bytes()),
                    _ => hasher.update(&[u8::from(kind.is_dir()), u8::from(kind.is_symlink())]),
                };
            }
        }
    }
    hasher.finalize()
}
