//! Projects that are edited: the examples, made coarse.
//!
//! Every job declares whole directories of sources. A directory `shadow`, first on the include path of every
//! compile, is there for headers that hide others. Compiles optimise nothing.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::programs;
use super::random::Random;
use crate::{Project, example};

/// The directory that is first on the include path.
pub const SHADOW: &str = "shadow";

/// What is told to look in [`SHADOW`] first.
const COMPILERS: [&str; 2] = ["cc", "c++"];

/// A job as the model sees it.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// The directories of sources that it declares, sorted.
    pub inputs: Vec<String>,
    /// The jobs whose outputs it sees, by position.
    pub deps: Vec<String>,
}

/// A project in a directory of its own.
#[derive(Debug)]
pub struct EditedProject {
    project: Project,
    jobs: Vec<Job>,
    code: Vec<String>,
    scratch: tempfile::TempDir,
}

impl EditedProject {
    /// The names of the projects.
    pub const NAMES: [&'static str; 3] = ["lua", "snappy", "zstd"];

    /// The project of this name.
    pub fn of(name: &str) -> Option<Self> {
        Some(Self::coarse(match name {
            "lua" => example::lua(),
            "snappy" => example::snappy(),
            "zstd" => example::zstd(),
            "programs" => return Some(Self::of_programs(1, 12)),
            _ => return None,
        }))
    }

    /// Random programs that look at random places of a random tree in every way that there is.
    pub fn of_programs(seed: u64, programs: usize) -> Self {
        Self::coarse(programs::project(&mut Random::new(seed), programs))
    }

    fn coarse(project: Project) -> Self {
        let text = std::fs::read(project.graph()).expect("an example has a graph");
        let mut graph: Value = serde_json::from_slice(&text).expect("a graph is JSON");
        let jobs = graph["jobs"].as_array_mut().expect("a graph has jobs");
        let mut code: Vec<String> = jobs.iter().flat_map(code_directories).collect();
        code.sort();
        code.dedup();
        let jobs: Vec<Job> = jobs.iter_mut().map(coarse).collect();
        project.jobs(graph["jobs"].take());
        project.file(format!("{SHADOW}/README"), "Headers here hide others.\n");
        let scratch = tempfile::Builder::new().prefix("distbuild-oracle-").tempdir();
        Self { project, jobs, code, scratch: scratch.expect("a temporary directory can be made") }
    }

    /// Where the sources are.
    pub fn path(&self) -> &Path {
        self.project.path()
    }

    /// The graph file.
    pub fn graph(&self) -> PathBuf {
        self.project.graph()
    }

    /// The jobs, each after those that it depends on.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// The parts of the sources, one or two directories deep, that hold what is compiled.
    pub fn code(&self) -> &[String] {
        &self.code
    }

    /// Where outputs land.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }
}

fn words(value: &Value) -> Vec<String> {
    let words = value.as_array().map_or(&[][..], Vec::as_slice).iter();
    words.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Of the source that a job compiles.
fn code_directories(job: &Value) -> Option<String> {
    let exec = words(&job["cmds"][0]["exec"]);
    let source = exec.iter().position(|word| word == "-c").and_then(|at| exec.get(at + 1))?;
    let (above, _) = source.rsplit_once('/')?;
    let names: Vec<&str> = above.split('/').take(2).collect();
    Some(names.join("/"))
}

fn coarse(job: &mut Value) -> Job {
    let exec = words(&job["cmds"][0]["exec"]);
    let mut inputs: Vec<String> = words(&job["inputs"])
        .iter()
        .filter_map(|input| input.split('/').next().map(str::to_owned))
        .collect();
    if exec.iter().any(|word| word == "-c") && COMPILERS.contains(&exec[0].as_str()) {
        let mut with_shadow = vec![exec[0].clone(), "-I".to_owned(), SHADOW.to_owned()];
        let plain =
            |word: &String| if word.starts_with("-O") { "-O0".to_owned() } else { word.clone() };
        with_shadow.extend(exec[1..].iter().map(plain));
        job["cmds"][0]["exec"] = json!(with_shadow);
        inputs.push(SHADOW.to_owned());
    }
    inputs.sort();
    inputs.dedup();
    job["inputs"] = json!(inputs);
    let name = job["name"].as_str().unwrap_or_default().to_owned();
    Job { name, inputs, deps: words(&job["deps"]) }
}
