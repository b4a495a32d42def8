//! Executions of the Remote Execution API: what clients are told, and when.

use std::time::Duration;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_stage::Value as Stage;
use bazel_remote_apis::google::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    WaitOperationRequest,
};
use bytes::Bytes;
use distbuild_coordinator::Limits;
use distbuild_proto::wire::from_worker::Body as FromWorker;
use distbuild_proto::wire::to_worker::Body as ToWorker;
use distbuild_proto::wire::{self, AttemptEnd};
use tonic::Code;
use tonic_types::StatusExt;

use crate::fake::{FakeWorker, Farm, soon};
use crate::reapi::{
    ApiClient, Ask, FUNCTION, Lent, code, metadata, output, platform, read, response, to_api,
};

async fn setup() -> (Farm, FakeWorker, ApiClient) {
    let farm = Farm::start().await;
    let worker = FakeWorker::join(&farm, "w").await;
    let client = ApiClient::new(&farm).await;
    (farm, worker, client)
}

/// What is wrong, as clients read it.
fn details(response: &api::ExecuteResponse) -> tonic_types::ErrorDetails {
    let status = response.status.clone().unwrap();
    let bytes = prost::Message::encode_to_vec(&status);
    tonic::Status::with_details(Code::from(status.code), status.message, bytes.into())
        .get_error_details()
}

#[tokio::test]
async fn an_action_runs_and_its_result_names_what_the_store_holds() {
    let (_farm, mut worker, client) = setup().await;
    let action = client.action(|_, command| {
        command.working_directory = "w".to_owned();
        command.output_paths = vec!["../d".to_owned(), "out".to_owned(), "none".to_owned()];
    });
    let mut watched = client.execute(&action).await;
    let assign = worker.assigned().await;
    let run = assign.action.clone().unwrap();
    assert_eq!(run.layout(), wire::action::Layout::Root);
    assert_eq!(run.output_paths, ["d", "w/none", "w/out"]);
    assert_eq!(assign.digest_function, FUNCTION as i32);
    watched.reach(Stage::Executing).await;
    assert_eq!(watched.metadata().action_digest, Some(to_api(&action)));
    let partial = watched.metadata().partial_execution_metadata.unwrap();
    assert_eq!(partial.worker, "w");
    worker.make(&assign, &[("w/out", "made"), ("d/x", "in it")]).await;
    let response = watched.response().await;
    assert_eq!((code(&response), response.cached_result), (Code::Ok, false));
    let result = response.result.unwrap();
    let [file] = &result.output_files[..] else { panic!("{result:?}") };
    assert_eq!((file.path.as_str(), result.exit_code), ("out", 0));
    assert_eq!(read(&client, file.digest.as_ref()), "made");
    let [directory] = &result.output_directories[..] else { panic!("{result:?}") };
    assert_eq!(directory.path, "../d");
    let tree = read(&client, directory.tree_digest.as_ref());
    let tree: api::Tree = prost::Message::decode(&tree[..]).unwrap();
    assert_eq!(tree.root.unwrap().files[0].name, "x");
    assert!(client.store.contains(&FUNCTION.digest(b"in it")));
    let metadata = result.execution_metadata.unwrap();
    assert_eq!(metadata.worker, "w");
    assert!(metadata.output_upload_completed_timestamp.is_some());
    assert_eq!(metadata.auxiliary_metadata[0].type_url, "type.googleapis.com/distbuild.v1.Timings");
}

#[tokio::test]
async fn a_success_is_kept_by_instance_and_given_without_a_run() {
    let (_farm, mut worker, client) = setup().await;
    let action = client.action(|_, _| {});
    let mut watched = client.execute(&action).await;
    let assign = worker.assigned().await;
    worker.make(&assign, &[("out", "made")]).await;
    watched.response().await;
    let again = client.execute(&action).await.response().await;
    assert!(again.cached_result);
    assert_eq!(again.result.unwrap().output_files[0].path, "out");
    let other = Ask { instance: "other/one".to_owned(), ..Ask::default() };
    let mut elsewhere = client.execute_as(&action, other).await;
    assert!(elsewhere.name().starts_with("other/one/operations/"));
    let assign = worker.assigned().await;
    worker.make(&assign, &[]).await;
    assert!(!elsewhere.response().await.cached_result);
}

