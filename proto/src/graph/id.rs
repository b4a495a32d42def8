//! Ids and keys of jobs, and the record that they are hashes of.
//!
//! A record is a canonical encoding: equal jobs have equal bytes, different jobs different bytes,
//! whatever file, machine or message they came from. It is built of
//!
//! | piece | encoding |
//! |---|---|
//! | number | 8 bytes, little-endian |
//! | flag | 1 byte, 0 or 1 |
//! | bytes | their length as a number, then the bytes |
//! | list | the number of items, then the items |
//! | option | a flag, then the item if there is one |
//! | digest | its function as a number (REAPI's), its hash as bytes, its size as a number |
//!
//! The record of a job, version 1, holds in this order:
//!
//! 1. bytes: `distbuild job 1`
//! 2. number: the function that names the contents of the build, its outputs included
//! 3. option of digest: its source tree, pruned to the declared inputs; none without inputs
//! 4. list of steps: the commands, variables replaced and environment complete (module `action`)
//! 5. list of platform properties: name and value as bytes, sorted
//! 6. flag: network
//! 7. option of bytes: the declared id, 20 bytes
//! 8. bytes: the salts, graph's and job's, with a NUL between; empty if both are
//!
//! What does not decide the output stays out: name, timeout, resources, `cache`.
//!
//! * The **id** is SHA-1 over the record and the list of the dependencies' *computed* ids (bytes
//!   each). It is public; a declared id replaces it wherever people look.
//! * The **key** is BLAKE3 over the record, the toolchain as bytes, and the list of the
//!   dependencies' *keys*. Results are looked up by it. Labels that a file declares enter it only
//!   together with what they label, so nobody can plant a result under somebody else's id.

use std::fmt;
use std::str::FromStr;

use sha1::Digest as _;

use crate::digest::{Digest, DigestError, parse_hex, to_hex};

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// From the hash itself.
            pub const fn new(hash: [u8; $len]) -> Self {
                Self(hash)
            }

            /// The hash.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        /// From a slice of exactly the right length.
        impl TryFrom<&[u8]> for $name {
            type Error = DigestError;

            fn try_from(hash: &[u8]) -> Result<Self, DigestError> {
                hash.try_into().map(Self).map_err(|_| DigestError::NotHex(to_hex(hash)))
            }
        }

        /// From lower-case hexadecimal.
        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(hex: &str) -> Result<Self, DigestError> {
                let mut hash = [0; $len];
                parse_hex(hex, &mut hash)?;
                Ok(Self(hash))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hash_type!(
    /// The public name of a job: SHA-1, 20 bytes.
    JobId,
    20
);
hash_type!(
    /// What results of a job are looked up by: BLAKE3, 32 bytes.
    JobKey,
    32
);
hash_type!(
    /// What results of an action are looked up by (early cut-off): BLAKE3, 32 bytes.
    ActionKey,
    32
);

hash_type!(
    /// What is remembered of a command is looked up by, whatever it runs on: BLAKE3, 32 bytes.
    CommandKey,
    32
);

impl JobId {
    /// The id of a job from its record and the computed ids of its dependencies, in their order.
    pub fn of(record: &Record, deps: &[Self]) -> Self {
        let mut tail = Record::default();
        tail.list(deps, |tail, dep| tail.bytes(&dep.0));
        let mut hasher = sha1::Sha1::new();
        hasher.update(&record.0);
        hasher.update(&tail.0);
        Self(hasher.finalize().into())
    }
}

impl JobKey {
    /// The key of a job from its record, the fingerprint of the toolchain that it runs with, and the
    /// keys of its dependencies, in their order.
    pub fn of(record: &Record, toolchain: &str, deps: &[Self]) -> Self {
        let mut tail = Record::default();
        tail.bytes(toolchain.as_bytes());
        tail.list(deps, |tail, dep| tail.bytes(&dep.0));
        let mut hasher = blake3::Hasher::new();
        hasher.update(&record.0);
        hasher.update(&tail.0);
        Self(hasher.finalize().into())
    }
}

/// A canonical encoding in the making, or made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record(Vec<u8>);

impl Record {
    /// The encoding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub(crate) fn flag(&mut self, flag: bool) {
        self.0.push(u8::from(flag));
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        let items = items.into_iter();
        self.number(items.len() as u64);
        for item in items {
            each(self, item);
        }
    }

    pub(crate) fn option<T>(&mut self, item: Option<T>, each: impl FnOnce(&mut Self, T)) {
        self.flag(item.is_some());
        if let Some(item) = item {
            each(self, item);
        }
    }

    pub(crate) fn digest(&mut self, digest: &Digest) {
        self.number(digest.function() as u64);
        self.bytes(digest.hash());
        self.number(digest.size_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_its_layout_says() {
        let mut record = Record::default();
        record.bytes(b"ab");
        record.flag(true);
        record.option(None::<u64>, Record::number);
        record.list([7_u64, 8], Record::number);
        let mut expected = vec![2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', 1, 0];
        for number in [2_u8, 7, 8] {
            expected.extend([number, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(record.as_bytes(), expected);
    }

    #[test]
    fn an_id_is_forty_lower_case_digits() {
        let hex = "f374b81d81f641c8c3d5d5468081ef83b2c7dae9";
        let id: JobId = hex.parse().unwrap();
        assert_eq!(id.to_string(), hex);
        assert_eq!(JobId::try_from(&id.as_bytes()[..]).unwrap(), id);
        assert!(hex.to_uppercase().parse::<JobId>().is_err());
        assert!(hex[1..].parse::<JobId>().is_err());
        assert!(JobId::try_from(&[0; 19][..]).is_err());
    }
}
