//! What a build does, row by row of the specification's table.

use distbuild_tests::project::{shell, shell_with};
use distbuild_tests::{Farm, Project};
use serde_json::{Value, json};

/// The bytes that a job wrote to a stream while it ran, from the events.
fn streamed(events: &[Value], stream: &str) -> String {
    let of_stream = |event: &&Value| event["type"] == "output" && event["stream"] == stream;
    let pieces = events.iter().filter(of_stream).filter_map(|event| event["data"].as_str());
    pieces.map(decode_base64).collect::<Vec<_>>().concat()
}

fn decode_base64(text: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = 0_u32;
    let mut count = 0;
    let mut bytes = Vec::new();
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let digit = ALPHABET.iter().position(|letter| *letter == byte).unwrap();
        bits = bits << 6 | u32::try_from(digit).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_single_command_is_recorded_with_its_stdout_and_exit_code() {
    let farm = Farm::start(1);
    let project =
        Project::with_jobs(json!([{ "name": "echo", "cmds": [{ "exec": ["echo", "OK"] }] }]));
    let build = farm.build(&project.graph()).succeed();
    assert_eq!((build.jobs("total"), build.jobs("executed")), (1, 1));
    assert_eq!(streamed(&build.events, "stdout"), "OK\n");
    assert_eq!(streamed(&build.events, "stderr"), "");
    assert_eq!(build.attempts("echo")[0]["exit_code"], 0);
    assert!(build.stdout.contains("OK\n"), "{}", build.stdout);
}

#[test]
fn the_second_build_of_an_equal_graph_runs_nothing_and_delivers_everything() {
    let mut farm = Farm::start(1);
    let script = "echo to stdout; echo to stderr >&2; echo made > {{OUTPUT_DIR}}/file";
    let project = Project::with_jobs(json!([shell("a", script)]));
    farm.build(&project.graph()).succeed();
    farm.restart_coordinator();
    farm.wait_for_workers(1);
    std::fs::remove_dir_all(project.join("distbuild-out")).unwrap();
    let build = farm.build(&project.graph()).succeed();
    assert_eq!((build.jobs("cached"), build.jobs("executed")), (1, 0));
    assert_eq!(build.summary["attempts"], json!([]));
    assert_eq!(project.output("a", "file"), "made\n");
    assert!(build.stdout.contains("to stdout"), "{}", build.stdout);
    assert!(build.stderr.contains("to stderr"), "{}", build.stderr);
}

#[test]
fn source_files_reach_the_source_directory_and_dev_stderr_can_be_written_by_path() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell_with(
        "read",
        &["a.txt", "b/c.txt"],
        &[],
        "cat a.txt {{SOURCE_DIR}}/b/c.txt; echo by path > /dev/stderr",
    )]));
    project.file("a.txt", "first ");
    project.file("b/c.txt", "second");
    let build = farm.build(&project.graph()).succeed();
    assert_eq!(streamed(&build.events, "stdout"), "first second");
    assert_eq!(streamed(&build.events, "stderr"), "by path\n");
}

#[test]
fn a_job_reads_the_output_of_its_dependency() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([
        shell_with("b", &[], &["a"], "cat {{DEP:a}}/out.txt > {{OUTPUT_DIR}}/copy.txt"),
        shell("a", "echo artifact > {{OUTPUT_DIR}}/out.txt"),
    ]));
    farm.build(&project.graph()).succeed();
    assert_eq!(project.output("b", "copy.txt"), "artifact\n");
}

