//! The compiles of a project, as its graph has them.

use distbuild_tests::Project;
use serde_json::Value;

/// One compile; its paths are relative to the sources.
#[derive(Clone, Debug)]
pub(crate) struct Compile {
    pub(crate) argv: Vec<String>,
}

/// Every compile of one source file, with `OUT` in place of the output directory.
pub(crate) fn of(project: &Project) -> Vec<Compile> {
    let graph: Value = serde_json::from_slice(&std::fs::read(project.graph()).unwrap()).unwrap();
    let argv = |job: &Value| -> Vec<String> {
        let words = job["cmds"][0]["exec"].as_array().unwrap().iter();
        words.map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let jobs = graph["jobs"].as_array().unwrap().iter().map(argv);
    let compiles = jobs.filter(|argv| argv[0] == "cc" && argv.iter().any(|word| word == "-c"));
    compiles.map(|argv| Compile { argv }).collect()
}
