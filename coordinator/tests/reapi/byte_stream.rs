//! `ByteStream.Read`, and the names of resources.

use distbuild_proto::DigestFunction;
use tonic::Code;

use crate::server::{Server, noise, path, read_name};

const SHA256: DigestFunction = DigestFunction::Sha256;

#[tokio::test]
async fn small_and_large_blobs_are_read_whole_under_every_function() {
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        for len in [1, 256 << 10, (256 << 10) + 1, 3_000_000] {
            let data = noise(7, len);
            let digest = server.put(function, &data).await;
            let read = server.read(&read_name(&digest), 0, 0).await;
            assert!(read == Ok(data), "{function}, {len} bytes");
        }
    }
}

#[tokio::test]
async fn blobs_are_read_in_every_instance_of_any_number_of_segments() {
    let server = Server::start().await;
    let digest = server.put(SHA256, b"x").await;
    for prefix in ["", "main/", "a/b/c/"] {
        let name = format!("{prefix}{}", read_name(&digest));
        assert_eq!(server.read(&name, 0, 0).await, Ok(b"x".to_vec()), "{name}");
    }
    for bad in ["/", "a//", "uploads/", "operations/", "a/actionResults/b/"] {
        let name = format!("{bad}{}", read_name(&digest));
        assert_eq!(server.read(&name, 0, 0).await, Err(Code::InvalidArgument), "{name}");
    }
}

#[tokio::test]
async fn offset_and_limit_choose_bytes() {
    let server = Server::start().await;
    for len in [100, 1_000_000] {
        let data = noise(3, len);
        let name = read_name(&server.put(SHA256, &data).await);
        let end = len as i64;
        assert_eq!(server.read(&name, 10, 0).await, Ok(data[10..].to_vec()));
        assert_eq!(server.read(&name, 10, 20).await, Ok(data[10..30].to_vec()));
        assert_eq!(server.read(&name, 90, end).await, Ok(data[90..].to_vec()));
        assert_eq!(server.read(&name, end, 0).await, Ok(Vec::new()));
        assert_eq!(server.read(&name, end + 1, 0).await, Err(Code::OutOfRange));
        assert_eq!(server.read(&name, -1, 0).await, Err(Code::OutOfRange));
        assert_eq!(server.read(&name, i64::MAX, i64::MAX).await, Err(Code::OutOfRange));
        assert_eq!(server.read(&name, 0, -1).await, Err(Code::InvalidArgument));
    }
}

#[tokio::test]
async fn a_blob_that_is_not_there_is_not_found_whatever_its_size() {
    let server = Server::start().await;
    let digest = server.put(SHA256, b"x").await;
    for size in [0, 2, 1 << 20, i64::MAX] {
        let name = format!("blobs/{}/{size}", digest.hex());
        assert_eq!(server.read(&name, 0, 0).await, Err(Code::NotFound), "{name}");
        let name = format!("compressed-blobs/zstd/{}/{size}", digest.hex());
        assert_eq!(server.read(&name, 0, 0).await, Err(Code::NotFound), "{name}");
    }
}

#[tokio::test]
async fn compressed_reads_count_offsets_in_the_bytes_of_the_blob_and_have_no_limit() {
    let server = Server::start().await;
    for data in [b"the same ".repeat(200_000), noise(5, 700_000), b"x".to_vec()] {
        let digest = server.put(SHA256, &data).await;
        let name = format!("i/compressed-blobs/zstd/{}", path(&digest));
        for offset in [0, data.len() / 2, data.len()] {
            let compressed = server.read(&name, offset as i64, 0).await.unwrap();
            let read = zstd::stream::decode_all(&compressed[..]).unwrap();
            assert!(read == data[offset..], "from {offset} of {}", data.len());
        }
        let beyond = data.len() as i64 + 1;
        assert_eq!(server.read(&name, beyond, 0).await, Err(Code::OutOfRange));
        assert_eq!(server.read(&name, 0, 1).await, Err(Code::InvalidArgument));
    }
}

#[tokio::test]
async fn names_that_are_none_are_refused() {
    let server = Server::start().await;
    let hex = SHA256.digest(b"x").hex();
    for bad in [
        String::new(),
        "blobs".to_owned(),
        format!("blobs/{hex}"),
        format!("blobs/{}/1", hex.to_uppercase()),
        format!("blobs/{hex}/-1"),
        format!("blobs/{hex}/1/more"),
        format!("blobs/{hex}/99999999999999999999"),
        format!("blobs/md5/{hex}/1"),
        format!("compressed-blobs/deflate/{hex}/1"),
        format!("uploads/u/blobs/{hex}/1"),
        "x/".repeat(10_000),
    ] {
        assert_eq!(server.read(&bad, 0, 0).await, Err(Code::InvalidArgument), "{bad:.80}");
        assert_eq!(server.query(&bad).await.is_ok(), bad.starts_with("uploads/u/"), "{bad:.80}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_does_not_hold_up_others() {
    use bazel_remote_apis::google::bytestream::ReadRequest;

    let server = Server::start().await;
    let digest = server.put(SHA256, &noise(1, 24 << 20)).await;
    let request = || ReadRequest { resource_name: read_name(&digest), ..Default::default() };
    // More than there are threads for the disk, none of which is read to its end.
    let mut slow = Vec::new();
    for _ in 0..600 {
        // A connection of its own, since one has a window that all its streams share.
        if slow.len() % 100 == 0 {
            slow.push((server.another_byte_stream().await, Vec::new()));
        }
        let (client, streams) = slow.last_mut().unwrap();
        streams.push(client.read(request()).await.unwrap().into_inner());
    }
    let other = server.another_byte_stream().await;
    let first = { other }.read(request()).await.unwrap().into_inner().message().await;
    assert_eq!(first.unwrap().unwrap().data.len(), 256 << 10);
}
