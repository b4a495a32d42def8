//! `ByteStream.Write` and `QueryWriteStatus`.

use std::time::Duration;

use bazel_remote_apis::google::bytestream::WriteRequest;
use distbuild_coordinator::Limits;
use distbuild_proto::DigestFunction;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::server::{Server, noise, part, read_name, to_api, upload_name, whole, zstd_upload_name};

const SHA256: DigestFunction = DigestFunction::Sha256;
const LARGE: usize = 3_000_000;
/// As Bazel cuts.
const PART: usize = 16 << 10;

/// A blob in messages as Bazel sends them: the name in the first only.
fn parts(name: &str, data: &[u8], from: usize) -> Vec<WriteRequest> {
    let mut messages = Vec::new();
    for (at, bytes) in data.chunks(PART).enumerate() {
        let last = (at + 1) * PART >= data.len();
        let name = if at == 0 { name } else { "" };
        messages.push(part(name, from + at * PART, bytes, last));
    }
    messages
}

/// A call whose messages the test sends one by one.
async fn open_write(
    server: &Server,
) -> (mpsc::Sender<WriteRequest>, tokio::task::JoinHandle<Result<i64, Code>>) {
    let (messages, stream) = mpsc::channel(64);
    let mut client = server.another_byte_stream().await;
    let call = tokio::spawn(async move {
        let written = client.write(ReceiverStream::new(stream)).await;
        written.map(|written| written.into_inner().committed_size).map_err(|error| error.code())
    });
    (messages, call)
}

/// Waits until so many bytes of an upload are there.
async fn committed(server: &Server, name: &str, at_least: i64) -> i64 {
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let (size, _) = server.query(name).await.unwrap();
            if size >= at_least {
                return size;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the upload makes progress")
}

#[tokio::test]
async fn blobs_of_any_size_arrive_in_one_message_or_many() {
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        for len in [1, PART, 500_000, 600_000, LARGE] {
            let data = noise(len as u64, len);
            let digest = function.digest(&data);
            let name = upload_name("a/b/", "u", &digest);
            let written = server.write(parts(&name, &data, 0)).await;
            assert_eq!(written, Ok(len as i64), "{function}");
            assert!(server.read(&read_name(&digest), 0, 0).await == Ok(data), "{function}, {len}");
        }
    }
    let data = noise(1, 2 << 20);
    let digest = SHA256.digest(&data);
    let name = format!("{}/some/file.o", upload_name("", "u", &digest));
    assert_eq!(server.write(vec![whole(&name, &data)]).await, Ok(2 << 20));
}

#[tokio::test]
async fn bytes_that_are_not_the_blobs_are_refused_and_leave_nothing() {
    let server = Server::start().await;
    for len in [100, LARGE] {
        let data = noise(1, len);
        let digest = SHA256.digest(&data);
        let name = upload_name("", "u", &digest);
        let mut other = data.clone();
        other[len / 2] ^= 1;
        let longer = [&data[..], b"x"].concat();
        for wrong in [&other[..], &data[..len - 1], &longer, b""] {
            let messages = match wrong {
                b"" => vec![whole(&name, b"")],
                wrong => parts(&name, wrong, 0),
            };
            assert_eq!(server.write(messages).await, Err(Code::InvalidArgument));
            assert_eq!(server.missing(&[digest]).await, [to_api(&digest)]);
            assert_eq!(server.query(&name).await, Ok((0, false)));
        }
    }
}

#[tokio::test]
async fn a_blob_that_is_there_ends_an_upload_early_with_success() {
    let server = Server::start().await;
    let data = noise(1, LARGE);
    let digest = server.put(SHA256, &data).await;
    for (name, expected) in
        [(upload_name("", "v", &digest), LARGE as i64), (zstd_upload_name("v", &digest), -1)]
    {
        // Answered although the client has more to say.
        let (messages, call) = open_write(&server).await;
        messages.send(part(&name, 0, &data[..PART], false)).await.unwrap();
        assert_eq!(call.await.unwrap(), Ok(expected));
        assert_eq!(server.query(&name).await, Ok((LARGE as i64, true)));
    }
    let empty = SHA256.digest(b"");
    let name = upload_name("", "v", &empty);
    assert_eq!(server.write(vec![whole(&name, b"")]).await, Ok(0));
}

#[tokio::test]
async fn equal_uploads_at_a_time_all_succeed_and_those_left_behind_end_early() {
    let server = Server::start().await;
    let data = noise(1, 12 << 20);
    let digest = SHA256.digest(&data);
    // Of one name too: a client need not know of another.
    let names = ["one", "two", "one"].map(|upload| upload_name("", upload, &digest));
    let mut calls = Vec::new();
    for name in &names {
        let (messages, call) = open_write(&server).await;
        messages.send(part(name, 0, &data[..1 << 20], false)).await.unwrap();
        calls.push((messages, call));
    }
    let (messages, first) = calls.remove(0);
    for at in 1..12 {
        let bytes = &data[at << 20..(at + 1) << 20];
        messages.send(part("", at << 20, bytes, at == 11)).await.unwrap();
    }
    assert_eq!(first.await.unwrap(), Ok(12 << 20));
    for (messages, call) in calls {
        for at in 1..6 {
            // Refused once the call has been answered.
            let _ = messages.send(part("", at << 20, &data[at << 20..(at + 1) << 20], false)).await;
        }
        assert_eq!(call.await.unwrap(), Ok(12 << 20), "nobody had to send all of it");
    }
    assert!(server.read(&read_name(&digest), 0, 0).await == Ok(data));
}

