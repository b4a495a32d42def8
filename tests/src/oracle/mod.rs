//! The oracle: does precise reuse give what an execution gives, and how much more than needed does it run?
//!
//! A real project is edited at random. After each edit it is built twice: on a farm with precise reuse, whose cache
//! lives through all edits, and on another from scratch, with no cache and no observed inputs. What every job came to is
//! compared: how it ended, what it printed, and every output bit for bit. A plain model ([`model`]) of what commands had
//! looked at says which jobs had to run; it reads the files themselves and shares no code with the coordinator's
//! comparison of trees. It also says what would have run with keys over declared inputs alone.
//!
//! Every job declares whole directories, and compiles optimise nothing, so that executions from scratch are affordable.

pub mod compare;
pub mod edit;
pub mod model;
pub mod programs;
pub mod project;
pub mod random;
pub mod records;

use std::collections::BTreeMap;

use crate::{Farm, Finished};
use edit::{Editor, Kind};
use model::Model;
use project::EditedProject;
use random::Random;
use records::Records;

/// What the edits of one run came to.
#[derive(Debug, Default)]
pub struct Tally {
    /// Edits that were built.
    pub edits: usize,
    /// Of these, after which some job failed, here and there.
    pub failing: usize,
    /// Of each kind.
    pub kinds: BTreeMap<Kind, usize>,
    /// Jobs that were compared.
    pub jobs: usize,
    /// Differences between the two builds, in words.
    pub differences: Vec<String>,
    /// Jobs that were reused although something had changed of what every earlier run looked at.
    pub unjustified: Vec<String>,
    /// Jobs that were run with precise reuse.
    pub ran: usize,
    /// Jobs that had to run: something had changed of what every earlier run looked at.
    pub minimum: usize,
    /// Jobs that would have run with keys over declared inputs, and over those of their dependencies.
    pub by_job_key: usize,
    /// Likewise, if an unchanged output of a dependency changes no key.
    pub by_action_key: usize,
    /// Seconds of the builds with precise reuse, and of those from scratch.
    pub seconds: [f64; 2],
}

impl Tally {
    /// Jobs run for each that had to run.
    pub fn ratio(&self) -> f64 {
        self.ran as f64 / (self.minimum.max(1)) as f64
    }

    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.differences.is_empty() && self.unjustified.is_empty()
    }

    /// Adds what another run came to.
    pub fn add(&mut self, other: Self) {
        self.edits += other.edits;
        self.failing += other.failing;
        for (kind, count) in other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        self.jobs += other.jobs;
        self.differences.extend(other.differences);
        self.unjustified.extend(other.unjustified);
        self.ran += other.ran;
        self.minimum += other.minimum;
        self.by_job_key += other.by_job_key;
        self.by_action_key += other.by_action_key;
        self.seconds[0] += other.seconds[0];
        self.seconds[1] += other.seconds[1];
    }
}

/// A project under edits, on its two farms.
#[derive(Debug)]
pub struct Oracle {
    project: EditedProject,
    precise: Farm,
    scratch: Farm,
    records: Records,
    model: Model,
    editor: Editor,
    tally: Tally,
}

impl Oracle {
    /// Lays the project out and builds it once on both farms.
    ///
    /// # Panics
    /// The project does not build.
    pub fn start(project: EditedProject, seed: u64) -> Self {
        let (precise, scratch) = (Farm::start(1), Farm::start(1));
        let records = Records::of(&precise.address());
        let model = Model::new(project.jobs());
        let editor = Editor::new(Random::new(seed), &project);
        let tally = Tally::default();
        let mut oracle = Self { project, precise, scratch, records, model, editor, tally };
        oracle.build("the project as it is");
        assert_eq!(oracle.tally.failing, 0, "the project builds before it is edited");
        let first = std::mem::take(&mut oracle.tally);
        assert!(first.is_clean(), "{first:?}");
        oracle
    }

    /// Makes one edit and builds; says in words what was done.
    pub fn step(&mut self) -> String {
        let edit = self.editor.edit(self.project.path());
        *self.tally.kinds.entry(edit.kind).or_default() += 1;
        self.build(&edit.text);
        edit.text
    }

    /// What came of it so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What came of it.
    pub fn finish(self) -> Tally {
        self.tally
    }

    fn build(&mut self, after: &str) {
        let build = |farm: &Farm, out: &str, args: &[&str], seconds: &mut f64| {
            let began = std::time::Instant::now();
            let out = self.project.scratch().join(out);
            let build =
                farm.build(&self.project.graph()).args(["--keep-going", "--out"]).args([&out]);
            let finished = build.args(args).run();
            *seconds += began.elapsed().as_secs_f64();
            assert!(matches!(finished.code, 0 | 1), "after {after}: {}", finished.stderr);
            (finished, out)
        };
        let [mut precise, mut scratch] = self.tally.seconds;
        let (ours, our_out) = build(&self.precise, "precise", &[], &mut precise);
        let off = ["--no-cache", "--observed-inputs", "off"];
        let (theirs, their_out) = build(&self.scratch, "scratch", &off, &mut scratch);
        self.tally.seconds = [precise, scratch];
        self.tally.edits += 1;
        self.tally.failing += usize::from(theirs.code != 0);
        let (ours, theirs) = (compare::ends(&ours), self.checked(&theirs));
        self.tally.jobs += theirs.len();
        let found = compare::differences(&ours, &theirs, &our_out, &their_out);
        self.tally
            .differences
            .extend(found.into_iter().map(|text| format!("after {after}: {text}")));
        let looks = self.records.of_runs(&ours);
        let counted = self.model.count(self.project.path(), &their_out, &ours, &theirs, &looks);
        self.tally.ran += counted.ran;
        self.tally.minimum += counted.minimum;
        self.tally.by_job_key += counted.by_job_key;
        self.tally.by_action_key += counted.by_action_key;
        let unjustified = counted.unjustified.into_iter();
        self.tally.unjustified.extend(unjustified.map(|job| format!("after {after}: {job}")));
    }

    /// How the jobs ended from scratch; none of them was taken from anywhere.
    fn checked(&self, theirs: &Finished) -> compare::Ends {
        for reused in ["cached", "cut_off"] {
            assert_eq!(theirs.jobs(reused), 0, "a build from scratch executes everything");
        }
        compare::ends(theirs)
    }
}
