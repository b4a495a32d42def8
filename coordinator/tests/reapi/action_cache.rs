//! `ActionCache`: results of actions.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_coordinator::Limits;
use distbuild_proto::{Digest, DigestFunction};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::server::{Server, WRITABLE, noise, path, to_api};

const SHA256: DigestFunction = DigestFunction::Sha256;

/// An action whose command is there, as its client uploads them.
async fn action(server: &Server, function: DigestFunction, salt: &[u8]) -> Digest {
    let command = api::Command { arguments: vec!["true".to_owned()], ..Default::default() };
    let command = server.put_message(function, &command).await;
    let action = api::Action {
        command_digest: Some(to_api(&command)),
        input_root_digest: Some(to_api(&function.digest(b""))),
        salt: salt.to_vec(),
        ..Default::default()
    };
    server.put_message(function, &action).await
}

async fn update(
    server: &Server,
    instance: &str,
    action: &Digest,
    result: api::ActionResult,
) -> Result<api::ActionResult, Status> {
    let request = api::UpdateActionResultRequest {
        instance_name: instance.to_owned(),
        action_digest: Some(to_api(action)),
        action_result: Some(result),
        digest_function: action.function() as i32,
        ..Default::default()
    };
    server.action_cache().update_action_result(request).await.map(|answer| answer.into_inner())
}

fn question(instance: &str, action: &Digest) -> api::GetActionResultRequest {
    api::GetActionResultRequest {
        instance_name: instance.to_owned(),
        action_digest: Some(to_api(action)),
        digest_function: action.function() as i32,
        ..Default::default()
    }
}

async fn get(
    server: &Server,
    request: api::GetActionResultRequest,
) -> Result<api::ActionResult, Code> {
    let answer = server.action_cache().get_action_result(request).await;
    answer.map(|answer| answer.into_inner()).map_err(|error| error.code())
}

fn file(path: &str, digest: &Digest) -> api::OutputFile {
    api::OutputFile { path: path.to_owned(), digest: Some(to_api(digest)), ..Default::default() }
}

#[tokio::test]
async fn an_unknown_action_is_not_found() {
    let server = Server::start().await;
    let absent = SHA256.digest(b"absent");
    assert_eq!(get(&server, question(WRITABLE, &absent)).await, Err(Code::NotFound));
}

#[tokio::test]
async fn a_result_is_found_under_its_instance_and_function_and_after_a_restart() {
    let mut server = Server::start().await;
    for function in DigestFunction::ALL {
        let action = action(&server, function, b"").await;
        let output = server.put(function, b"output").await;
        let result = api::ActionResult {
            output_files: vec![file("out", &output)],
            stdout_digest: Some(to_api(&function.digest(b""))),
            ..Default::default()
        };
        assert_eq!(update(&server, WRITABLE, &action, result.clone()).await.unwrap(), result);
        assert_eq!(get(&server, question(WRITABLE, &action)).await, Ok(result.clone()));
        for other in ["", "writable", "writable/here/too"] {
            assert_eq!(get(&server, question(other, &action)).await, Err(Code::NotFound));
        }
        server.restart().await;
        assert_eq!(get(&server, question(WRITABLE, &action)).await, Ok(result));
    }
    let sha256 = action(&server, SHA256, b"").await;
    let other = Digest::new(DigestFunction::Blake3, sha256.hash(), sha256.size_bytes()).unwrap();
    assert_eq!(get(&server, question(WRITABLE, &other)).await, Err(Code::NotFound));
}