#[tokio::test]
async fn an_upload_that_broke_off_goes_on_where_it_stopped() {
    let server = Server::start().await;
    let data = noise(1, LARGE);
    let digest = SHA256.digest(&data);
    let name = upload_name("i/", "u", &digest);
    assert_eq!(server.query(&name).await, Ok((0, false)), "not begun: begin at the beginning");

    // The client says that it has no more for now.
    let committed_size = server.write(vec![part(&name, 0, &data[..LARGE / 2], false)]).await;
    assert_eq!(committed_size, Ok(LARGE as i64 / 2));
    assert_eq!(server.query(&name).await, Ok((LARGE as i64 / 2, false)));
    for wrong in [1, LARGE / 2 - 1, LARGE / 2 + 1] {
        let wrong = server.write(vec![part(&name, wrong, b"x", false)]).await;
        assert_eq!(wrong, Err(Code::InvalidArgument));
    }

    // The connection breaks.
    let (messages, call) = open_write(&server).await;
    messages.send(part(&name, LARGE / 2, &data[LARGE / 2..LARGE - 9], false)).await.unwrap();
    let half = PART as i64 + LARGE as i64 / 2;
    messages.send(part("", LARGE - 9, &data[LARGE - 9..LARGE - 8], false)).await.unwrap();
    let there = committed(&server, &name, half).await as usize;
    call.abort();
    assert!(there < LARGE);

    // Another call takes over, whether the server knows of the break yet or not.
    let there = server.query(&name).await.unwrap().0 as usize;
    let total = server.write(parts(&name, &data[there..], there)).await;
    assert_eq!(total, Ok(LARGE as i64));
    assert_eq!(server.query(&name).await, Ok((LARGE as i64, true)));
    assert!(server.read(&read_name(&digest), 0, 0).await == Ok(data));
}

#[tokio::test]
async fn an_upload_may_begin_again_at_the_beginning() {
    let server = Server::start().await;
    let data = noise(1, LARGE);
    let digest = SHA256.digest(&data);
    let name = upload_name("", "u", &digest);
    server.write(vec![part(&name, 0, &data[..LARGE / 2], false)]).await.unwrap();
    assert_eq!(server.write(parts(&name, &data, 0)).await, Ok(LARGE as i64));
    assert!(server.missing(&[digest]).await.is_empty());
}

#[tokio::test]
async fn after_a_restart_an_upload_begins_at_the_beginning() {
    let mut server = Server::start().await;
    let data = noise(1, LARGE);
    let digest = SHA256.digest(&data);
    let name = upload_name("", "u", &digest);
    server.write(vec![part(&name, 0, &data[..LARGE / 2], false)]).await.unwrap();
    server.restart().await;
    assert_eq!(server.query(&name).await, Ok((0, false)));
    let rest = server.write(vec![part(&name, LARGE / 2, &data[LARGE / 2..], true)]).await;
    assert_eq!(rest, Err(Code::InvalidArgument));
    assert_eq!(server.write(parts(&name, &data, 0)).await, Ok(LARGE as i64));
    server.restart().await;
    assert!(server.read(&read_name(&digest), 0, 0).await == Ok(data), "blobs outlive a restart");
}

#[tokio::test]
async fn compressed_uploads_are_verified_by_what_they_hold() {
    let server = Server::start().await;
    for data in [b"the same ".repeat(500_000), noise(5, LARGE), b"the same ".repeat(100)] {
        let digest = SHA256.digest(&data);
        let name = zstd_upload_name("u", &digest);
        let frame = zstd::bulk::compress(&data, 3).unwrap();
        let other = zstd::bulk::compress(&[&data[..], b"x"].concat(), 3).unwrap();
        let refused = Err(Code::InvalidArgument);
        assert_eq!(server.write(parts(&name, &other, 0)).await, refused, "too much");
        assert_eq!(server.write(parts(&name, &frame[..frame.len() - 5], 0)).await, refused, "cut");
        assert_eq!(server.write(parts(&name, &data, 0)).await, refused, "no frame");
        assert_eq!(server.missing(&[digest]).await.len(), 1);
        let committed = server.write(parts(&name, &frame, 0)).await;
        assert_eq!(committed, Ok(frame.len() as i64), "clients compare with what they sent");
        assert!(server.read(&read_name(&digest), 0, 0).await == Ok(data));
    }
}