#[tokio::test]
async fn who_skips_the_cache_gets_a_run_whose_result_takes_the_place_of_the_old_one() {
    let (_farm, mut worker, client) = setup().await;
    let action = client.action(|_, _| {});
    for made in ["old", "new"] {
        let ask = Ask { skip_cache_lookup: true, ..Ask::default() };
        let mut watched = client.execute_as(&action, ask).await;
        let assign = worker.assigned().await;
        worker.make(&assign, &[("out", made)]).await;
        assert!(!watched.response().await.cached_result);
    }
    let result = client.execute(&action).await.response().await.result.unwrap();
    assert_eq!(read(&client, result.output_files[0].digest.as_ref()), "new");
}

#[tokio::test]
async fn a_command_that_fails_is_ok_with_its_exit_code_and_outputs_and_is_not_kept() {
    let (_farm, mut worker, client) = setup().await;
    let action = client.action(|_, _| {});
    for _ in 0..2 {
        let mut watched = client.execute(&action).await;
        let assign = worker.assigned().await;
        let made = output(&[("out", "partial")]);
        worker.end_with(&assign, AttemptEnd::AttemptFailed, &made, |it| it.exit_code = 3).await;
        let response = watched.response().await;
        assert_eq!((code(&response), response.cached_result), (Code::Ok, false));
        let result = response.result.unwrap();
        assert_eq!(result.exit_code, 3);
        assert_eq!(read(&client, result.output_files[0].digest.as_ref()), "partial");
    }
}

#[tokio::test]
async fn a_time_out_is_deadline_exceeded_and_carries_what_was_made() {
    let (_farm, mut worker, client) = setup().await;
    let action = client.action(|_, _| {});
    let mut watched = client.execute(&action).await;
    let assign = worker.assigned().await;
    let made = output(&[("out", "partial")]);
    worker.end_with(&assign, AttemptEnd::AttemptTimedOut, &made, |_| {}).await;
    let response = watched.response().await;
    assert_eq!(code(&response), Code::DeadlineExceeded);
    assert_eq!(response.result.unwrap().output_files.len(), 1);
}

