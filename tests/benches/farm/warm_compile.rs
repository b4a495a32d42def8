//! The compiles of Lua with sources in the mount against sources in a plain directory.
//!
//! One job does both in one sandbox, file by file in turns: whatever else the machine does for a while meets
//! both. It first copies the sources to a directory on the disk, from a second set of them, so that
//! the copy does not warm what is compiled. Contents are at the worker from the start. In the first
//! pass the kernel knows nothing of the action's view, as for a job that compiles one file; in the second it
//! knows everything. The shell in the job tells the time of each compile; that of the process which serves
//! the mount is read from outside, and counts whole, with the set-up of the action.

use distbuild_tests::{Farm, Project, example};
use serde_json::json;

use crate::cpu;
use crate::samples::Samples;
use crate::table::{self, Unit};

const ROUNDS: usize = 5;
const PASSES: usize = 2;

/// The sums over all files of one pass, a sample a job.
#[derive(Default)]
struct Pass {
    wall: Samples,
    cpu: Samples,
    /// With the process that serves the mount.
    cpu_served: Samples,
}

/// Passes over the same sources in one place.
type Place = [Pass; PASSES];

pub(crate) fn run() {
    let project = project();
    let farm = Farm::start(1);
    measure(&farm, &project, &mut Place::default(), &mut Place::default());
    let (mut mount, mut plain) = (Place::default(), Place::default());
    for _ in 0..ROUNDS {
        measure(&farm, &project, &mut mount, &mut plain);
    }

    table::head();
    let target = "≤ 1.03";
    let line = |what: &str, ours: &Samples, theirs: &Samples| {
        let what = format!("compile of Lua's 32 files, {what}");
        table::line(&what, Unit::Seconds, ours, ("plain directory", theirs), target);
    };
    let [first, second] = &mount;
    let [plain_first, plain_second] = &plain;
    line("new view: CPU of the compiler", &first.cpu, &plain_first.cpu);
    line("new view: CPU, file system included", &first.cpu_served, &plain_first.cpu);
    line("new view: wall", &first.wall, &plain_first.wall);
    line("second pass: CPU of the compiler", &second.cpu, &plain_second.cpu);
    line("second pass: wall", &second.wall, &plain_second.wall);
}

fn project() -> Project {
    let project = example::lua();
    let sources = project.join("lua-src");
    let directories = std::fs::read_dir(&sources).unwrap().map(|entry| entry.unwrap().path());
    let lua = directories.filter(|path| path.join("lapi.c").is_file()).max().unwrap();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(lua).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let contents = std::fs::read(&path).unwrap();
        project.file(format!("lua/{name}"), &contents);
        project.file(format!("copy/{name}"), &contents);
        files.extend(name.ends_with(".c").then_some(name));
    }
    files.sort();
    assert_eq!(files.len(), 32, "{files:?}");
    project.jobs(json!([{
        "name": "compile", "inputs": ["lua", "copy"],
        "cmds": [{ "exec": ["bash", "-c", script(&files)] }]
    }]));
    project
}

/// Writes a line `pass place wall user system` for each compile. Objects go to the job's own `/tmp`.
fn script(files: &[String]) -> String {
    let files = files.join(" ");
    format!(
        "set -eu\n\
         out={{{{OUTPUT_DIR}}}} mount={{{{SOURCE_DIR}}}}/lua plain=$out/plain\n\
         cp -R {{{{SOURCE_DIR}}}}/copy $plain\n\
         chmod -R u+w $plain\n\
         compile() {{\n\
           TIMEFORMAT=\"$1 $2 %R %U %S\"\n\
           {{ time cc -O2 -std=gnu99 -DLUA_USE_LINUX -I ${{!2}} -c ${{!2}}/$3 -o /tmp/object.o; }} 2>> $out/times\n\
         }}\n\
         turn=0\n\
         for pass in $(seq 0 {}); do\n\
           for file in {files}; do\n\
             order='mount plain'\n\
             [ $((turn++ % 2)) = 0 ] || order='plain mount'\n\
             for place in $order; do compile $pass $place $file; done\n\
           done\n\
         done\n\
         rm -r $plain\n",
        PASSES - 1
    )
}

fn measure(farm: &Farm, project: &Project, mount: &mut Place, plain: &mut Place) {
    let worker = farm.workers[0].as_ref().unwrap().pid();
    let before = cpu::of_children(worker);
    let finished = farm.build(&project.graph()).args(["--no-cache"]).succeed();
    let serving = cpu::of_children(worker) - before;
    assert_eq!(finished.jobs("executed"), 1);
    let times = project.output("compile", "times");
    for (name, place) in [("mount", mount), ("plain", plain)] {
        for (pass, into) in place.iter_mut().enumerate() {
            let (mut wall, mut cpu, mut files) = (0.0, 0.0, 0);
            let begin = format!("{pass} {name} ");
            for line in times.lines().filter_map(|line| line.strip_prefix(&begin)) {
                let figures: Vec<f64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
                wall += figures[0];
                cpu += figures[1] + figures[2];
                files += 1;
            }
            assert_eq!(files, 32, "{times}");
            into.wall.push(wall);
            into.cpu.push(cpu);
            into.cpu_served.push(cpu + serving);
        }
    }
}
