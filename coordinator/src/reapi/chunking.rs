//! Blobs as sequences of chunks: splitting with FastCDC 2020, and splicing.
//!
//! Chunks are blobs like any other. Which chunks a blob has is not remembered: it follows from its contents.

use std::io::Read;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_cas::{DiskStore, StoreError};
use distbuild_proto::{Digest, DigestFunction};
use fastcdc::v2020::{Normalization, StreamCDC};
use tonic::Status;

use super::{digest, status};

/// Expected size of a chunk; the least is a quarter of it, the most four times as much.
pub(crate) const AVERAGE_CHUNK_BYTES: usize = 512 << 10;
/// Chunks of one blob.
pub(crate) const MAX_CHUNKS: usize = 1 << 20;
/// Chunks that one message of a stream names.
pub(crate) const CHUNKS_PER_MESSAGE: usize = 16_384;
/// How a blob was split, whatever the client would have liked.
pub(crate) const FUNCTION: api::chunking_function::Value =
    api::chunking_function::Value::FastCdc2020;

/// How much is copied at once.
const COPY_BYTES: usize = 256 << 10;

/// Splits a blob, stores its chunks, and gives their digests in order. Blocks.
///
/// # Errors
/// `NOT_FOUND` if the blob is not here, `RESOURCE_EXHAUSTED` if its chunks do not fit.
pub(crate) fn split(store: &DiskStore, blob: &Digest) -> Result<Vec<Digest>, Status> {
    if digest::is_empty_blob(blob) {
        return Ok(Vec::new());
    }
    if blob.size_bytes().div_ceil(AVERAGE_CHUNK_BYTES as u64 / 4) > MAX_CHUNKS as u64 {
        return Err(status::invalid(format!("{blob} is too large to be split")));
    }
    // Not evicted while its chunks are stored, nor are they.
    let mut lease = store.lease(&[*blob]);
    let file = store.open_bytes(blob).map_err(|error| status::of_store(&error))?;
    let mut chunks = Vec::new();
    for chunk in chunker(file, AVERAGE_CHUNK_BYTES) {
        let chunk = chunk.map_err(|error| {
            tracing::error!(%error, blob.digest = %blob, "failed to read a blob");
            Status::internal(format!("failed to read {blob}"))
        })?;
        let digest = blob.function().digest(&chunk.data);
        lease.extend(&[digest]);
        store.insert(&digest, &chunk.data, false).map_err(|error| status::of_store(&error))?;
        chunks.push(digest);
    }
    Ok(chunks)
}

fn chunker<R: Read>(source: R, average_bytes: usize) -> StreamCDC<R> {
    let (least, most) = (average_bytes / 4, average_bytes * 4);
    StreamCDC::with_level(source, least, average_bytes, most, Normalization::Level2)
}

/// Puts a blob together from its chunks, and stores it. Blocks.
///
/// # Errors
/// `NOT_FOUND` if a chunk is not here, `INVALID_ARGUMENT` if the chunks do not make the blob,
/// `RESOURCE_EXHAUSTED` if it does not fit.
pub(crate) fn splice(store: &DiskStore, blob: &Digest, chunks: &[Digest]) -> Result<(), Status> {
    // The claim is not believed where it can be seen to be wrong, even if the blob is there.
    let sizes = chunks.iter().try_fold(0_u64, |sum, chunk| sum.checked_add(chunk.size_bytes()));
    if sizes != Some(blob.size_bytes()) {
        let text = format!(
            "{} chunks do not have the {} bytes of {blob}",
            chunks.len(),
            blob.size_bytes()
        );
        return Err(status::invalid(text));
    }
    if store.contains(blob) {
        return Ok(());
    }
    let _lease = store.lease(chunks);
    if let Some(missing) = chunks.iter().find(|chunk| !store.contains(chunk)) {
        return Err(status::not_found(missing));
    }
    let concatenate = || -> Result<(), StoreError> {
        let mut writer = store.writer(*blob, false)?;
        let mut buffer = vec![0; COPY_BYTES];
        for chunk in chunks.iter().filter(|chunk| chunk.size_bytes() > 0) {
            let mut file = store.open_bytes(chunk)?;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    len => writer.write_chunk(&buffer[..len])?,
                }
            }
        }
        writer.commit()
    };
    concatenate().map_err(|error| status::of_store(&error))
}

