//! `GetTree`.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_proto::{Digest, DigestFunction};
use tonic::Code;

use crate::server::{CLIENT_MESSAGE_BYTES, Server, to_api};

const SHA256: DigestFunction = DigestFunction::Sha256;

fn directory(children: &[(&str, Digest)], file: &str) -> api::Directory {
    let node = |(name, digest): &(&str, Digest)| api::DirectoryNode {
        name: (*name).to_owned(),
        digest: Some(to_api(digest)),
    };
    api::Directory {
        files: vec![api::FileNode {
            name: file.to_owned(),
            digest: Some(to_api(&SHA256.digest(file.as_bytes()))),
            ..Default::default()
        }],
        directories: children.iter().map(node).collect(),
        ..Default::default()
    }
}

/// The pages of an answer.
async fn pages(
    server: &Server,
    root: &Digest,
    page_size: i32,
    page_token: &str,
) -> Result<Vec<api::GetTreeResponse>, Code> {
    let request = api::GetTreeRequest {
        root_digest: Some(to_api(root)),
        page_size,
        page_token: page_token.to_owned(),
        digest_function: root.function() as i32,
        ..Default::default()
    };
    let answer = server.cas().get_tree(request).await.map_err(|error| error.code())?;
    let (mut stream, mut pages) = (answer.into_inner(), Vec::new());
    while let Some(page) = stream.message().await.map_err(|error| error.code())? {
        pages.push(page);
    }
    Ok(pages)
}

fn directories(pages: &[api::GetTreeResponse]) -> Vec<&api::Directory> {
    pages.iter().flat_map(|page| &page.directories).collect()
}

/// A root with three directories, one of which is in another too.
async fn tree(server: &Server) -> (Digest, Vec<api::Directory>) {
    let shared = directory(&[], "shared");
    let shared_digest = server.put_message(SHA256, &shared).await;
    let one = directory(&[("s", shared_digest)], "one");
    let one_digest = server.put_message(SHA256, &one).await;
    let two = directory(&[("s", shared_digest)], "two");
    let two_digest = server.put_message(SHA256, &two).await;
    let children = [("a", one_digest), ("b", two_digest), ("c", shared_digest)];
    let root = directory(&children, "root");
    (server.put_message(SHA256, &root).await, vec![root, one, two, shared])
}

#[tokio::test]
async fn a_tree_is_its_root_and_all_below_with_shared_directories_once() {
    let server = Server::start().await;
    let (root, expected) = tree(&server).await;
    let pages = pages(&server, &root, 0, "").await.unwrap();
    let found = directories(&pages);
    assert_eq!(found.len(), expected.len());
    assert_eq!(*found[0], expected[0], "the root comes first");
    assert!(expected.iter().all(|directory| found.contains(&directory)));
    assert_eq!(pages.last().unwrap().next_page_token, "");
}

#[tokio::test]
async fn pages_have_the_size_that_is_asked_for_and_any_of_them_can_be_gone_on_from() {
    let server = Server::start().await;
    let (root, expected) = tree(&server).await;
    let all = pages(&server, &root, 1, "").await.unwrap();
    assert_eq!(all.len(), expected.len());
    assert!(all.iter().all(|page| page.directories.len() == 1));
    for (at, page) in all.iter().enumerate() {
        let is_last = at + 1 == all.len();
        assert_eq!(page.next_page_token.is_empty(), is_last);
        if !is_last {
            let rest = pages(&server, &root, 2, &page.next_page_token).await.unwrap();
            assert_eq!(directories(&rest), directories(&all[at + 1..]));
        }
    }
}

#[tokio::test]
async fn what_is_missing_below_the_root_is_left_out() {
    let server = Server::start().await;
    let here = directory(&[], "here");
    let here_digest = server.put_message(SHA256, &here).await;
    let absent = SHA256.digest(b"absent");
    let root = directory(&[("a", absent), ("b", here_digest)], "root");
    let root_digest = server.put_message(SHA256, &root).await;
    let pages = pages(&server, &root_digest, 0, "").await.unwrap();
    assert_eq!(directories(&pages), [&root, &here]);
}

#[tokio::test]
async fn only_a_missing_root_is_not_found() {
    let server = Server::start().await;
    assert_eq!(pages(&server, &SHA256.digest(b"absent"), 0, "").await, Err(Code::NotFound));
    for function in DigestFunction::ALL {
        let pages = pages(&server, &function.digest(b""), 0, "").await.unwrap();
        assert_eq!(directories(&pages), [&api::Directory::default()], "the empty directory");
    }
}

#[tokio::test]
async fn a_small_graph_with_very_many_paths_is_sent_once() {
    let server = Server::start().await;
    let mut child = server.put_message(SHA256, &directory(&[], "leaf")).await;
    for _ in 0..64 {
        let both = directory(&[("l", child), ("r", child)], "f");
        child = server.put_message(SHA256, &both).await;
    }
    let pages = pages(&server, &child, 0, "").await.unwrap();
    assert_eq!(directories(&pages).len(), 65, "of 2^64 paths");
}

#[tokio::test]
async fn a_large_tree_comes_in_pages_that_clients_accept() {
    use prost::Message;

    let server = Server::start().await;
    let mut nodes = Vec::new();
    for n in 0..40 {
        let files = (0..2000).map(|file| api::FileNode {
            name: format!("{n:02}-{file:04}"),
            digest: Some(to_api(&SHA256.digest(b"x"))),
            ..Default::default()
        });
        let directory = api::Directory { files: files.collect(), ..Default::default() };
        let digest = server.put_message(SHA256, &directory).await;
        let name = format!("{n:02}");
        nodes.push(api::DirectoryNode { name, digest: Some(to_api(&digest)) });
    }
    let root = api::Directory { directories: nodes, ..Default::default() };
    let root = server.put_message(SHA256, &root).await;
    let pages = pages(&server, &root, 0, "").await.unwrap();
    assert!(pages.len() > 1);
    assert!(pages.iter().all(|page| page.encoded_len() <= CLIENT_MESSAGE_BYTES));
    assert_eq!(directories(&pages).len(), 41);
}

#[tokio::test]
async fn malformed_requests_and_directories_are_refused() {
    let server = Server::start().await;
    let (root, _) = tree(&server).await;
    assert_eq!(pages(&server, &root, -1, "").await, Err(Code::InvalidArgument));
    for token in ["x", "-1", "1x", "99999999999999999999"] {
        assert_eq!(pages(&server, &root, 0, token).await, Err(Code::InvalidArgument), "{token}");
    }
    let none = server.put(SHA256, b"\xff\xff no directory").await;
    assert_eq!(pages(&server, &none, 0, "").await, Err(Code::InvalidArgument));
    let mut bad = directory(&[("a", root)], "f");
    bad.directories[0].digest.as_mut().unwrap().hash = "../x".to_owned();
    let bad = server.put_message(SHA256, &bad).await;
    assert_eq!(pages(&server, &bad, 0, "").await, Err(Code::InvalidArgument));
    let no_digest = api::GetTreeRequest::default();
    let error = server.cas().get_tree(no_digest).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}
