//! Random programs that look at random places of a tree, in every way in which a command can.
//!
//! A program is a list of looks, which `look.py` carries out one after the other: it writes down what it found, contents or
//! the name of the error. What it may not write down is what no record holds, such as inode numbers.

use serde_json::{Value, json};

use super::random::Random;
use crate::Project;

/// Carries out looks.
const LOOK: &str = include_str!("look.py");
/// Names of files and directories: few, so that looks meet what edits make.
const NAMES: [&str; 6] = ["a.h", "b.h", "c.c", "d", "e", "f.txt"];
/// Where the sources are.
const TREE: &str = "tree";
/// Ways of looking that `look.py` knows.
const WAYS: [&str; 19] = [
    "read", "stat", "lstat", "access", "list", "scan", "readlink", "run", "openat", "opath",
    "mmap", "link", "walk", "chdir", "handle", "statx", "realpath", "twice", "rename",
];

/// A project of one job for each program.
pub(super) fn project(random: &mut Random, programs: usize) -> Project {
    let job = |number: usize, random: &mut Random| {
        let looks: Vec<Value> = (0..2 + random.below(6)).map(|_| look(random)).collect();
        let exec =
            json!(["python3", "-I", "-c", LOOK, json!(looks).to_string(), "{{OUTPUT_DIR}}/seen"]);
        json!({ "name": format!("program {number}"), "inputs": [TREE], "cmds": [{ "exec": exec }] })
    };
    let jobs: Vec<Value> = (0..programs).map(|number| job(number, random)).collect();
    let project = Project::with_jobs(json!(jobs));
    fill(&project, TREE, random, 3);
    project
}

fn look(random: &mut Random) -> Value {
    let way = WAYS[random.below(WAYS.len())];
    json!([way, place(random), NAMES[random.below(NAMES.len())]])
}

/// A path as somebody may write it.
fn place(random: &mut Random) -> String {
    let mut path = match random.below(4) {
        0 => format!("/distbuild/src/{TREE}"),
        1 => format!("./{TREE}"),
        _ => TREE.to_owned(),
    };
    for _ in 0..random.below(4) {
        let name = NAMES[random.below(NAMES.len())];
        path.push_str(&match random.below(6) {
            0 => format!("/{name}/.."),
            1 => format!("/./{name}"),
            _ => format!("/{name}"),
        });
    }
    path
}

fn fill(project: &Project, at: &str, random: &mut Random, depth: usize) {
    for (number, name) in NAMES.iter().enumerate() {
        let path = format!("{at}/{name}");
        match random.below(6) {
            0 | 1 if depth > 0 => fill(project, &path, random, depth - 1),
            2 => project.file_with_mode(&path, format!("#!/bin/sh\necho {number}\n"), 0o755),
            3 | 4 => project.file(&path, format!("{}\n", random.below(3))),
            _ => {}
        }
    }
    // No directory is empty, whatever is deleted.
    project.file(format!("{at}/keep"), "");
}
