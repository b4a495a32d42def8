//! A record as bytes, `wire::AccessRecord`, and back. What is read is checked: a decoded record is as valid as one that
//! was observed.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message as _;

use super::{AccessRecord, Listing, Observed, ObservedDirectory};
use crate::digest::{Digest, DigestError, DigestFunction};
use crate::path::{Name, PathError};
use crate::wire;
use crate::wire::observed_name::Kind;

/// The deepest directory of a record. A path of the operating system (`PATH_MAX`) has no more components.
const MAX_DEPTH: usize = 2048;

impl AccessRecord {
    /// The record as bytes.
    pub fn encode(&self) -> Bytes {
        let mut encoder = Encoder::default();
        encoder.add(0, Bytes::new(), &self.root);
        let record = wire::AccessRecord {
            digest_function: self.root.digest.function() as i32,
            complete: self.complete,
            hashes: encoder.hashes.into(),
            sizes: encoder.sizes,
            directories: encoder.directories,
        };
        record.encode_to_vec().into()
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// Bytes that are no record.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let record = wire::AccessRecord::decode(bytes)?;
        let function = DigestFunction::from_number(record.digest_function)?;
        let digests = digests(function, &record.hashes, &record.sizes)?;
        let mut directories = Vec::with_capacity(record.directories.len());
        let mut depths: Vec<usize> = Vec::with_capacity(record.directories.len());
        for (at, directory) in record.directories.into_iter().enumerate() {
            let parent = directory.parent as usize;
            let depth = match (at, parent) {
                (0, 0) => 0,
                (_, parent) if parent < at => depths[parent] + 1,
                _ => return Err(RecordError::Order),
            };
            if depth > MAX_DEPTH {
                return Err(RecordError::Depth);
            }
            depths.push(depth);
            directories.push(Some(decode_directory(directory, &digests)?));
        }
        Ok(Self { root: assemble(directories)?, complete: record.complete })
    }
}

/// A directory, its name, and the place of its parent.
type Part = (usize, Bytes, ObservedDirectory);

/// Puts directories into their parents, the last first.
fn assemble(mut directories: Vec<Option<Part>>) -> Result<ObservedDirectory, RecordError> {
    while directories.len() > 1 {
        let Some((parent, name, directory)) = directories.pop().flatten() else {
            return Err(RecordError::Order);
        };
        let Some(Some((_, _, holder))) = directories.get_mut(parent) else {
            return Err(RecordError::Order);
        };
        if holder.names.insert(Name::new(&name)?, Observed::Directory(directory)).is_some() {
            return Err(RecordError::Twice(name.escape_ascii().to_string()));
        }
    }
    let root = directories.pop().flatten().ok_or(RecordError::Order)?;
    Ok(root.2)
}

fn digests(
    function: DigestFunction,
    hashes: &[u8],
    sizes: &[u64],
) -> Result<Vec<Digest>, RecordError> {
    let hashes = hashes.chunks(function.hash_len());
    if hashes.len() != sizes.len() {
        return Err(RecordError::Digests);
    }
    let digest = |(hash, size): (&[u8], &u64)| Digest::new(function, hash, *size);
    Ok(hashes.zip(sizes).map(digest).collect::<Result<_, _>>()?)
}

fn decode_directory(
    directory: wire::ObservedDirectory,
    digests: &[Digest],
) -> Result<Part, RecordError> {
    let digest = |at: u32| digests.get(at as usize).copied().ok_or(RecordError::Digests);
    let mut decoded = ObservedDirectory::unseen(digest(directory.digest)?);
    decoded.everything = directory.everything;
    if !directory.listing.is_empty() {
        let hash = directory.listing.as_ref().try_into().map_err(|_| RecordError::Listing)?;
        decoded.listing = Some(Listing(hash));
    }
    for seen in directory.names {
        let file = |at, executable| digest(at).map(|digest| Observed::File { digest, executable });
        let observed = match seen.kind {
            None => Observed::Absent,
            Some(Kind::File(at)) => file(at, false)?,
            Some(Kind::Executable(at)) => file(at, true)?,
            Some(Kind::Symlink(target)) => Observed::Symlink { target },
        };
        if decoded.names.insert(Name::new(&seen.name)?, observed).is_some() {
            return Err(RecordError::Twice(seen.name.escape_ascii().to_string()));
        }
    }
    Ok((directory.parent as usize, directory.name, decoded))
}

#[derive(Default)]
struct Encoder {
    places: HashMap<Digest, u32>,
    hashes: Vec<u8>,
    sizes: Vec<u64>,
    directories: Vec<wire::ObservedDirectory>,
}

impl Encoder {
    fn add(&mut self, parent: u32, name: Bytes, directory: &ObservedDirectory) {
        let at = self.directories.len();
        let digest = self.place(directory.digest);
        self.directories.push(wire::ObservedDirectory {
            parent,
            name,
            digest,
            listing: directory
                .listing
                .map(|listing| Bytes::copy_from_slice(&listing.0))
                .unwrap_or_default(),
            everything: directory.everything,
            names: Vec::new(),
        });
        let here = u32::try_from(at).unwrap_or(u32::MAX);
        for (name, observed) in &directory.names {
            let name = Bytes::copy_from_slice(name.as_bytes());
            let kind = match observed {
                Observed::Directory(child) => {
                    self.add(here, name, child);
                    continue;
                }
                Observed::Absent => None,
                Observed::Symlink { target } => Some(Kind::Symlink(target.clone())),
                Observed::File { digest, executable: false } => {
                    Some(Kind::File(self.place(*digest)))
                }
                Observed::File { digest, executable: true } => {
                    Some(Kind::Executable(self.place(*digest)))
                }
            };
            self.directories[at].names.push(wire::ObservedName { name, kind });
        }
    }

    fn place(&mut self, digest: Digest) -> u32 {
        let next = u32::try_from(self.sizes.len()).unwrap_or(u32::MAX);
        *self.places.entry(digest).or_insert_with(|| {
            self.hashes.extend_from_slice(digest.hash());
            self.sizes.push(digest.size_bytes());
            next
        })
    }
}

/// Why bytes are no access record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not the encoding of a record.
    #[error("not an access record: {0}")]
    Encoding(#[from] prost::DecodeError),
    /// A digest of no known function, or of a wrong length.
    #[error("an access record with a bad digest: {0}")]
    Digest(#[from] DigestError),
    /// A place that holds no digest, or as many hashes as sizes are not there.
    #[error("an access record whose digests are not all there")]
    Digests,
    /// No file name.
    #[error("an access record with a bad name: {0}")]
    Name(#[from] PathError),
    /// One name stands for two things.
    #[error("an access record with \"{0}\" twice in a directory")]
    Twice(String),
    /// A directory before the one that holds it, or none at all.
    #[error("an access record whose directories are out of order")]
    Order,
    /// Deeper than any path.
    #[error("an access record with directories more than {MAX_DEPTH} deep")]
    Depth,
    /// Not 32 bytes.
    #[error("an access record with a bad hash of a listing")]
    Listing,
}
