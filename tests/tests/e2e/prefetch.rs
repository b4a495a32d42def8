//! What a command read last time is fetched before it asks, and nothing suffers when it reads something else.

use distbuild_tests::project::{shell, shell_with};
use distbuild_tests::{Build, Conditions, Farm, Finished, Project, SlowLink};
use serde_json::json;

/// Files in a project of these tests, beside those that say which of them are read.
const FILES: usize = 40;
const FILE_BYTES: usize = 2000;

/// Worker 0 begins anew, with an empty store.
fn empty_store(farm: &mut Farm) {
    farm.kill_worker(0);
    std::fs::remove_dir_all(farm.worker_state(0)).unwrap();
    farm.add_worker(0, &[]);
    farm.wait_for_workers(1);
}

/// The name of a file.
fn file(number: usize) -> String {
    format!("src/deep/file-{number:03}")
}

/// Jobs that read what their lists name, one file after the other.
fn readers(jobs: usize) -> Project {
    let job = |number| {
        let script =
            format!("for f in $(cat src/list-{number}); do cat $f; done > {{{{OUTPUT_DIR}}}}/all");
        shell_with(&format!("read {number}"), &["src"], &[], &script)
    };
    let project = Project::with_jobs(json!((0..jobs).map(job).collect::<Vec<_>>()));
    for number in 0..FILES {
        project.file(file(number), format!("{number:03}\n").repeat(FILE_BYTES / 4));
    }
    project
}

/// From now on, a job reads these files; gives what it puts out.
fn list(project: &Project, job: usize, files: impl Iterator<Item = usize> + Clone) -> String {
    let names: Vec<_> = files.clone().map(file).collect();
    project.file(format!("src/list-{job}"), names.join("\n"));
    files.map(|number| format!("{number:03}\n").repeat(FILE_BYTES / 4)).collect()
}

fn outcome(build: &Finished) -> [u64; 3] {
    ["prefetch_hit", "prefetch_late", "prefetch_wasted"].map(|what| build.bytes(what))
}

/// A client that is far away from the farm.
fn far_build(farm: &Farm, project: &Project) -> Finished {
    let link = SlowLink::to(&farm.address(), Conditions::WIDE_AREA);
    Build::of(&project.graph()).on(&link.address()).succeed()
}

#[test]
fn the_second_run_on_an_empty_store_finds_what_the_first_one_read() {
    let mut farm = Farm::start(1);
    let project = readers(1);
    let all = list(&project, 0, 0..FILES - 1);
    let opened = all.len() as u64 + project.join("src/list-0").metadata().unwrap().len();

    let first = far_build(&farm, &project);
    assert_eq!(outcome(&first), [0, 0, 0]);
    assert_eq!((first.bytes("opened"), first.bytes("sent_by_client")), (opened, opened));

    empty_store(&mut farm);
    let second = far_build(&farm, &project);
    assert_eq!(second.jobs("executed"), 1);
    assert_eq!(project.output("read 0", "all"), all);
    let [hit, late, wasted] = outcome(&second);
    assert!(hit > 0 && hit + late <= opened, "{hit} hit, {late} late of {opened}");
    assert_eq!(wasted, 0);
    // A file that no command opens stays where it is, and each other one leaves once.
    assert_eq!((second.bytes("opened"), second.bytes("sent_by_client")), (opened, opened));
    let attempt = second.attempts("read 0")[0];
    assert_eq!(attempt["prefetch_hit"], hit);
    assert_eq!(attempt["files_opened"], FILES as u64);
}

#[test]
fn a_wrong_prediction_is_bounded_and_changes_nothing_of_the_result() {
    let mut farm = Farm::start(1);
    let project = readers(1);
    list(&project, 0, 0..FILES / 2);
    farm.build(&project.graph()).succeed();

    empty_store(&mut farm);
    let others = list(&project, 0, FILES / 2..FILES);
    let second = far_build(&farm, &project);
    assert_eq!(project.output("read 0", "all"), others);
    let [_, _, wasted] = outcome(&second);
    let predicted = (FILES / 2 * FILE_BYTES) as u64;
    assert!(wasted > 0 && wasted <= predicted, "{wasted} wasted");
    // What was fetched in vain was not looked at.
    let opened = others.len() as u64 + project.join("src/list-0").metadata().unwrap().len();
    assert_eq!(second.bytes("opened"), opened);
    assert_eq!(second.attempts("read 0")[0]["files_opened"], (FILES / 2 + 1) as u64);
    assert_eq!(second.bytes("sent_by_client"), opened + wasted);

    // What the last run looked at is what counts from now on.
    empty_store(&mut farm);
    let third = far_build(&farm, &project);
    let [hit, _, wasted] = outcome(&third);
    assert!(hit > 0);
    assert_eq!(wasted, 0);
}