#[test]
fn three_workers_read_one_artifact_that_was_made_once() {
    let mut farm = Farm::without_workers();
    for number in 0..3 {
        farm.add_worker(number, &["--property", &format!("seat={number}")]);
    }
    farm.wait_for_workers(3);
    let mut executed = 0;
    for number in 0..3 {
        // The artifact may be made by anybody; its reader has to be this worker.
        let name = format!("read {number}");
        let mut reader =
            shell_with(&name, &[], &["make"], "cat {{DEP:make}}/out.txt > {{OUTPUT_DIR}}/seen");
        reader["platform"] = json!({ "seat": number.to_string() });
        let project = Project::with_jobs(json!([
            shell("make", "echo shared > {{OUTPUT_DIR}}/out.txt"),
            reader
        ]));
        let build = farm.build(&project.graph()).succeed();
        assert_eq!(project.output(&name, "seen"), "shared\n");
        assert_eq!(build.attempts(&name)[0]["worker"], format!("w{number}"));
        executed += build.attempts("make").len();
    }
    assert_eq!(executed, 1, "the artifact was made more than once");
}

#[test]
fn ten_clients_that_offer_the_same_content_at_once_all_succeed() {
    let farm = Farm::start(1);
    let contents = "the same content ".repeat(10_000);
    let builds: Vec<_> = (0..10)
        .map(|number| {
            let name = format!("read {number}");
            let project = Project::with_jobs(json!([shell_with(
                &name,
                &["same.txt"],
                &[],
                "cat same.txt | wc -c > {{OUTPUT_DIR}}/size",
            )]));
            project.file("same.txt", &contents);
            let running = farm.build(&project.graph()).start();
            (name, project, running)
        })
        .collect();
    let mut sent = 0;
    for (name, project, running) in builds {
        let build = running.finish();
        assert_eq!(build.code, 0, "{}", build.stderr);
        assert_eq!(project.output(&name, "size").trim(), contents.len().to_string());
        sent += build.bytes("sent_by_client");
    }
    assert_eq!(sent, contents.len() as u64, "the content was sent more than once");
}

#[test]
fn the_start_of_a_build_is_reported_while_its_jobs_still_run() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell("long", "echo begun; sleep 600")]));
    let running = farm.build(&project.graph()).start();
    running.wait_event("build_started", |_| true);
    running.wait_event("attempt_started", |_| true);
    running.wait_event("output", |_| true);
    running.signal(nix::sys::signal::Signal::SIGINT);
    let build = running.finish();
    assert_eq!(build.code, 130);
    assert_eq!(build.summary["outcome"], "cancelled");
    // Everything is released: the only core takes the next job.
    let next = Project::with_jobs(json!([shell("next", "true")]));
    farm.build(&next.graph()).succeed();
}

#[test]
fn an_output_directory_holds_the_whole_new_output_or_the_whole_old_one() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell("a", "echo 1 > {{OUTPUT_DIR}}/one")]));
    farm.build(&project.graph()).succeed();
    project.jobs(json!([shell("a", "echo 2 > {{OUTPUT_DIR}}/two; exit 1")]));
    let build = farm.build(&project.graph()).run();
    assert_eq!(build.code, 1);
    assert_eq!(project.output("a", "one"), "1\n");
    assert!(!project.out("a").join("two").exists(), "an uncommitted output is visible");
    project.jobs(json!([shell("a", "echo 3 > {{OUTPUT_DIR}}/three")]));
    farm.build(&project.graph()).succeed();
    assert!(!project.out("a").join("one").exists(), "the earlier directory was not replaced whole");
    let left: Vec<_> = std::fs::read_dir(project.join("distbuild-out")).unwrap().collect();
    assert_eq!(left.len(), 1, "something is left beside the outputs: {left:?}");
}

#[test]
fn exit_code_seven_is_reported_and_not_cached_and_dependents_say_why_they_were_skipped() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([
        shell("bad", "printf 'this is %s\\n' why >&2; exit 7"),
        shell_with("after", &[], &["bad"], "true"),
    ]));
    for _ in 0..2 {
        let build = farm.build(&project.graph()).run();
        assert_eq!(build.code, 1);
        assert_eq!((build.jobs("failed"), build.jobs("skipped")), (1, 1));
        assert_eq!(build.attempts("bad")[0]["exit_code"], 7);
        let shown = build.stderr.matches("this is why").count();
        assert_eq!(shown, 1, "stderr of the failed job is shown once: {}", build.stderr);
        let skipped = build
            .events
            .iter()
            .find(|event| event["type"] == "job_finished" && event["job"] == "after");
        let reason = skipped.unwrap()["reason"].as_str().unwrap();
        assert!(reason.contains("\"bad\""), "{reason}");
    }
}

