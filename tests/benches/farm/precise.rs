//! Precise reuse: what a comparison costs, a look-up that finds nothing, and recording.
//!
//! - A record of 500 observations is compared with a tree of 100 000 files in which a file that nobody looked at
//!   has changed in every directory, so that none is equal; all directories are at hand, decoded. The baseline looks at
//!   every file of both trees.
//! - Jobs whose commands look at a file are built, the file changes, and they are built again: none is found, and all
//!   run. In turns with observed inputs and without; what is more with them, by job, is what the look-up costs.
//! - Lua and zstd are built on new farms, in turns with recording and without; the figure is the processor time of all
//!   daemons with everything that they started.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use distbuild_proto::observed::{Directories, Verdict};
use distbuild_proto::{
    AccessRecord, Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name, Observed,
    ObservedDirectory,
};
use distbuild_tests::oracle::records::Records;
use distbuild_tests::project::shell_with;
use distbuild_tests::{Farm, Project, example};

use crate::cpu;
use crate::samples::{Samples, seconds};
use crate::section::Section;
use crate::summary::Target;
use crate::table::{self, Unit};

const DIRECTORIES: usize = 100;
const FILES_IN_EACH: usize = 1000;
const OBSERVED_IN_EACH: usize = 5;
const MISSING_JOBS: usize = 500;
const ROUNDS: usize = 7;
const FUNCTION: DigestFunction = DigestFunction::Blake3;
/// Of a build: with observed inputs, and without.
const MODES: [&str; 2] = ["on", "off"];

pub(crate) fn run(section: &mut Section) {
    table::head();
    comparison(section);
    misses(section);
    for (name, project, share) in [("Lua", example::lua(), 0.35), ("zstd", example::zstd(), 1.0)] {
        recording(name, &project, share, section);
    }
    println!();
}

struct Tree {
    root: Digest,
    directories: HashMap<Digest, Arc<Directory>>,
}

