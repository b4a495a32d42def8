//! `distbuild build` alone: a coordinator and a worker of its own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use distbuild_tests::binary::distbuild;
use distbuild_tests::project::{shell, shell_with};
use distbuild_tests::{Build, Project, wait};
use nix::sys::signal::Signal;
use serde_json::json;

/// Processes, other than those of other tests, whose command line holds a word.
fn processes_with(word: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let has_word = |path: &PathBuf| {
        std::fs::read(path.join("cmdline"))
            .is_ok_and(|cmdline| String::from_utf8_lossy(&cmdline).contains(word))
    };
    entries.map(|entry| entry.path()).filter(has_word).collect()
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            found.push(entry.path());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_build_without_a_coordinator_runs_here_and_is_cached_the_second_time() {
    let project = Project::with_jobs(json!([
        shell_with("a", &["in"], &[], "cp in {{OUTPUT_DIR}}/f"),
        shell_with("b", &[], &["a"], "cat {{DEP:a}}/f {{DEP:a}}/f > {{OUTPUT_DIR}}/f"),
    ]));
    project.file("in", "x");
    let cache = tempfile::tempdir().unwrap();
    let build = || Build::of(&project.graph()).env("XDG_CACHE_HOME", cache.path());
    assert_eq!(build().succeed().jobs("executed"), 2);
    assert_eq!(project.output("b", "f"), "xx");
    let again = build().succeed();
    assert_eq!((again.jobs("executed"), again.jobs("cached")), (0, 2));
    assert_eq!(again.bytes("sent_by_client"), 0);
}

#[test]
fn a_job_that_this_machine_can_never_run_ends_the_build_with_code_four() {
    let mut job = shell("huge", "true");
    job["resources"] = json!({ "cores": 4000 });
    let project = Project::with_jobs(json!([job]));
    let build = Build::of(&project.graph()).run();
    assert_eq!((build.code, build.jobs("no_worker")), (4, 1), "{}", build.stderr);
    // What it asks for, and who comes nearest.
    for part in ["4000 cores", "\"local\"", "MiB"] {
        assert!(build.stderr.contains(part), "{part}: {}", build.stderr);
    }
}

#[test]
fn what_a_build_writes_about_itself_is_no_input_of_the_next() {
    let project = Project::with_jobs(json!([shell_with("a", &["**"], &[], "ls")]));
    project.file("in", "x");
    let cache = tempfile::tempdir().unwrap();
    let build = || {
        let mut command = Command::new(distbuild());
        command.arg("build").arg(project.graph());
        command.arg("--summary").arg(project.join("summary.json"));
        command.arg("--events").arg(project.join("events.jsonl"));
        let output = command.env("XDG_CACHE_HOME", cache.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "in\n");
        let summary = std::fs::read(project.join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
        summary["jobs"]["cached"].as_u64().unwrap()
    };
    assert_eq!([build(), build()], [0, 1]);
}

#[test]
fn outputs_that_somebody_changed_or_removed_come_back() {
    let project = Project::with_jobs(json!([
        shell("a", "echo a > {{OUTPUT_DIR}}/f"),
        shell(
            "b",
            "mkdir {{OUTPUT_DIR}}/d; echo b > {{OUTPUT_DIR}}/d/f; echo b > {{OUTPUT_DIR}}/g"
        ),
    ]));
    let cache = tempfile::tempdir().unwrap();
    let build = || Build::of(&project.graph()).env("XDG_CACHE_HOME", cache.path()).succeed();
    build();
    let changes: [&dyn Fn(); 4] = [
        &|| std::fs::write(project.out("a").join("f"), "X\n").unwrap(),
        &|| std::fs::remove_file(project.out("b").join("d/f")).unwrap(),
        &|| std::fs::write(project.out("b").join("d/more"), "").unwrap(),
        &|| std::fs::remove_dir_all(project.join("distbuild-out")).unwrap(),
    ];
    for change in changes {
        change();
        assert_eq!(build().jobs("cached"), 2);
        assert_eq!(project.output("a", "f"), "a\n");
        assert_eq!(
            (project.output("b", "d/f"), project.output("b", "g")),
            ("b\n".into(), "b\n".into())
        );
        assert!(!project.out("b").join("d/more").exists());
    }
}

#[test]
fn blobs_that_somebody_removed_from_a_cache_that_takes_them_to_be_there_are_made_again() {
    let project = Project::with_jobs(json!([
        shell_with("a", &["in"], &[], "cp in {{OUTPUT_DIR}}/f"),
        shell_with("b", &["more"], &["a"], "cat more {{DEP:a}}/f > {{OUTPUT_DIR}}/f"),
    ]));
    project.file("in", "x");
    project.file("more", "1");
    let cache = tempfile::tempdir().unwrap();
    let build = || Build::of(&project.graph()).env("XDG_CACHE_HOME", cache.path()).succeed();
    build();
    let store = cache.path().join("distbuild/worker/store");
    for path in files_below(&store.join("blake3")) {
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert!(store.join("complete-trees").is_file(), "the next build believes in the blobs");
    std::fs::remove_dir_all(project.join("distbuild-out")).unwrap();
    // One job's outputs are wanted here, and by another job that has to run.
    project.file("more", "2");
    build();
    assert_eq!((project.output("a", "f"), project.output("b", "f")), ("x".into(), "2x".into()));
}

#[test]
fn a_cache_directory_that_cannot_be_used_is_named() {
    let project = Project::with_jobs(json!([shell("a", "true")]));
    project.file("file", "");
    let cache = project.join("file/cache");
    let build = Build::of(&project.graph()).args(["--state".as_ref(), cache.as_os_str()]).run();
    assert_eq!(build.code, 3, "{}", build.stderr);
    assert!(build.stderr.contains(&cache.display().to_string()), "{}", build.stderr);
}

#[test]
fn two_embedded_builds_at_once_share_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let projects: Vec<_> = (0..2)
        .map(|number| {
            let jobs: Vec<_> = (0..10)
                .map(|job| {
                    shell(&format!("{number} {job}"), &format!("echo {job} > {{{{OUTPUT_DIR}}}}/f"))
                })
                .collect();
            Project::with_jobs(json!(jobs))
        })
        .collect();
    let start =
        |project: &Project| Build::of(&project.graph()).env("XDG_CACHE_HOME", cache.path()).start();
    let running: Vec<_> = projects.iter().map(start).collect();
    for (running, project) in running.into_iter().zip(&projects) {
        let build = running.finish();
        assert_eq!(build.code, 0, "{}", build.stderr);
        let again = Build::of(&project.graph()).env("XDG_CACHE_HOME", cache.path()).succeed();
        assert_eq!(again.jobs("cached"), 10);
    }
}

#[test]
fn ctrl_c_kills_all_jobs_and_leaves_nothing_behind() {
    // A length of sleep that no other process has names the job.
    let token = format!("6{:05}", std::process::id() % 100_000);
    let script = format!("echo up; sleep {token} & setsid sleep {token} & wait");
    let project = Project::with_jobs(json!([shell("sleeper", &script)]));
    let cache = tempfile::tempdir().unwrap();
    let runtime = tempfile::tempdir().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let running = Build::of(&project.graph())
        .env("XDG_CACHE_HOME", cache.path())
        .env("TMPDIR", runtime.path())
        .env("XDG_RUNTIME_DIR", runtime.path())
        .start();
    running.wait_event("output", |_| true);
    wait::until("both sleeps", || (processes_with(&token).len() >= 2).then_some(()));
    running.signal(Signal::SIGINT);
    wait::within(std::time::Duration::from_secs(2), "the end of all jobs", || {
        processes_with(&format!("sleep\0{token}")).is_empty().then_some(())
    });
    let build = running.finish();
    assert_eq!(build.code, 130);
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
    assert!(processes_with(&cache.path().display().to_string()).is_empty());
    let left: Vec<_> = files_below(cache.path())
        .into_iter()
        .filter(|path| !path.ends_with("run/lock"))
        .filter(|path| {
            let text = path.display().to_string();
            ["/actions/", "/run/", "/tmp/"]
                .iter()
                .any(|part| text[cache.path().display().to_string().len()..].contains(part))
        })
        .collect();
    assert!(left.is_empty(), "left in the cache: {left:?}");
    assert!(files_below(runtime.path()).is_empty(), "{:?}", files_below(runtime.path()));
}

#[test]
fn a_killed_build_leaves_no_process_and_the_next_one_works() {
    let token = format!("7{:05}", std::process::id() % 100_000);
    let project = Project::with_jobs(json!([shell("sleeper", &format!("echo up; sleep {token}"))]));
    let cache = tempfile::tempdir().unwrap();
    let running = Build::of(&project.graph()).env("XDG_CACHE_HOME", cache.path()).start();
    running.wait_event("output", |_| true);
    running.signal(Signal::SIGKILL);
    assert_eq!(running.finish().code, -1);
    wait::until("the end of the orphans", || {
        processes_with(&format!("sleep\0{token}")).is_empty().then_some(())
    });
    project.jobs(json!([shell("next", "echo > {{OUTPUT_DIR}}/f")]));
    Build::of(&project.graph()).env("XDG_CACHE_HOME", cache.path()).succeed();
}

#[test]
fn an_ordinary_user_builds_in_a_user_namespace() {
    // The program, the project and the cache have to be where that user can go.
    let project = Project::with_jobs(json!([shell_with(
        "a",
        &["in"],
        &[],
        "cat in > {{OUTPUT_DIR}}/f; stat -c %u in; id -u"
    ),]));
    project.file("in", "x");
    let program = project.join("distbuild");
    std::fs::copy(distbuild(), &program).unwrap();
    let owner = nix::unistd::Uid::from_raw(65_534);
    for path in [project.path().to_owned(), project.join("in"), project.graph(), program.clone()] {
        nix::unistd::chown(&path, Some(owner), None).unwrap();
    }
    std::fs::create_dir(project.join("cache")).unwrap();
    nix::unistd::chown(&project.join("cache"), Some(owner), None).unwrap();
    // /dev/fuse belongs to root alone on some machines; distributions make it 0666.
    let shared_fuse = project.join("fuse");
    let script = "mount --make-rprivate / && mknod -m 666 \"$0\" c 10 229 && mount --bind \"$0\" /dev/fuse \
                  && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(&shared_fuse)
        .arg(&program)
        .args(["build", "--source"])
        .arg(project.path())
        .arg(project.graph())
        .env("XDG_CACHE_HOME", project.join("cache"))
        .env("HOME", project.path())
        .process_group(0)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(project.output("a", "f"), "x");
}