#[test]
fn keep_going_runs_all_that_does_not_depend_on_the_failure() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([
        shell("bad", "exit 1"),
        shell_with("after bad", &[], &["bad"], "true"),
        shell("good", "true"),
        shell_with("after good", &[], &["good"], "true"),
    ]));
    let build = farm.build(&project.graph()).args(["--keep-going"]).run();
    assert_eq!(build.code, 1);
    assert_eq!(build.jobs("executed"), 2);
    assert_eq!((build.jobs("failed"), build.jobs("skipped")), (1, 1));
}

#[test]
fn a_timed_out_job_keeps_its_partial_output_and_is_not_retried() {
    let farm = Farm::start(1);
    let mut job = shell("slow", "echo so far; sleep 600");
    job["timeout_ms"] = json!(500);
    let project = Project::with_jobs(json!([job]));
    let build = farm.build(&project.graph()).run();
    assert_eq!(build.code, 1);
    assert_eq!(build.jobs("timed_out"), 1);
    assert_eq!(build.attempts("slow").len(), 1);
    assert_eq!(streamed(&build.events, "stdout"), "so far\n");
}

#[test]
fn a_job_with_two_dependencies_on_one_worker_does_not_deadlock() {
    let farm = Farm::start(2);
    let project = Project::with_jobs(json!([
        shell("a", "echo a > {{OUTPUT_DIR}}/f"),
        shell("b", "echo b > {{OUTPUT_DIR}}/f"),
        shell_with("c", &[], &["a", "b"], "cat {{DEP:a}}/f {{DEP:b}}/f > {{OUTPUT_DIR}}/f"),
    ]));
    farm.build(&project.graph()).succeed();
    assert_eq!(project.output("c", "f"), "a\nb\n");
}

#[test]
fn a_job_goes_to_the_worker_that_holds_its_dependency() {
    let farm = Farm::start(3);
    let jobs: Vec<_> = (0..6)
        .map(|number| {
            let name = format!("step {number}");
            let before = (number > 0).then(|| format!("step {}", number - 1));
            let deps: Vec<_> = before.iter().map(String::as_str).collect();
            shell_with(&name, &[], &deps, &format!("echo {number} > {{{{OUTPUT_DIR}}}}/f"))
        })
        .collect();
    let project = Project::with_jobs(json!(jobs));
    let build = farm.build(&project.graph()).succeed();
    let worker = |number| build.attempts(&format!("step {number}"))[0]["worker"].clone();
    for number in 1..6 {
        assert_eq!(worker(number), worker(0), "step {number} left the worker with its input");
    }
}

#[test]
fn only_requested_jobs_and_what_they_need_are_run_and_delivered() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([
        shell("lib/a", "echo a > {{OUTPUT_DIR}}/f"),
        shell_with("bin/b", &[], &["lib/a"], "cat {{DEP:lib/a}}/f > {{OUTPUT_DIR}}/f"),
        shell("other", "true"),
    ]));
    let build = farm.build(&project.graph()).args(["--job", "bin/b"]).succeed();
    assert_eq!((build.jobs("total"), build.jobs("executed")), (2, 2));
    assert_eq!(project.output("bin/b", "f"), "a\n");
    assert!(project.join("distbuild-out/bin%2Fb").is_dir());
    assert!(!project.out("lib/a").exists() && !project.out("other").exists());
}

#[test]
fn changing_a_comment_upstream_cuts_the_dependents_off() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([
        shell_with("strip", &["in.txt"], &[], "grep -v '^#' in.txt > {{OUTPUT_DIR}}/f"),
        shell_with("use", &[], &["strip"], "cp {{DEP:strip}}/f {{OUTPUT_DIR}}/f"),
    ]));
    project.file("in.txt", "# one\ndata\n");
    farm.build(&project.graph()).succeed();
    project.file("in.txt", "# another one\ndata\n");
    let build = farm.build(&project.graph()).succeed();
    assert_eq!((build.jobs("executed"), build.jobs("cut_off")), (1, 1));
}

