//! A peer that sends pieces of one large blob, as many as the test lets it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use distbuild_cas::pieces::Pieces;
use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_proto::{Address, Digest, DigestFunction, wire};
use distbuild_worker::large::PREFACE;
use prost::Message;

pub(crate) struct Holder {
    pub(crate) address: Address,
    pub(crate) digest: Digest,
    permits: Sender<()>,
    /// How many pieces were sent on each connection that has ended.
    ended: tokio::sync::mpsc::UnboundedReceiver<usize>,
}

impl Holder {
    /// Holds a blob, for one connection at a time.
    pub(crate) fn start(folder: &Path, data: Vec<u8>) -> Self {
        let digest = DigestFunction::Blake3.digest(&data);
        let store = DiskStore::open(StoreConfig::new(folder.join("holder"))).unwrap();
        store.insert(&digest, &data, false).unwrap();
        let hashes = store.piece_hashes(&digest).unwrap().unwrap().to_bytes();
        let path = folder.join("holder.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (permits, permitted) = channel();
        let (over, ended) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let sent = serve(stream.unwrap(), &hashes, &data, &permitted);
                if over.send(sent).is_err() {
                    return;
                }
            }
        });
        Self { address: Address::Unix(path), digest, permits, ended }
    }

    /// Lets it send so many more pieces.
    pub(crate) fn permit(&self, pieces: usize) {
        (0..pieces).for_each(|_| self.permits.send(()).unwrap());
    }

    /// Waits for the end of a connection; how many pieces were sent on it.
    pub(crate) async fn ended(&mut self) -> usize {
        crate::fake::within(self.ended.recv()).await.unwrap()
    }
}

fn serve(mut stream: UnixStream, hashes: &[u8], data: &[u8], permitted: &Receiver<()>) -> usize {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).unwrap();
    assert_eq!(preface, PREFACE);
    receive::<wire::OpenBlob>(&mut stream).unwrap();
    let piece_hashes = hashes.to_vec().into();
    send(&mut stream, &wire::BlobOpened { piece_hashes, ..Default::default() });
    let pieces = Pieces::of(data.len() as u64);
    let mut sent = 0;
    while let Some(wire::AskPiece { piece }) = receive(&mut stream) {
        // Without a permit nothing comes, but that the other side has gone is seen.
        if permitted.try_recv().is_ok() {
            let range = pieces.range(piece as usize);
            let bytes = &data[range.start as usize..range.end as usize];
            send(&mut stream, &wire::PieceHead { piece, size_bytes: bytes.len() as u32 });
            stream.write_all(bytes).unwrap();
            sent += 1;
        }
    }
    sent
}

fn send(stream: &mut UnixStream, message: &impl Message) {
    let body = message.encode_to_vec();
    stream.write_all(&(body.len() as u32).to_be_bytes()).unwrap();
    stream.write_all(&body).unwrap();
}

/// None at the end of the connection.
fn receive<M: Message + Default>(stream: &mut UnixStream) -> Option<M> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).ok()?;
    let mut body = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut body).ok()?;
    M::decode(&body[..]).ok()
}
