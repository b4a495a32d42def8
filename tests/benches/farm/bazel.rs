//! Bazel with many small actions at once: 1 000 generated files and 300 libraries under `--jobs=64`, client, farm and
//! commands on the same processors.
//!
//! A figure is what Bazel tells as its elapsed time, loading and analysis included, on a server that is warm. Every
//! round uses another instance, so nothing is cached, and then the same one again after `bazel clean`, so
//! everything is. The baseline is the same Bazel running the same actions itself. The coordinator's memory is what the
//! kernel counts as resident, at the end of each round and at its highest.

use std::fmt::Write as _;

use distbuild_tests::bazel::Ended;
use distbuild_tests::{Bazel, Farm, Project, example};
use nix::unistd::Pid;

use crate::samples::Samples;
use crate::section::Section;
use crate::summary::{Row, Target};
use crate::table::{self, Unit};

const GENRULES: usize = 1_000;
const LIBRARIES: usize = 300;
const ROUNDS: usize = 5;
const JOBS: &str = "--jobs=64";
const CORES: &str = "2";

pub(crate) fn run(section: &mut Section) {
    if !Bazel::is_installed() {
        let why = "bazel is not installed (Debian: bazel-bootstrap)";
        return section.add(Row::skipped("1 000 genrules of Bazel", why));
    }
    let project = example::bazel();
    genrules(&project);
    libraries(&project);
    let bazel = Bazel::new(project, &[]);
    let mut farm = Farm::without_workers();
    farm.add_worker(0, &["--cores", CORES]);
    farm.wait_for_workers(1);
    let coordinator = farm.coordinator.pid();
    // Both know how; what is measured is not the first build of a server.
    local(&bazel);
    remote(&bazel, &farm, "first", "//scale/genrules/...", "remote", GENRULES);

    let (mut resident, round) = (Samples::new(), std::cell::Cell::new(0));
    let instance = || format!("round-{}", round.get());
    let [both, plain] = section.in_turns(
        ROUNDS,
        section.share(0.6),
        [
            &mut || {
                round.set(round.get() + 1);
                let cold =
                    remote(&bazel, &farm, &instance(), "//scale/genrules/...", "remote", GENRULES);
                resident.push(memory(coordinator, "VmRSS"));
                cold
            },
            &mut || local(&bazel),
        ],
    );
    let cached: Samples = (1..=round.get())
        .map(|round| {
            let instance = format!("round-{round}");
            let way = "remote cache hit";
            remote(&bazel, &farm, &instance, "//scale/genrules/...", way, GENRULES)
        })
        .collect();
    // A library is compiled, archived and linked; the toolchain decides what else there is to do.
    let libraries =
        remote(&bazel, &farm, "libraries", "//scale/libraries/...", "remote", LIBRARIES);
    resident.push(memory(coordinator, "VmRSS"));

    let rate = |seconds: &Samples| seconds.map(|seconds| GENRULES as f64 / seconds);
    table::head();
    let name = "Bazel itself, --jobs=2";
    table::line(
        "1 000 genrules, nothing cached",
        Unit::PerSecond,
        &rate(&both),
        (name, &rate(&plain)),
    );
    table::alone("1 000 genrules, all cached", Unit::PerSecond, &rate(&cached));
    table::alone("300 libraries, nothing cached", Unit::Seconds, &one(libraries));
    table::alone("resident memory of the coordinator, MB, each round", Unit::Count, &resident);
    let highest = one(memory(coordinator, "VmHWM"));
    table::alone("the same, highest, MB", Unit::Count, &highest);
    println!();
    let what = "1 000 genrules of Bazel, --jobs=64, all on the same 2 cores";
    section.row(what, Unit::PerSecond, &rate(&both), Target::AtLeast(150.0));
    let what = "300 cc_library targets of Bazel, --jobs=64";
    section.row(what, Unit::Seconds, &one(libraries), Target::Told);
    section.row(
        "resident memory of the coordinator, highest, MB",
        Unit::Count,
        &highest,
        Target::Told,
    );
}

fn genrules(project: &Project) {
    let mut build = String::new();
    for n in 0..GENRULES {
        let _ = write!(
            build,
            "genrule(\n    name = \"g{n}\",\n    outs = [\"g{n}.txt\"],\n    cmd = \"echo {n} > $@\",\n)\n\n"
        );
    }
    project.file("scale/genrules/BUILD", build);
}

/// Each needs the one before, ten in a row.
fn libraries(project: &Project) {
    let mut build = String::new();
    for n in 0..LIBRARIES {
        let below = (n % 10 > 0).then(|| n - 1);
        let dep = below.map_or_else(String::new, |below| format!("\":l{below}\""));
        let headers: String = [Some(n), below].into_iter().flatten().map(include).collect();
        let value = below.map_or_else(|| "0".to_owned(), |below| format!("l{below}()"));
        let _ = write!(
            build,
            "cc_library(\n    name = \"l{n}\",\n    srcs = [\"l{n}.cc\"],\n    hdrs = [\"l{n}.h\"],\n    \
             deps = [{dep}],\n)\n\n"
        );
        let header = format!("#pragma once\nint l{n}();\n");
        let source = format!("{headers}int l{n}() {{ return {n} + {value}; }}\n");
        project.file(format!("scale/libraries/l{n}.h"), header);
        project.file(format!("scale/libraries/l{n}.cc"), source);
    }
    project.file("scale/libraries/BUILD", build);
}

fn include(library: usize) -> String {
    format!("#include \"scale/libraries/l{library}.h\"\n")
}

/// Seconds of a build on the farm after `bazel clean`, in which that many actions at least ran in one way and none in
/// another.
fn remote(
    bazel: &Bazel,
    farm: &Farm,
    instance: &str,
    targets: &str,
    way: &str,
    least: usize,
) -> f64 {
    let executor = format!("--remote_executor=grpc://{}", farm.address());
    let instance = format!("--remote_instance_name={instance}");
    let ended = clean_build(bazel, &["--config=farm", &executor, &instance, JOBS, targets]);
    let mut processes = ended.processes();
    processes.remove("internal");
    let count = processes.remove(way).unwrap_or(0);
    assert!(count >= least && processes.is_empty(), "{way}: {count}, {processes:?}");
    ended.elapsed().as_secs_f64()
}

/// Seconds of the genrules without us.
fn local(bazel: &Bazel) -> f64 {
    let arguments = ["--spawn_strategy=local", "--jobs=2", "//scale/genrules/..."];
    clean_build(bazel, &arguments).elapsed().as_secs_f64()
}

fn clean_build(bazel: &Bazel, arguments: &[&str]) -> Ended {
    bazel.succeed("clean", &[] as &[&str]);
    bazel.succeed("build", arguments)
}

fn one(value: f64) -> Samples {
    [value].into_iter().collect()
}

/// Megabytes that `/proc/<pid>/status` tells under a name.
fn memory(process: Pid, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    let kilobytes = line.trim().trim_end_matches(" kB").parse::<f64>().unwrap();
    kilobytes / 1e3
}