#[test]
fn equal_jobs_under_two_names_run_once_and_are_both_delivered() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([
        shell("one", "echo same > {{OUTPUT_DIR}}/f"),
        shell("two", "echo same > {{OUTPUT_DIR}}/f"),
    ]));
    let build = farm.build(&project.graph()).succeed();
    assert_eq!(build.jobs("executed"), 1);
    assert_eq!(
        (project.output("one", "f"), project.output("two", "f")),
        ("same\n".into(), "same\n".into())
    );
}

#[test]
fn every_digest_function_names_contents() {
    let farm = Farm::start(1);
    let project =
        Project::with_jobs(json!([shell_with("a", &["in"], &[], "cp in {{OUTPUT_DIR}}/f")]));
    project.file("in", "contents");
    for function in ["sha1", "sha256", "blake3"] {
        let build = farm.build(&project.graph()).args(["--digest-function", function]).succeed();
        assert_eq!(build.jobs("executed"), 1, "{function}");
        assert_eq!(project.output("a", "f"), "contents");
    }
}

#[test]
fn no_cache_runs_again_and_records_all_the_same() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell("a", "date +%N > {{OUTPUT_DIR}}/f")]));
    farm.build(&project.graph()).succeed();
    let first = project.output("a", "f");
    farm.build(&project.graph()).args(["--no-cache"]).succeed();
    let second = project.output("a", "f");
    assert_ne!(first, second);
    let build = farm.build(&project.graph()).succeed();
    assert_eq!(build.jobs("cached"), 1);
    assert_eq!(project.output("a", "f"), second);
}

#[test]
fn a_job_that_joined_an_execution_counts_as_executed_when_nothing_cached_was_wanted() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([
        shell("one", "echo same > {{OUTPUT_DIR}}/f"),
        shell("two", "echo same > {{OUTPUT_DIR}}/f"),
    ]));
    let build = farm.build(&project.graph()).args(["--no-cache"]).succeed();
    assert_eq!((build.jobs("executed"), build.jobs("cached")), (2, 0));
    assert_eq!(build.attempts("one").len() + build.attempts("two").len(), 1);
    let joined = |event: &&Value| event["type"] == "job_finished" && event["joined"] == true;
    assert_eq!(build.events.iter().filter(joined).count(), 1);
}

#[test]
fn a_job_sees_no_undeclared_source_no_network_and_a_fixed_environment() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell_with(
        "look",
        &["declared"],
        &[],
        "ls -a > {{OUTPUT_DIR}}/names; env | sort > {{OUTPUT_DIR}}/env; cat undeclared; \
         ls /sys/class/net > {{OUTPUT_DIR}}/net 2> /dev/null || cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' ' \
         > {{OUTPUT_DIR}}/net; stat -c '%Y %U' declared > {{OUTPUT_DIR}}/stat; id -u > {{OUTPUT_DIR}}/uid",
    )]));
    project.file("declared", "x");
    project.file("undeclared", "x");
    let build = farm.build(&project.graph()).env("SECRET", "of the client").run();
    // The last command is `id`, so the shell succeeds; `cat` complains.
    assert_eq!(build.code, 0, "{}", build.stderr);
    assert!(build.stderr.contains("undeclared: No such file"), "{}", build.stderr);
    assert_eq!(project.output("look", "names"), ".\n..\ndeclared\n");
    assert_eq!(project.output("look", "net").trim(), "lo");
    assert_eq!(project.output("look", "stat"), "315532800 distbuild\n");
    assert_ne!(project.output("look", "uid"), "0\n");
    let env = project.output("look", "env");
    for expected in ["LANG=C.UTF-8", "SOURCE_DATE_EPOCH=315532800", "TZ=UTC", "PATH="] {
        assert!(env.contains(expected), "{expected} is not in {env}");
    }
    assert!(!env.contains("SECRET"), "{env}");
}