impl Directories for Tree {
    fn directory(&self, digest: &Digest) -> Option<Arc<Directory>> {
        self.directories.get(digest).cloned()
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// A tree whose unobserved files hold `generation`.
fn tree(generation: usize) -> Tree {
    let mut directories = HashMap::new();
    let mut keep = |directory: Directory| {
        let (digest, _) = directory.encode_with_digest(FUNCTION);
        directories.insert(digest, Arc::new(directory));
        digest
    };
    let file = |directory: usize, file: usize| {
        let last = file + 1 == FILES_IN_EACH;
        let contents = format!("{directory} {file} {}", if last { generation } else { 0 });
        let digest = FUNCTION.digest(contents.as_bytes());
        FileNode { name: name(&format!("file-{file:04}.h")), digest, executable: false }
    };
    let nodes = (0..DIRECTORIES).map(|directory| {
        let files = (0..FILES_IN_EACH).map(|number| file(directory, number)).collect();
        let digest = keep(Directory::new(files, Vec::new(), Vec::new()).unwrap());
        DirectoryNode { name: name(&format!("dir-{directory:03}")), digest }
    });
    let nodes: Vec<_> = nodes.collect();
    let root = keep(Directory::new(Vec::new(), nodes, Vec::new()).unwrap());
    Tree { root, directories }
}

/// A record of looks at some files of every directory, and at names that are not there.
fn record(tree: &Tree) -> AccessRecord {
    let mut root = ObservedDirectory::unseen(tree.root);
    for node in tree.directories[&tree.root].directories() {
        let mut seen = ObservedDirectory::unseen(node.digest);
        for file in tree.directories[&node.digest].files().iter().take(OBSERVED_IN_EACH - 1) {
            let observed = Observed::File { digest: file.digest, executable: file.executable };
            seen.names.insert(file.name.clone(), observed);
        }
        seen.names.insert(name("none.h"), Observed::Absent);
        root.names.insert(node.name.clone(), Observed::Directory(seen));
    }
    AccessRecord::new(root, true)
}

fn comparison(section: &mut Section) {
    let (was, is) = (tree(1), tree(2));
    let encoded = record(&was).encode();
    let compare = || {
        let record = AccessRecord::decode(&encoded).unwrap();
        assert_eq!(record.compare(is.root, &is), Verdict::Holds);
    };
    let every_file = || {
        let files = |tree: &Tree| -> Vec<Digest> {
            let nodes = tree.directories[&tree.root].directories().iter();
            nodes
                .flat_map(|node| {
                    tree.directories[&node.digest].files().iter().map(|file| file.digest)
                })
                .collect()
        };
        let (one, other) = (files(&was), files(&is));
        black_box(one.iter().zip(&other).filter(|(one, other)| one != other).count());
    };
    let [ours, baseline] = section.in_turns(
        ROUNDS,
        section.share(0.05),
        [&mut || seconds(compare), &mut || seconds(every_file)],
    );
    let what = format!(
        "a record of {} observations compared with {} files",
        DIRECTORIES * OBSERVED_IN_EACH,
        DIRECTORIES * FILES_IN_EACH
    );
    table::line(&what, Unit::Milliseconds, &ours, ("every file", &baseline));
    section.row(&what, Unit::Milliseconds, &ours, Target::AtMost(1e-3));
}

fn misses(section: &mut Section) {
    let job = |number: usize| {
        let command = format!("read line < tree/looked; : {number}");
        shell_with(&format!("job {number}"), &["tree"], &[], &command)
    };
    let project = Project::with_jobs((0..MISSING_JOBS).map(job).collect());
    let farms = MODES.map(|mode| (mode, Farm::start(2)));
    let mut generation = 0;
    let mut build = |(mode, farm): &(&str, Farm)| {
        generation += 1;
        project.file("tree/looked", generation.to_string());
        let build = farm.build(&project.graph()).args(["--observed-inputs", mode]);
        let mut ran = 0;
        let taken = seconds(|| ran = build.succeed().jobs("executed"));
        assert_eq!(ran, MISSING_JOBS as u64, "nothing is found");
        taken / MISSING_JOBS as f64
    };
    for farm in &farms {
        build(farm);
    }
    let build = std::cell::RefCell::new(build);
    let [on, off] = section.in_turns(
        ROUNDS,
        section.share(0.25),
        [&mut || build.borrow_mut()(&farms[0]), &mut || build.borrow_mut()(&farms[1])],
    );
    let what = format!("a job of {MISSING_JOBS} whose look-up finds nothing, observed inputs");
    table::line(&what, Unit::Milliseconds, &on, ("without", &off));
    let what = "what a look-up that finds nothing and recording cost a job";
    section.row(what, Unit::Milliseconds, &on.minus(&off), Target::AtMost(5e-3));
}

fn recording(name: &str, project: &Project, share: f64, section: &mut Section) {
    let mut sizes = Samples::new();
    let mut build = |mode: &str| {
        let farm = Farm::start(2);
        let workers = farm.workers.iter().flatten();
        let daemons: Vec<_> = workers.chain([&farm.coordinator]).map(|it| it.pid()).collect();
        let before: f64 = daemons.iter().map(|pid| cpu::of_tree(*pid)).sum();
        let out = tempfile::tempdir().unwrap();
        let build = farm.build(&project.graph()).args(["--observed-inputs", mode, "--out"]);
        let build = build.args([out.path()]).succeed();
        let spent = daemons.iter().map(|pid| cpu::of_tree(*pid)).sum::<f64>() - before;
        if mode == MODES[0] {
            let mut records = Records::of(&farm.address());
            let compiles = build.events.iter().filter(|event| {
                event["type"] == "job_finished"
                    && event["job"].as_str().is_some_and(|job| job.starts_with("cc "))
            });
            let actions: Vec<&str> =
                compiles.filter_map(|event| event["action"].as_str()).collect();
            let bytes: usize = actions.iter().map(|action| records.encoded(action).len()).sum();
            sizes.push(bytes as f64 / actions.len() as f64);
        }
        spent
    };
    let build = std::cell::RefCell::new(&mut build);
    let [on, off] = section.in_turns(
        ROUNDS,
        section.share(share),
        [&mut || build.borrow_mut()(MODES[0]), &mut || build.borrow_mut()(MODES[1])],
    );
    let what = format!("processor time of a build of {name}, recorded");
    table::line(&what, Unit::Seconds, &on, ("not recorded", &off));
    section.row(&format!("{what} ÷ not"), Unit::Ratio, &on.over(&off), Target::AtMost(1.02));
    table::alone(&format!("bytes of a record, a compile of {name}"), Unit::Count, &sizes);
    let what = format!("bytes of a record of a compile of {name}, mean");
    section.row(&what, Unit::Count, &sizes, Target::AtMost(20.0 * 1024.0));
}
