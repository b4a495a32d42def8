//! Digests of the API and ours: the same blobs under one name.
//!
//! A request names one digest function for all its digests. Where it names none, the length of a hash says
//! which: SHA-1 or SHA-256. BLAKE3 is as long as SHA-256 and has to be named.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_proto::digest::to_hex;
use distbuild_proto::{Digest, DigestError, DigestFunction};

/// The digest function of a request: the one that it names, else the one that the first of its digests implies.
///
/// # Errors
/// A function that is not served, or none named and none implied.
pub fn function<'a>(
    number: i32,
    digests: impl IntoIterator<Item = &'a api::Digest>,
) -> Result<DigestFunction, DigestError> {
    if number != 0 {
        return DigestFunction::from_number(number);
    }
    let mut digests = digests.into_iter().peekable();
    let first = digests.peek().map(|digest| digest.hash.clone());
    digests
        .find_map(|digest| implied(&digest.hash))
        .ok_or_else(|| first.map_or(DigestError::Missing, DigestError::NotHex))
}

/// The function that a hash of this length implies if none is named.
pub fn implied(hash: &str) -> Option<DigestFunction> {
    [DigestFunction::Sha1, DigestFunction::Sha256]
        .into_iter()
        .find(|function| hash.len() == 2 * function.hash_len())
}

/// A digest as it stands in a message.
///
/// # Errors
/// Another length than the function's, anything but lower-case hexadecimal, a size below zero.
pub fn parse(function: DigestFunction, digest: &api::Digest) -> Result<Digest, DigestError> {
    let size_bytes = u64::try_from(digest.size_bytes)
        .map_err(|_| DigestError::NegativeSize(digest.size_bytes))?;
    Digest::from_hex(function, &digest.hash, size_bytes)
}

/// The one digest that a request is about; `number` is the digest function that it names.
///
/// # Errors
/// None is there, or as [`function`] and [`parse`].
pub fn parse_one(number: i32, digest: Option<&api::Digest>) -> Result<Digest, DigestError> {
    let digest = digest.ok_or(DigestError::Missing)?;
    parse(function(number, [digest])?, digest)
}

/// A digest as it goes into a message.
pub fn to_api(digest: &Digest) -> api::Digest {
    api::Digest {
        hash: to_hex(digest.hash()),
        size_bytes: i64::try_from(digest.size_bytes()).unwrap_or(i64::MAX),
    }
}

/// The segment that names the function in resource names, with its slash; nothing where the length implies it.
pub(crate) fn function_segment(function: DigestFunction) -> &'static str {
    match function {
        DigestFunction::Sha1 | DigestFunction::Sha256 => "",
        DigestFunction::Blake3 => "blake3/",
    }
}

/// Whether a digest names the blob without bytes, which is always there.
pub fn is_empty_blob(digest: &Digest) -> bool {
    digest.size_bytes() == 0 && digest.function().digest(&[]) == *digest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(hash: &str, size_bytes: i64) -> api::Digest {
        api::Digest { hash: hash.to_owned(), size_bytes }
    }

    #[test]
    fn an_unnamed_function_is_inferred_from_the_length_of_the_hash() {
        for function in [DigestFunction::Sha1, DigestFunction::Sha256] {
            let digest = function.digest(b"x");
            assert_eq!(parse_one(0, Some(&to_api(&digest))).unwrap(), digest);
        }
        let digest = DigestFunction::Blake3.digest(b"x");
        assert_ne!(parse_one(0, Some(&to_api(&digest))).unwrap(), digest);
        assert_eq!(parse_one(9, Some(&to_api(&digest))).unwrap(), digest);
    }

    #[test]
    fn functions_that_are_not_served_are_refused() {
        let digest = to_api(&DigestFunction::Sha256.digest(b"x"));
        for number in [-1, 3, 4, 5, 6, 7, 8, 10, 99] {
            assert!(parse_one(number, Some(&digest)).is_err(), "{number}");
        }
    }

    #[test]
    fn a_hash_is_lower_case_hexadecimal_of_its_functions_length() {
        let good = to_api(&DigestFunction::Sha256.digest(b"x"));
        let upper = message(&good.hash.to_uppercase(), 1);
        let short = message(&good.hash[1..], 1);
        let other = message(&"é".repeat(32), 1);
        for bad in [upper, short, other, message("", 0), message(&good.hash, -1)] {
            assert!(parse_one(1, Some(&bad)).is_err(), "{bad:?}");
            assert!(parse_one(0, Some(&bad)).is_err(), "{bad:?}");
        }
        assert!(parse_one(1, None).is_err());
        assert!(parse_one(1, Some(&good)).is_ok());
    }

    #[test]
    fn a_request_has_one_function_the_first_that_a_digest_implies() {
        let odd = message("abc", 1);
        let one = to_api(&DigestFunction::Sha1.digest(b"x"));
        let other = to_api(&DigestFunction::Sha256.digest(b"x"));
        assert_eq!(function(0, [&odd, &one, &other]).unwrap(), DigestFunction::Sha1);
        assert_eq!(function(9, [&odd, &one, &other]).unwrap(), DigestFunction::Blake3);
        assert!(function(0, [&odd]).is_err());
        assert!(function(0, []).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_gives_back_what_it_took(
            number in any::<i32>(),
            hash in "[0-9a-fA-Fx]{0,70}",
            size_bytes in any::<i64>(),
        ) {
            let wire = message(&hash, size_bytes);
            if let Ok(digest) = parse_one(number, Some(&wire)) {
                prop_assert_eq!(to_api(&digest), wire);
            }
        }

        #[test]
        fn every_digest_survives_the_way_there_and_back(
            data in proptest::collection::vec(any::<u8>(), 0..64),
            which in 0..3_usize,
        ) {
            let function = DigestFunction::ALL[which];
            let digest = function.digest(&data);
            prop_assert_eq!(parse_one(function as i32, Some(&to_api(&digest))).unwrap(), digest);
        }
    }
}