#[tokio::test]
async fn a_compressed_upload_goes_on_with_a_new_frame_at_a_byte_of_the_blob() {
    let server = Server::start().await;
    let data = noise(5, LARGE);
    let digest = SHA256.digest(&data);
    let name = zstd_upload_name("u", &digest);
    let frame = zstd::bulk::compress(&data, 3).unwrap();
    let committed = server.write(vec![part(&name, 0, &frame[..LARGE / 2], false)]).await.unwrap();
    assert!((1..LARGE as i64).contains(&committed));
    assert_eq!(server.query(&name).await, Ok((committed, false)));
    let committed = committed as usize;
    let rest = zstd::bulk::compress(&data[committed..], 3).unwrap();
    let total = server.write(parts(&name, &rest, committed)).await;
    assert_eq!(total, Ok((committed + rest.len()) as i64));
    assert!(server.read(&read_name(&digest), 0, 0).await == Ok(data));
}

#[tokio::test]
async fn a_bomb_is_refused_without_being_unpacked() {
    let server = Server::start().await;
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 3).unwrap();
    for len in [100, 600_000] {
        let name = zstd_upload_name("u", &SHA256.digest(&vec![0; len]));
        let refused = Err(Code::InvalidArgument);
        assert_eq!(server.write(parts(&name, &bomb, 0)).await, refused, "{len}");
    }
}

#[tokio::test]
async fn messages_of_one_call_belong_together() {
    let server = Server::start().await;
    let data = noise(1, 100);
    let digest = SHA256.digest(&data);
    let name = upload_name("", "u", &digest);
    let other = upload_name("", "v", &digest);
    let refused = Err(Code::InvalidArgument);
    assert_eq!(server.write(vec![]).await, refused, "nothing at all");
    assert_eq!(server.write(vec![whole("", &data)]).await, refused, "no name");
    let two = |name: &str, offset| {
        vec![
            part(&upload_name("", "u", &digest), 0, &data[..50], false),
            part(name, offset, &data[50..], true),
        ]
    };
    assert_eq!(server.write(two(&other, 50)).await, refused, "another name");
    for offset in [0, 49, 51] {
        assert_eq!(server.write(two("", offset)).await, refused, "offset {offset}");
    }
    let mut negative = whole(&name, &data);
    negative.write_offset = -1;
    assert_eq!(server.write(vec![negative]).await, refused);
    assert_eq!(server.missing(&[digest]).await.len(), 1);
    assert_eq!(server.write(two(&name, 50)).await, Ok(100), "the name may be repeated");
}

#[tokio::test]
async fn a_full_store_is_resource_exhausted_and_the_server_lives() {
    let limits = Limits { max_store_bytes: 2 << 20, ..Limits::default() };
    let server = Server::with(limits).await;
    let too_large = noise(1, (2 << 20) + 1);
    let name = upload_name("", "u", &SHA256.digest(&too_large));
    assert_eq!(server.write(parts(&name, &too_large, 0)).await, Err(Code::InvalidArgument));
    // Two that are on their way take all the room that there is.
    let blobs = [noise(2, 1 << 20), noise(3, 1 << 20)];
    let mut calls = Vec::new();
    for data in &blobs {
        let name = upload_name("", "u", &SHA256.digest(data));
        let (messages, call) = open_write(&server).await;
        messages.send(part(&name, 0, &data[..900_000], false)).await.unwrap();
        messages.send(part("", 900_000, &data[900_000..900_001], false)).await.unwrap();
        committed(&server, &name, 900_000).await;
        calls.push((messages, call));
    }
    let third = noise(4, 1 << 20);
    let name = upload_name("", "u", &SHA256.digest(&third));
    assert_eq!(server.write(parts(&name, &third, 0)).await, Err(Code::ResourceExhausted));
    for ((messages, call), data) in calls.into_iter().zip(&blobs) {
        messages.send(part("", 900_001, &data[900_001..], true)).await.unwrap();
        assert_eq!(call.await.unwrap(), Ok(1 << 20));
    }
    assert_eq!(server.write(parts(&name, &third, 0)).await, Ok(1 << 20), "what is old gives way");
}

#[tokio::test]
async fn drafts_that_were_left_give_way_to_new_uploads() {
    let limits = Limits { max_store_bytes: 2 << 20, ..Limits::default() };
    let server = Server::with(limits).await;
    for n in 0..5 {
        let data = noise(n, 1 << 20);
        let name = upload_name("", "u", &SHA256.digest(&data));
        let left = server.write(vec![part(&name, 0, &data[..900_000], false)]).await;
        assert_eq!(left, Ok(900_000), "draft {n}");
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let server = Server::start().await;
    let data = vec![0; 5 << 20];
    let name = upload_name("", "u", &SHA256.digest(&data));
    // As gRPC for Rust says that a message is over the limit.
    assert_eq!(server.write(vec![whole(&name, &data)]).await, Err(Code::OutOfRange));
    assert_eq!(server.write(parts(&name, &data, 0)).await, Ok(5 << 20));
}