#[tokio::test]
async fn all_that_is_missing_is_named_at_once() {
    let (_farm, _worker, client) = setup().await;
    let absent = |text: &[u8]| FUNCTION.digest(text);
    let directory = api::Directory {
        files: ["a", "b"]
            .map(|name| api::FileNode {
                name: name.to_owned(),
                digest: Some(to_api(&absent(name.as_bytes()))),
                ..Default::default()
            })
            .into(),
        directories: vec![api::DirectoryNode {
            name: "d".to_owned(),
            digest: Some(to_api(&absent(b"directory"))),
        }],
        ..Default::default()
    };
    let root = client.upload_message(&directory);
    let action = client.action(|action, _| {
        action.input_root_digest = Some(to_api(&root));
        action.command_digest = Some(to_api(&absent(b"command")));
    });
    let response = client.execute(&action).await.response().await;
    assert_eq!(code(&response), Code::FailedPrecondition);
    let violations = details(&response).precondition_failure().unwrap().violations.clone();
    let mut subjects: Vec<_> = violations.iter().map(|it| it.subject.clone()).collect();
    subjects.sort();
    let mut expected: Vec<_> = [&b"a"[..], b"b", b"directory", b"command"]
        .iter()
        .map(|text| format!("blobs/{}/{}", absent(text).hex(), text.len()))
        .collect();
    expected.sort();
    assert_eq!(subjects, expected);
    assert!(violations.iter().all(|it| it.r#type == "MISSING"));
    let response = client.execute(&absent(b"action")).await.response().await;
    let violations = details(&response).precondition_failure().unwrap().violations.clone();
    assert_eq!(violations.len(), 1);
}

#[tokio::test]
async fn equal_actions_run_once_and_each_client_has_an_operation_of_its_own() {
    let (_farm, mut worker, client) = setup().await;
    let action = client.action(|_, _| {});
    let mut first = client.execute(&action).await;
    let assign = worker.assigned().await;
    let skipping = Ask { skip_cache_lookup: true, inline_stdout: true, ..Ask::default() };
    let mut second = client.execute_as(&action, skipping).await;
    assert_ne!(first.name(), second.name());
    second.reach(Stage::Executing).await;
    let made = output(&[("out", "made")]);
    let stdout = wire::Content { inline: Bytes::from_static(b"hello"), blob: None };
    let printed = |result: &mut wire::JobResult| result.stdout = Some(stdout);
    worker.end_with(&assign, AttemptEnd::AttemptSucceeded, &made, printed).await;
    let (first, second) = (first.response().await, second.response().await);
    let (first, second) = (first.result.unwrap(), second.result.unwrap());
    assert_eq!(first.output_files, second.output_files);
    assert_eq!(read(&client, first.stdout_digest.as_ref()), "hello");
    assert!(first.stdout_raw.is_empty(), "who does not ask for it gets the digest alone");
    assert_eq!(second.stdout_raw, b"hello");
}

#[tokio::test]
async fn an_action_that_is_not_to_be_cached_is_neither_shared_nor_kept() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join_with(
        &farm,
        wire::WorkerHello { milli_cores: 4000, ..FakeWorker::hello("w") },
    )
    .await;
    let client = ApiClient::new(&farm).await;
    let action = client.action(|action, _| action.do_not_cache = true);
    let mut first = client.execute(&action).await;
    let mut second = client.execute(&action).await;
    let assigns = [worker.assigned().await, worker.assigned().await];
    for assign in &assigns {
        worker.make(assign, &[]).await;
    }
    assert!(!first.response().await.cached_result && !second.response().await.cached_result);
    let _third = client.execute(&action).await;
    worker.assigned().await;
}

#[tokio::test]
async fn an_execution_is_killed_when_the_last_of_its_operations_is_cancelled() {
    let (_farm, mut worker, mut client) = setup().await;
    let action = client.action(|_, _| {});
    let mut first = client.execute(&action).await;
    let assign = worker.assigned().await;
    let mut second = client.execute(&action).await;
    let cancel = |name: &str| CancelOperationRequest { name: name.to_owned() };
    client.operations.cancel_operation(cancel(first.name())).await.unwrap();
    assert_eq!(code(&first.response().await), Code::Cancelled);
    second.reach(Stage::Executing).await;
    client.operations.cancel_operation(cancel(second.name())).await.unwrap();
    assert_eq!(code(&second.response().await), Code::Cancelled);
    match worker.next().await {
        ToWorker::CancelAttempt(cancel) => assert_eq!(cancel.attempt, assign.attempt),
        other => panic!("{other:?}"),
    }
    let unknown = client.operations.cancel_operation(cancel("operations/none")).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn an_execution_that_nobody_watches_any_more_is_killed() {
    let limits = Limits { unwatched_execution: Duration::from_millis(50), ..Limits::default() };
    let farm = Farm::with(limits).await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let client = ApiClient::new(&farm).await;
    let action = client.action(|_, _| {});
    let watched = client.execute(&action).await;
    worker.assigned().await;
    let name = watched.name().to_owned();
    drop(watched);
    assert!(matches!(worker.next().await, ToWorker::CancelAttempt(_)));
    let response = client.wait(&name).await.unwrap().response().await;
    assert_eq!(code(&response), Code::Cancelled);
}

#[tokio::test]
async fn who_waits_is_told_at_once_how_it_stands_also_when_it_is_over() {
    let (_farm, mut worker, client) = setup().await;
    let action = client.action(|_, _| {});
    let first = client.execute(&action).await;
    let assign = worker.assigned().await;
    let mut waiting = client.wait(first.name()).await.unwrap();
    waiting.reach(Stage::Executing).await;
    worker.make(&assign, &[]).await;
    assert_eq!(code(&waiting.response().await), Code::Ok);
    let late = client.wait(first.name()).await.unwrap().response().await;
    assert_eq!(code(&late), Code::Ok);
    let unknown = client.wait("operations/none").await.err().unwrap();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn operations_are_got_listed_waited_for_and_deleted() {
    let (_farm, mut worker, mut client) = setup().await;
    let action = client.action(|_, _| {});
    let mut watched = client.execute(&action).await;
    let assign = worker.assigned().await;
    let name = watched.name().to_owned();
    let wait = WaitOperationRequest {
        name: name.clone(),
        timeout: Some(bazel_remote_apis::google::protobuf::Duration { seconds: 0, nanos: 1 }),
    };
    let early = client.operations.wait_operation(wait.clone()).await.unwrap().into_inner();
    assert!(!early.done);
    let delete = DeleteOperationRequest { name: name.clone() };
    let refused = client.operations.delete_operation(delete.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    worker.make(&assign, &[]).await;
    watched.response().await;
    let ended = client.operations.wait_operation(wait).await.unwrap().into_inner();
    assert_eq!(code(&response(&ended).unwrap()), Code::Ok);
    let get = GetOperationRequest { name: name.clone() };
    let got = client.operations.get_operation(get.clone()).await.unwrap().into_inner();
    assert_eq!(metadata(&got).stage(), Stage::Completed);
    let list = |name: &str| ListOperationsRequest { name: name.to_owned(), ..Default::default() };
    let listed = client.operations.list_operations(list("operations")).await.unwrap().into_inner();
    assert_eq!(listed.operations.iter().map(|it| &it.name).collect::<Vec<_>>(), [&name]);
    let other = client.operations.list_operations(list("other/operations")).await.unwrap();
    assert!(other.into_inner().operations.is_empty());
    client.operations.delete_operation(delete).await.unwrap();
    assert_eq!(client.operations.get_operation(get).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_property_that_no_worker_offers_is_refused_at_once_and_named() {
    let (_farm, mut worker, client) = setup().await;
    let gpu = client.action(|action, _| action.platform = platform("gpu", "1"));
    let response = client.execute(&gpu).await.response().await;
    assert_eq!(code(&response), Code::FailedPrecondition);
    assert!(response.status.unwrap().message.contains("\"gpu\""));
    let linux = client.action(|action, _| action.platform = platform("OSFamily", "Linux"));
    let _watched = client.execute(&linux).await;
    worker.assigned().await;
}

#[tokio::test]
async fn the_lower_priority_value_runs_sooner() {
    let (_farm, mut worker, client) = setup().await;
    let numbered =
        |number: &str| client.action(|_, command| command.arguments.push(number.to_owned()));
    let _running = client.execute(&numbered("first")).await;
    let first = worker.assigned().await;
    let mut waiting = Vec::new();
    for (number, priority) in [("late", 5), ("usual", 0), ("soon", -5)] {
        let ask = Ask { priority, ..Ask::default() };
        let mut watched = client.execute_as(&numbered(number), ask).await;
        watched.reach(Stage::Queued).await;
        waiting.push(watched);
    }
    let mut order = Vec::new();
    let mut assign = first;
    for _ in 0..3 {
        worker.make(&assign, &[]).await;
        assign = worker.assigned().await;
        let steps = assign.action.clone().unwrap().steps;
        let Some(wire::step::Kind::Exec(exec)) = &steps[0].kind else { panic!("{steps:?}") };
        order.push(String::from_utf8(exec.argv[1].to_vec()).unwrap());
    }
    assert_eq!(order, ["soon", "usual", "late"]);
}

#[tokio::test]
async fn an_execution_whose_worker_is_lost_is_queued_again_and_runs_elsewhere() {
    let farm = Farm::start().await;
    let mut one = FakeWorker::join(&farm, "one").await;
    let client = ApiClient::new(&farm).await;
    let mut watched = client.execute(&client.action(|_, _| {})).await;
    one.assigned().await;
    watched.reach(Stage::Executing).await;
    drop(one);
    watched.reach(Stage::Queued).await;
    assert_eq!(watched.metadata().partial_execution_metadata.unwrap().worker, "");
    let mut two = FakeWorker::join(&farm, "two").await;
    let assign = two.assigned().await;
    two.make(&assign, &[("out", "made")]).await;
    let result = watched.response().await.result.unwrap();
    assert_eq!(result.execution_metadata.unwrap().worker, "two");
}

#[tokio::test]
async fn outputs_that_are_lost_before_they_are_here_are_made_again() {
    let farm = Farm::start().await;
    let mut one = FakeWorker::join(&farm, "one").await;
    let client = ApiClient::new(&farm).await;
    let mut watched = client.execute(&client.action(|_, _| {})).await;
    let assign = one.assigned().await;
    // It says that it made something, and has nothing to lend.
    let made = output(&[("out", "made")]);
    let result = wire::JobResult { output_root: Some(made.root.into()), ..Default::default() };
    one.lend(&Lent::default()).await;
    one.end(&assign, AttemptEnd::AttemptSucceeded, Some(result)).await;
    let again = one.assigned().await;
    assert_ne!(again.attempt, assign.attempt);
    one.make(&again, &[("out", "made")]).await;
    assert_eq!(watched.response().await.result.unwrap().output_files.len(), 1);
}

#[tokio::test]
async fn an_infrastructure_error_is_no_result_of_the_command() {
    let (_farm, mut worker, client) = setup().await;
    let mut watched = client.execute(&client.action(|_, _| {})).await;
    for _ in 0..3 {
        let assign = worker.assigned().await;
        worker.end(&assign, AttemptEnd::AttemptInfraError, None).await;
    }
    let response = watched.response().await;
    assert_eq!(code(&response), Code::Internal);
    assert!(response.result.is_none());
}

#[tokio::test]
async fn a_coordinator_that_goes_down_asks_its_clients_to_come_again() {
    let (mut farm, mut worker, client) = setup().await;
    let mut watched = client.execute(&client.action(|_, _| {})).await;
    worker.assigned().await;
    let coordinator = farm.coordinator.take().unwrap();
    let (response, ()) = tokio::join!(watched.response(), coordinator.shutdown());
    assert_eq!(code(&response), Code::Unavailable);
    assert!(details(&response).retry_info().unwrap().retry_delay.is_some());
}

#[tokio::test]
async fn requests_that_cannot_be_right_are_refused() {
    let (_farm, _worker, client) = setup().await;
    let action = client.action(|_, _| {});
    let ask = Ask { instance: "a/blobs".to_owned(), ..Ask::default() };
    let refused = client.try_execute(&action, ask).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let request = api::ExecuteRequest::default();
    let refused = soon("refusal", client.execution.clone().execute(request)).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    let mut malformed = vec![client.upload(b"\xff no action")];
    malformed.push(client.action(|_, command| command.arguments.clear()));
    malformed.push(client.action(|_, command| command.working_directory = "/abs".to_owned()));
    malformed.push(client.action(|_, command| command.output_paths = vec!["../x".to_owned()]));
    malformed.push(client.action(|action, _| {
        action.timeout =
            Some(bazel_remote_apis::google::protobuf::Duration { seconds: 1 << 40, nanos: 0 });
    }));
    let no_directory = client.upload(b"\xff no directory");
    malformed
        .push(client.action(|action, _| action.input_root_digest = Some(to_api(&no_directory))));
    for action in malformed {
        let response = client.execute(&action).await.response().await;
        assert_eq!(code(&response), Code::InvalidArgument, "{response:?}");
    }
}

#[tokio::test]
async fn live_output_is_kept_for_who_reads_it_while_the_command_runs() {
    let (_farm, mut worker, client) = setup().await;
    let mut watched = client.execute(&client.action(|_, _| {})).await;
    let assign = worker.assigned().await;
    watched.reach(Stage::Executing).await;
    let metadata = watched.metadata();
    assert!(metadata.stdout_stream_name.starts_with("logstreams/"));
    assert!(metadata.stderr_stream_name.ends_with("/stderr"));
    let output = wire::AttemptOutput {
        attempt: assign.attempt,
        stderr: false,
        data: Bytes::from_static(b"hello"),
    };
    worker.send(FromWorker::AttemptOutput(output)).await;
    worker.make(&assign, &[]).await;
    watched.response().await;
}