/// The chunks that a client names.
///
/// # Errors
/// A digest that is none.
pub(crate) fn parse(
    function: DigestFunction,
    chunks: &[api::Digest],
) -> Result<Vec<Digest>, Status> {
    let parse = |chunk| digest::parse(function, chunk).map_err(status::invalid);
    chunks.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use distbuild_cas::StoreConfig;

    use super::*;

    /// Bytes that look random and are the same everywhere (xorshift64).
    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    /// FastCDC as the paper has it (algorithm 2, normalised chunking), a byte at a time.
    fn lengths_by_the_paper(data: &[u8], average: usize) -> Vec<usize> {
        let (gear, _) = fastcdc::v2020::get_gear_with_seed(0);
        let bits = average.ilog2() as usize;
        let masks = fastcdc::v2020::MASKS;
        let (strict, relaxed) = (masks[bits + 2], masks[bits - 2]);
        let (mut rest, mut lengths) = (data, Vec::new());
        while !rest.is_empty() {
            let most = rest.len().min(average * 4);
            let mut cut = most;
            let mut hash = 0_u64;
            if most > average / 4 {
                for at in average / 4..most {
                    hash = (hash << 1).wrapping_add(gear[usize::from(rest[at])]);
                    let mask = if at < average { strict } else { relaxed };
                    if hash & mask == 0 {
                        cut = at;
                        break;
                    }
                }
            }
            lengths.push(cut);
            rest = &rest[cut..];
        }
        lengths
    }

    fn lengths(data: &[u8], average: usize) -> Vec<usize> {
        chunker(data, average).map(|chunk| chunk.unwrap().length).collect()
    }

    #[test]
    fn the_gear_table_is_made_of_md5_as_the_api_says() {
        let (gear, _) = fastcdc::v2020::get_gear_with_seed(0);
        // The first eight bytes of the MD5 of a byte; of 64 of it, as the reference implementation has it.
        assert_eq!(gear[0x00], 0x3b5d_3c7d_207e_37dc);
        assert_eq!(gear[0x41], 0xd289_a975_65bc_2d27);
        assert_eq!(gear[0xff], 0xaabd_2b2a_4515_04e1);
    }

    #[test]
    fn chunks_are_cut_where_fastcdc_2020_cuts_them() {
        for (seed, average) in [(1, 1 << 10), (2, 4 << 10), (3, 16 << 10), (4, 64 << 10)] {
            let data = bytes(seed, 40 * average + 777);
            let found = lengths(&data, average);
            assert_eq!(found, lengths_by_the_paper(&data, average), "average {average}");
            assert!(found.len() > 20, "{} chunks", found.len());
        }
        let data = bytes(5, 8 * AVERAGE_CHUNK_BYTES);
        assert_eq!(
            lengths(&data, AVERAGE_CHUNK_BYTES),
            lengths_by_the_paper(&data, AVERAGE_CHUNK_BYTES)
        );
    }

    #[test]
    fn a_byte_in_front_changes_few_chunks() {
        let data = bytes(6, 1 << 20);
        let moved = [&[7], &data[..]].concat();
        let ends = |data: &[u8]| -> Vec<usize> {
            let mut left = data.len();
            lengths(data, 4 << 10)
                .iter()
                .map(|len| {
                    left -= len;
                    left
                })
                .collect()
        };
        let (before, after) = (ends(&data), ends(&moved));
        let shared = after.iter().filter(|end| before.contains(end)).count();
        assert!(shared + 3 >= before.len(), "{shared} of {}", before.len());
    }

    #[test]
    fn a_blob_that_was_split_is_spliced_again() {
        let open = || {
            let folder = tempfile::tempdir().unwrap();
            (DiskStore::open(StoreConfig::new(folder.path())).unwrap(), folder)
        };
        let least = AVERAGE_CHUNK_BYTES / 4;
        for len in [0, 1, least - 1, least + 1, AVERAGE_CHUNK_BYTES, 3_000_000] {
            let ((store, _folder), (other, _other_folder)) = (open(), open());
            let data = bytes(len as u64, len);
            let blob = DigestFunction::Blake3.digest(&data);
            store.insert(&blob, &data, false).unwrap();
            let chunks = split(&store, &blob).unwrap();
            for chunk in &chunks {
                other.insert(chunk, &store.read(chunk).unwrap(), false).unwrap();
            }
            splice(&other, &blob, &chunks).unwrap();
            assert!(other.read(&blob).unwrap() == data, "{len} bytes");
        }
    }

    #[test]
    fn a_splice_names_the_chunk_that_is_missing_and_refuses_wrong_ones() {
        let folder = tempfile::tempdir().unwrap();
        let store = DiskStore::open(StoreConfig::new(folder.path())).unwrap();
        let digest = |data: &[u8]| DigestFunction::Sha256.digest(data);
        let put = |data: &[u8]| store.insert(&digest(data), data, false).unwrap();
        put(b"one");
        put(b"two");
        let blob = digest(b"onetwo");
        let code = |chunks: &[&[u8]]| {
            let chunks: Vec<_> = chunks.iter().map(|data| digest(data)).collect();
            splice(&store, &blob, &chunks).map_err(|error| error.code())
        };
        assert_eq!(code(&[b"one", b"off"]), Err(tonic::Code::NotFound));
        assert_eq!(code(&[b"two", b"one"]), Err(tonic::Code::InvalidArgument));
        assert_eq!(code(&[b"one"]), Err(tonic::Code::InvalidArgument));
        assert!(!store.contains(&blob));
        assert_eq!(code(&[b"one", b"", b"two"]), Ok(()));
        assert_eq!(&store.read(&blob).unwrap()[..], b"onetwo");
    }
}
