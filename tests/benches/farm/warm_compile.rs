//! The compiles of Lua with sources in the mount against sources in a plain directory.
//!
//! Two jobs do the same in the same sandbox: copy the sources to a directory on the disk, then compile all
//! of them, twice, one after another; one compiles the copy, the other what the mount shows. Both copy from
//! a second set of the sources, so that the copy does not warm what is compiled. Contents are at
//! the worker from the start. In the first pass nothing of the action's view is known to the kernel, as
//! for a job that compiles one file; in the second everything is. The shell in the job tells the time
//! of each pass; the processor time of the whole worker, file system included, is read from outside.

use distbuild_tests::{Farm, Project};
use serde_json::{Value, json};

use crate::cold_lua::generate;
use crate::cpu;
use crate::samples::Samples;
use crate::table::{self, Unit};

const ROUNDS: usize = 6;
const PASSES: usize = 2;

/// What one job tells: wall and processor seconds of each pass, and those of the whole worker.
#[derive(Default)]
struct Measured {
    wall: [Samples; PASSES],
    cpu: [Samples; PASSES],
    whole: Samples,
}

pub(crate) fn run() {
    let project = project();
    let farm = Farm::start(1);
    for place in ["mount", "plain"] {
        measure(&farm, &project, place, &mut Measured::default());
    }
    let (mut mount, mut plain) = (Measured::default(), Measured::default());
    for round in 0..ROUNDS {
        let mut turns = [("mount", &mut mount), ("plain", &mut plain)];
        if round % 2 == 1 {
            turns.reverse();
        }
        for (place, measured) in turns {
            measure(&farm, &project, place, measured);
        }
    }

    table::head();
    let name = "plain directory";
    for (pass, which) in ["first view", "second pass in the same view"].iter().enumerate() {
        for (what, unit, ours, theirs) in [
            ("CPU", Unit::Seconds, &mount.cpu, &plain.cpu),
            ("wall", Unit::Seconds, &mount.wall, &plain.wall),
        ] {
            let what = format!("compile of 32 files, {which}: {what}");
            table::line(&what, unit, &ours[pass], (name, &theirs[pass]), "≤ 1.03");
        }
    }
    let what = "CPU of the whole worker for the job, file system included";
    table::line(what, Unit::Seconds, &mount.whole, (name, &plain.whole), "≤ 1.03");
}

fn project() -> Project {
    let project = generate();
    let sources = project.join("lua-src");
    let directories = std::fs::read_dir(&sources).unwrap().map(|entry| entry.unwrap().path());
    let lua = directories.filter(|path| path.join("lapi.c").is_file()).max().unwrap();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(lua).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        let (name, contents) = (name.into_string().unwrap(), std::fs::read(path).unwrap());
        project.file(format!("lua/{name}"), &contents);
        project.file(format!("copy/{name}"), &contents);
        files.extend(name.ends_with(".c").then_some(name));
    }
    files.sort();
    assert!(files.len() >= 32, "{files:?}");
    let jobs = [("mount", "{{SOURCE_DIR}}/lua"), ("plain", "{{OUTPUT_DIR}}/plain")];
    project.jobs(jobs.map(|(name, from)| job(name, &script(from, &files))).to_vec().into());
    project
}

fn job(name: &str, script: &str) -> Value {
    json!({
        "name": name, "inputs": ["lua", "copy"], "cmds": [{ "exec": ["bash", "-c", script] }]
    })
}

/// Objects go to the job's own `/tmp`, whichever the sources are.
fn script(from: &str, files: &[String]) -> String {
    let files = files.join(" ");
    format!(
        "set -eu\n\
         cp -R {{{{SOURCE_DIR}}}}/copy {{{{OUTPUT_DIR}}}}/plain\n\
         TIMEFORMAT='%R %U %S'\n\
         pass() {{\n\
           for file in {files}; do\n\
             cc -O2 -std=gnu99 -DLUA_USE_LINUX -I {from} -c {from}/$file -o /tmp/$file.o\n\
           done\n\
         }}\n\
         for pass in $(seq {PASSES}); do\n\
           {{ time pass; }} 2>> {{{{OUTPUT_DIR}}}}/times\n\
         done\n\
         rm -r {{{{OUTPUT_DIR}}}}/plain\n"
    )
}

fn measure(farm: &Farm, project: &Project, place: &str, into: &mut Measured) {
    let worker = farm.workers[0].as_ref().unwrap().pid();
    let before = cpu::of_tree(worker);
    let finished = farm.build(&project.graph()).args(["--no-cache", "--job", place]).succeed();
    into.whole.push(cpu::of_tree(worker) - before);
    assert_eq!(finished.jobs("executed"), 1);
    let times = project.output(place, "times");
    assert_eq!(times.lines().count(), PASSES, "{times}");
    for (pass, line) in times.lines().enumerate() {
        let figures: Vec<f64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        into.wall[pass].push(figures[0]);
        into.cpu[pass].push(figures[1] + figures[2]);
    }
}