#[tokio::test]
async fn who_may_not_write_results_is_told_so() {
    let server = Server::start().await;
    let action = action(&server, SHA256, b"").await;
    for instance in ["", "other"] {
        let error = update(&server, instance, &action, api::ActionResult::default()).await;
        assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn a_result_is_kept_only_if_all_that_it_names_is_there_and_what_is_not_is_named() {
    let server = Server::start().await;
    let action = action(&server, SHA256, b"").await;
    let absent = SHA256.digest(b"absent");
    let also = SHA256.digest(b"also");
    let result = api::ActionResult {
        output_files: vec![file("out", &absent)],
        stderr_digest: Some(to_api(&also)),
        ..Default::default()
    };
    let error = update(&server, WRITABLE, &action, result.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let mut subjects: Vec<_> = error
        .get_details_precondition_failure()
        .unwrap()
        .violations
        .into_iter()
        .map(|violation| (violation.r#type, violation.subject))
        .collect();
    subjects.sort_unstable();
    let mut expected =
        [&absent, &also].map(|d| ("MISSING".to_owned(), format!("blobs/{}", path(d))));
    expected.sort_unstable();
    assert_eq!(subjects, expected);
    let unknown = update(&server, WRITABLE, &absent, api::ActionResult::default()).await;
    assert_eq!(unknown.unwrap_err().code(), Code::FailedPrecondition, "the action is missing");
    assert_eq!(get(&server, question(WRITABLE, &action)).await, Err(Code::NotFound));
}

#[tokio::test]
async fn what_is_not_ok_is_not_kept() {
    let server = Server::start().await;
    let function = SHA256;
    let plain = action(&server, function, b"").await;
    let failed = api::ActionResult { exit_code: 1, ..Default::default() };
    let error = update(&server, WRITABLE, &plain, failed).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let command = server.put_message(function, &api::Command::default()).await;
    let action = api::Action {
        command_digest: Some(to_api(&command)),
        do_not_cache: true,
        ..Default::default()
    };
    let never = server.put_message(function, &action).await;
    let error = update(&server, WRITABLE, &never, api::ActionResult::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    for action in [plain, never] {
        assert_eq!(get(&server, question(WRITABLE, &action)).await, Err(Code::NotFound));
    }
}

#[tokio::test]
async fn a_result_is_a_hit_only_while_all_its_outputs_are_there_those_in_trees_too() {
    let limits = Limits { max_store_bytes: 4 << 20, ..Limits::default() };
    let server = Server::with(limits).await;
    let in_tree = server.put(SHA256, &noise(1, 1000)).await;
    let child = api::Directory {
        files: vec![api::FileNode {
            name: "deep".to_owned(),
            digest: Some(to_api(&in_tree)),
            ..Default::default()
        }],
        ..Default::default()
    };
    let child_digest = server.put_message(SHA256, &child).await;
    let root = api::Directory {
        directories: vec![api::DirectoryNode {
            name: "child".to_owned(),
            digest: Some(to_api(&child_digest)),
        }],
        ..Default::default()
    };
    let root_digest = server.put_message(SHA256, &root).await;
    let tree = api::Tree { root: Some(root), children: vec![child] };
    let tree_digest = server.put_message(SHA256, &tree).await;
    let by_tree = api::OutputDirectory {
        path: "dir".to_owned(),
        tree_digest: Some(to_api(&tree_digest)),
        ..Default::default()
    };
    let by_root = api::OutputDirectory {
        path: "dir".to_owned(),
        root_directory_digest: Some(to_api(&root_digest)),
        ..Default::default()
    };
    let mut actions = Vec::new();
    for (salt, directory) in [(b"t", by_tree), (b"r", by_root)] {
        let action = action(&server, SHA256, salt).await;
        let result =
            api::ActionResult { output_directories: vec![directory], ..Default::default() };
        update(&server, WRITABLE, &action, result.clone()).await.unwrap();
        assert_eq!(get(&server, question(WRITABLE, &action)).await, Ok(result));
        actions.push((action, tree_digest));
    }
    // All but the file in the tree is used again and again while others come and go.
    for n in 10..40 {
        server.put(SHA256, &noise(n, 256 << 10)).await;
        server.missing(&[child_digest, root_digest, tree_digest]).await;
    }
    assert_eq!(server.missing(&[in_tree]).await.len(), 1, "the file has been evicted");
    for (action, tree) in actions {
        assert!(server.missing(&[tree]).await.is_empty());
        assert_eq!(get(&server, question(WRITABLE, &action)).await, Err(Code::NotFound));
    }
}

#[tokio::test]
async fn a_hit_extends_the_life_of_its_outputs() {
    let limits = Limits { max_store_bytes: 4 << 20, ..Limits::default() };
    let server = Server::with(limits).await;
    let action = action(&server, SHA256, b"").await;
    let output = server.put(SHA256, &noise(1, 1000)).await;
    let result =
        api::ActionResult { output_files: vec![file("out", &output)], ..Default::default() };
    update(&server, WRITABLE, &action, result).await.unwrap();
    for n in 10..50 {
        assert!(get(&server, question(WRITABLE, &action)).await.is_ok(), "after {n} blobs");
        server.put(SHA256, &noise(n, 256 << 10)).await;
    }
}

#[tokio::test]
async fn contents_are_inlined_only_if_asked_for_and_if_they_fit() {
    let server = Server::start().await;
    let action = action(&server, SHA256, b"").await;
    let small = server.put(SHA256, b"small").await;
    let large = server.put(SHA256, &noise(1, 3 << 20)).await;
    let stdout = server.put(SHA256, b"said").await;
    let result = api::ActionResult {
        output_files: vec![file("large", &large), file("small", &small)],
        stdout_digest: Some(to_api(&stdout)),
        stderr_raw: b"inline".to_vec(),
        ..Default::default()
    };
    update(&server, WRITABLE, &action, result).await.unwrap();
    let plain = get(&server, question(WRITABLE, &action)).await.unwrap();
    assert!(plain.stdout_raw.is_empty() && plain.stderr_raw.is_empty());
    assert!(plain.output_files.iter().all(|file| file.contents.is_empty()));
    let asked = api::GetActionResultRequest {
        inline_stdout: true,
        inline_stderr: true,
        inline_output_files: vec!["small".to_owned(), "large".to_owned(), "none".to_owned()],
        ..question(WRITABLE, &action)
    };
    let full = get(&server, asked).await.unwrap();
    assert_eq!((&full.stdout_raw[..], &full.stderr_raw[..]), (&b"said"[..], &b"inline"[..]));
    assert_eq!(full.stderr_digest, Some(to_api(&SHA256.digest(b"inline"))));
    let contents: Vec<_> = full.output_files.iter().map(|file| file.contents.len()).collect();
    assert_eq!(contents, [0, 5], "what is too large is left to be read");
}

#[tokio::test]
async fn malformed_requests_and_results_are_refused() {
    let server = Server::start().await;
    let action = action(&server, SHA256, b"").await;
    let empty = api::GetActionResultRequest::default();
    assert_eq!(get(&server, empty).await, Err(Code::InvalidArgument));
    let mut bad = question(WRITABLE, &action);
    bad.instance_name = "a/blobs".to_owned();
    assert_eq!(get(&server, bad).await, Err(Code::InvalidArgument));
    let bad_digest = api::Digest { hash: "no".to_owned(), size_bytes: 1 };
    let none = server.put(SHA256, b"\xff\xff no tree").await;
    for result in [
        api::ActionResult { stdout_digest: Some(bad_digest), ..Default::default() },
        api::ActionResult { output_files: vec![api::OutputFile::default()], ..Default::default() },
        api::ActionResult {
            output_directories: vec![api::OutputDirectory::default()],
            ..Default::default()
        },
        api::ActionResult {
            output_directories: vec![api::OutputDirectory {
                tree_digest: Some(to_api(&none)),
                ..Default::default()
            }],
            ..Default::default()
        },
    ] {
        let error = update(&server, WRITABLE, &action, result).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    let error = update(&server, WRITABLE, &none, api::ActionResult::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "no Action");
}
