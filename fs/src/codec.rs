//! How the vocabulary of `distbuild-proto` stands in postcard messages: a module a type, for serde's
//! `with`. What is read is checked, so a decoded value is as valid as a built one.

/// A digest: number of the function, size, and 32 bytes of which a SHA-1 hash fills the first 20.
pub(crate) mod digest {
    use distbuild_proto::{Digest, DigestFunction};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        let mut hash = [0_u8; 32];
        hash[..digest.hash().len()].copy_from_slice(digest.hash());
        (digest.function() as u8, digest.size_bytes(), hash).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        let (number, size_bytes, hash) = <(u8, u64, [u8; 32])>::deserialize(from)?;
        let function = DigestFunction::from_number(number.into()).map_err(D::Error::custom)?;
        Digest::new(function, &hash[..function.hash_len()], size_bytes).map_err(D::Error::custom)
    }
}

/// A path: its bytes.
pub(crate) mod path {
    use distbuild_proto::RelPath;
    use serde::{Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(path: &RelPath, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(path.as_bytes())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<RelPath, D::Error> {
        let bytes = super::bytes::deserialize(from)?;
        RelPath::new(&bytes).map_err(D::Error::custom)
    }
}

/// Bytes as they stand.
pub(crate) mod bytes {
    use std::fmt;

    use bytes::Bytes;
    use serde::{Deserializer, de::Error, de::Visitor};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        struct Take;
        impl Visitor<'_> for Take {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes::copy_from_slice(bytes))
            }
        }
        from.deserialize_bytes(Take)
    }
}

/// An access record: its own encoding, so that it is checked in one place.
pub(crate) mod record {
    use distbuild_proto::AccessRecord;
    use serde::{Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        record: &AccessRecord,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&record.encode())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<AccessRecord, D::Error> {
        AccessRecord::decode(&super::bytes::deserialize(from)?).map_err(D::Error::custom)
    }
}