#[test]
fn a_client_whose_bytes_are_wasted_sends_no_more_ahead() {
    const JOBS: usize = 8;
    const EACH: usize = FILES / JOBS / 2;
    let mut farm = Farm::start(1);
    let project = readers(JOBS);
    for job in 0..JOBS {
        list(&project, job, job * EACH..(job + 1) * EACH);
    }
    farm.build(&project.graph()).succeed();

    empty_store(&mut farm);
    for job in 0..JOBS {
        list(&project, job, FILES / 2 + job * EACH..FILES / 2 + (job + 1) * EACH);
    }
    let second = far_build(&farm, &project);
    assert_eq!(second.jobs("executed"), JOBS as u64);
    let [_, _, wasted] = outcome(&second);
    let of_one_job = (EACH * FILE_BYTES) as u64;
    // One job is out before the first one's waste is known, at most.
    assert!(wasted <= 2 * of_one_job, "{wasted} wasted, {of_one_job} for each of {JOBS} jobs");
}

#[test]
fn what_an_attempt_did_not_come_to_read_is_not_fetched_after_its_end() {
    const LARGE: usize = 200_000;
    let mut farm = Farm::start(1);
    let script = "sh src/run.sh";
    let project = Project::with_jobs(json!([shell_with("run", &["src"], &[], script)]));
    project.file("src/run.sh", "cat src/data/* > /dev/null");
    for number in 0..FILES {
        project.file(format!("src/data/{number}"), vec![number as u8; LARGE]);
    }
    let first = farm.build(&project.graph()).succeed();
    assert!(first.bytes("opened") > (FILES * LARGE) as u64);

    empty_store(&mut farm);
    project.file("src/run.sh", "exit 7");
    let slow = Conditions { bytes_per_second: Some(2_000_000), ..Conditions::WIDE_AREA };
    let link = SlowLink::to(&farm.address(), slow);
    let failed = Build::of(&project.graph()).on(&link.address()).run();
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    let sent = failed.bytes("sent_by_client");
    assert!(
        sent <= (FILES * LARGE) as u64 / 2,
        "{sent} bytes were sent for a job that read nothing"
    );
    let [hit, late, _] = outcome(&failed);
    assert!(hit + late <= "exit 7".len() as u64, "{hit} hit, {late} late");
}

#[test]
fn a_worker_that_is_told_not_to_fetches_nothing_ahead() {
    let mut farm = Farm::start(1);
    let project = readers(1);
    list(&project, 0, 0..4);
    farm.build(&project.graph()).succeed();
    farm.kill_worker(0);
    std::fs::remove_dir_all(farm.worker_state(0)).unwrap();
    farm.add_worker(0, &["--prefetch", "off"]);
    farm.wait_for_workers(1);
    let second = far_build(&farm, &project);
    assert_eq!(second.jobs("executed"), 1);
    assert_eq!(outcome(&second), [0, 0, 0]);
}

#[test]
fn outputs_of_dependencies_are_fetched_ahead_from_the_peer_that_has_them() {
    let link = SlowLink::new(Conditions::WIDE_AREA);
    let mut farm = Farm::without_workers();
    farm.add_worker(0, &["--property", "seat=reader"]);
    farm.add_worker(1, &["--property", "seat=maker", "--peer-advertise", &link.address()]);
    farm.wait_for_workers(2);
    link.lead_to(farm.workers[1].as_ref().unwrap().address("grpc"));

    let script = "for n in $(seq 30); do head -c 5000 /dev/zero | tr '\\0' $((n % 10)) \
                  > {{OUTPUT_DIR}}/$n; echo $n >> {{OUTPUT_DIR}}/$n; done";
    let mut make = shell("make", script);
    make["platform"] = json!({ "seat": "maker" });
    let script = "for n in $(seq 30); do cat {{DEP:make}}/$n; done | cksum > {{OUTPUT_DIR}}/sum";
    let mut read = shell_with("read", &[], &["make"], script);
    read["platform"] = json!({ "seat": "reader" });
    let project = Project::with_jobs(json!([make, read]));
    let first = farm.build(&project.graph()).succeed();
    let sum = project.output("read", "sum");

    farm.kill_worker(0);
    std::fs::remove_dir_all(farm.worker_state(0)).unwrap();
    farm.add_worker(0, &["--property", "seat=reader"]);
    farm.wait_for_workers(2);
    let second = farm.build(&project.graph()).succeed();
    assert_eq!((second.jobs("executed"), second.jobs("cached")), (1, 1));
    assert_eq!(project.output("read", "sum"), sum);
    let [hit, late, wasted] = outcome(&second);
    assert!(hit > 0, "{hit} hit, {late} late");
    assert_eq!(wasted, 0);
    assert_eq!(second.bytes("from_peers"), first.bytes("from_peers"));
}
