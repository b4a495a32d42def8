//! Execute, WaitExecution and the operations of an execution, on real workers.

use std::path::Path;
use std::time::Duration;

use bazel_remote_apis::build::bazel::remote::execution::v2::execution_stage::Value as Stage;
use bazel_remote_apis::google::longrunning::CancelOperationRequest;
use bazel_remote_apis::google::protobuf;
use distbuild_proto::DigestFunction;
use distbuild_tests::{Farm, wait};
use tonic::Code;

use crate::executor::{Executor, code, shell};

/// Processes of this machine whose command line names this.
fn processes(mark: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let runs = |path: &Path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())
    };
    entries.filter(|entry| runs(&entry.path())).count()
}

/// A number of seconds that no other test sleeps.
fn unique_sleep(seed: u32) -> String {
    format!("{}.{seed:03}", 100_000 + std::process::id())
}

fn gone(mark: &str) {
    wait::until("all processes of the action to be gone", || (processes(mark) == 0).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_runs_with_each_digest_function_and_its_outputs_have_the_same() {
    let farm = Farm::start(1);
    for function in DigestFunction::ALL {
        let client = Executor::with(&farm, function).await;
        let mut command = shell("echo made by $0 > out; echo hello; echo oops >&2", &["out"]);
        command.arguments.push(format!("{function:?}"));
        let result = client.result(&command, &[]).await;
        assert_eq!(client.output(&result, "out").await, format!("made by {function:?}\n"));
        assert_eq!(client.text(result.stdout_digest.as_ref()).await, "hello\n");
        assert_eq!(client.text(result.stderr_digest.as_ref()).await, "oops\n");
        let hash = &result.output_files[0].digest.as_ref().unwrap().hash;
        assert_eq!(hash.len(), 2 * function.hash_len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_announced_when_it_can_be_read_without_its_worker() {
    let mut farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let script = "echo small > out; head -c 5000000 /dev/zero > large; mkdir d; echo in > d/f";
    let command = shell(script, &["out", "large", "d"]);
    let action = client.action(&command, &[], |_| {}).await;
    let response = client.start(&action).await.response().await;
    farm.kill_worker(0);
    let result = response.result.unwrap();
    assert_eq!(client.output(&result, "out").await, "small\n");
    assert_eq!(client.output(&result, "large").await.len(), 5_000_000);
    let tree = client.tree(&result, "d").await;
    let file = tree.root.unwrap().files[0].digest.clone();
    assert_eq!(client.text(file.as_ref()).await, "in\n");
    let again = client.start(&action).await.response().await;
    assert!(again.cached_result, "nobody is there to run it");
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_ordered_and_the_worker_is_named() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let result = client.result(&shell("sleep 0.05", &[]), &[]).await;
    let metadata = result.execution_metadata.unwrap();
    assert_eq!(metadata.worker, "w0");
    let times = [
        metadata.queued_timestamp,
        metadata.worker_start_timestamp,
        metadata.input_fetch_start_timestamp,
        metadata.input_fetch_completed_timestamp,
        metadata.execution_start_timestamp,
        metadata.execution_completed_timestamp,
        metadata.output_upload_start_timestamp,
        metadata.output_upload_completed_timestamp,
        metadata.worker_completed_timestamp,
    ];
    let times = times.map(|time| time.map(|time| (time.seconds, time.nanos)).unwrap());
    assert!(times.is_sorted() && times[4] < times[5], "{times:?}");
    assert!(metadata.virtual_execution_duration.unwrap().nanos >= 40_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_is_a_result_and_a_signal_is_one_too() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let failed = client.run(&shell("echo part > out; exit 7", &["out"]), &[]).await;
    assert_eq!(code(&failed), Code::Ok);
    let result = failed.result.unwrap();
    assert_eq!(result.exit_code, 7);
    assert_eq!(client.output(&result, "out").await, "part\n");
    let killed = client.run(&shell("kill -9 $$", &[]), &[]).await;
    assert_eq!(killed.result.unwrap().exit_code, 128 + 9);
    let absent = client.run(&shell("exec /no/such/program", &[]), &[]).await;
    assert_eq!(absent.result.unwrap().exit_code, 127);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_kills_all_processes_and_carries_what_was_made() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let sleep = unique_sleep(1);
    let script = format!("echo part > out; echo said; sleep {sleep} & sleep {sleep}");
    let timeout = Some(protobuf::Duration { seconds: 1, nanos: 0 });
    let action =
        client.action(&shell(&script, &["out"]), &[], |action| action.timeout = timeout).await;
    let response = client.start(&action).await.response().await;
    assert_eq!(code(&response), Code::DeadlineExceeded);
    let result = response.result.unwrap();
    assert_eq!(client.output(&result, "out").await, "part\n");
    assert_eq!(client.text(result.stdout_digest.as_ref()).await, "said\n");
    gone(&sleep);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_kills_all_processes_and_frees_the_worker() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let sleep = unique_sleep(2);
    let script = format!("sleep {sleep} & sleep {sleep}");
    let action = client.action(&shell(&script, &[]), &[], |_| {}).await;
    let mut watched = client.start(&action).await;
    wait::until("the action to run", || (processes(&sleep) == 2).then_some(()));
    let cancel = CancelOperationRequest { name: watched.last.name.clone() };
    client.operations().cancel_operation(cancel).await.unwrap();
    assert_eq!(code(&watched.response().await), Code::Cancelled);
    gone(&sleep);
    client.result(&shell("true", &[]), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_prints_can_be_read_while_it_runs() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let script = "echo first; while ! [ -e /tmp/go ]; do sleep 0.01; : $((n+=1)); [ $n -gt 300 ] && exit 1; [ $n = 20 ] && { echo second; touch /tmp/go; }; done";
    let action = client.action(&shell(script, &[]), &[], |_| {}).await;
    let mut watched = client.start(&action).await;
    watched.reach(Stage::Executing).await;
    let name = watched.metadata().stdout_stream_name;
    let mut stream = client.stream(&name).await;
    let first = tokio::time::timeout(wait::PATIENCE, stream.message()).await.unwrap().unwrap();
    assert_eq!(first.unwrap().data, b"first\n");
    let mut rest = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        rest.extend(piece.data);
    }
    assert_eq!(rest, b"second\n", "and the stream ends with the execution");
    assert_eq!(watched.response().await.result.unwrap().exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_goes_on_elsewhere_when_its_worker_is_lost() {
    let mut farm = Farm::start(2);
    let client = Executor::new(&farm).await;
    let action = client.action(&shell("sleep 1; echo done > out", &["out"]), &[], |_| {}).await;
    let mut watched = client.start(&action).await;
    watched.reach(Stage::Executing).await;
    let worker = watched.metadata().partial_execution_metadata.unwrap().worker;
    farm.kill_worker(worker[1..].parse().unwrap());
    let result = watched.response().await.result.unwrap();
    assert_eq!(client.output(&result, "out").await, "done\n");
    assert_ne!(result.execution_metadata.unwrap().worker, worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_results_are_there_and_operations_are_unknown() {
    let mut farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let action = client.action(&shell("echo made > out", &["out"]), &[], |_| {}).await;
    let mut watched = client.start(&action).await;
    watched.response().await;
    let name = watched.last.name.clone();
    farm.restart_coordinator();
    let client = Executor::new(&farm).await;
    assert_eq!(client.wait(&name).await.err().unwrap().code(), Code::NotFound);
    let response = client.start(&action).await.response().await;
    assert!(response.cached_result);
    assert_eq!(client.output(&response.result.unwrap(), "out").await, "made\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_an_execution_waits_for_the_first_one() {
    let mut farm = Farm::without_workers();
    let client = Executor::new(&farm).await;
    let action = client.action(&shell("true", &[]), &[], |_| {}).await;
    let mut watched = client.start(&action).await;
    watched.reach(Stage::Queued).await;
    farm.add_worker(0, &[]);
    assert_eq!(code(&watched.response().await), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_is_there_only_for_who_asks() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let command = shell("wc -l < /proc/net/dev > out", &["out"]);
    let interfaces = async |network: &str| {
        let action = client
            .action(&command, &[], |action| action.platform = platform("network", network))
            .await;
        let result = client.start(&action).await.response().await.result.unwrap();
        client.output(&result, "out").await.trim().parse::<u32>().unwrap()
    };
    assert!(interfaces("off").await <= 3, "two lines of heading and the loopback");
    let here = std::fs::read_to_string("/proc/net/dev").unwrap().lines().count();
    assert_eq!(interfaces("on").await as usize, here);
}

fn platform(
    name: &str,
    value: &str,
) -> Option<bazel_remote_apis::build::bazel::remote::execution::v2::Platform> {
    use bazel_remote_apis::build::bazel::remote::execution::v2::{Platform, platform::Property};
    let property = Property { name: name.to_owned(), value: value.to_owned() };
    Some(Platform { properties: vec![property] })
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_actions_of_many_clients_run_once() {
    let farm = Farm::start(2);
    let client = Executor::new(&farm).await;
    let action = client.action(&shell("date +%N > out; sleep 0.5", &["out"]), &[], |_| {}).await;
    let mut all = Vec::new();
    for _ in 0..8 {
        all.push(client.start(&action).await);
    }
    let mut made = std::collections::BTreeSet::new();
    for watched in &mut all {
        let result = tokio::time::timeout(Duration::from_secs(60), watched.response()).await;
        made.insert(client.output(&result.unwrap().result.unwrap(), "out").await);
    }
    assert_eq!(made.len(), 1);
}
