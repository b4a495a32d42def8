//! Blobs that are to be directories.

use distbuild_proto::{DigestFunction, Directory};

/// Bytes are refused, or are a directory that is canonical: decoding what it encodes to gives it again, no name comes
/// twice, and each child is found by its name.
///
/// # Panics
/// One of these does not hold.
pub fn check(bytes: &[u8]) {
    for function in DigestFunction::ALL {
        match Directory::decode(function, bytes) {
            Ok(directory) => check_canonical(function, &directory),
            // A message for people can be made of any error.
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn check_canonical(function: DigestFunction, directory: &Directory) {
    let (digest, encoded) = directory.encode_with_digest(function);
    assert_eq!(digest.size_bytes(), encoded.len() as u64);
    let again = Directory::decode(function, &encoded);
    assert_eq!(again.as_ref().ok(), Some(directory), "{again:?}");
    assert!(directory.names().is_sorted_by(|one, next| one < next));
    assert_eq!(directory.children().count(), directory.len());
    for child in directory.children() {
        assert_eq!(directory.get(child.name().as_bytes()), Some(child));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutation;

    #[test]
    fn the_examples_are_directories() {
        for (name, bytes) in mutation::seeds("directory") {
            let of = |function| Directory::decode(function, &bytes).is_ok();
            assert!(DigestFunction::ALL.into_iter().any(of), "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn bytes_are_a_canonical_directory_or_refused(
            bytes in mutation::inputs("directory", &["..", ".", "/", "\0", "\x0a\x00", "\x12\x02", "\x1a\x04"]),
        ) {
            check(&bytes);
        }
    }
}
