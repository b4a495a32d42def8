//! Text that is to name what `ByteStream` reads or writes.

use distbuild_coordinator::reapi::instance::Instance;
use distbuild_coordinator::reapi::resource_name::{Compressor, ReadName, WriteName};
use distbuild_proto::Digest;

/// Text is refused with an error that people can read, or names something, and what it names has a name that
/// means the same.
///
/// # Panics
/// One of these does not hold.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match ReadName::parse(text) {
        Ok(name) => {
            let again = match &name {
                ReadName::Blob { instance, digest, compressor } => {
                    format!("{}{}", prefix(instance), blob(digest, *compressor))
                }
                ReadName::Log(log) => log.to_string(),
            };
            assert_eq!(ReadName::parse(&again).ok().as_ref(), Some(&name), "{again:?}");
            assert!(WriteName::parse(text).is_err(), "{text:?} is read and written");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match WriteName::parse(text) {
        Ok(name) => {
            let WriteName { instance, upload, digest, compressor } = &name;
            let again =
                format!("{}uploads/{upload}/{}", prefix(instance), blob(digest, *compressor));
            assert_eq!(WriteName::parse(&again).ok().as_ref(), Some(&name), "{again:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn prefix(instance: &Instance) -> String {
    let name = instance.as_str();
    if name.is_empty() { String::new() } else { format!("{name}/") }
}

/// As the API has it, with the function, which may always be named.
fn blob(digest: &Digest, compressor: Compressor) -> String {
    let kind = match compressor {
        Compressor::Identity => "blobs",
        Compressor::Zstd => "compressed-blobs/zstd",
    };
    format!("{kind}/{}/{}/{}", digest.function(), digest.hex(), digest.size_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutation;

    const PIECES: &[&str] = &[
        "/",
        "//",
        "blobs",
        "blobs/",
        "uploads/",
        "compressed-blobs/",
        "actions",
        "actionResults",
        "operations",
        "capabilities",
        "logstreams/",
        "zstd",
        "identity",
        "sha1/",
        "sha256/",
        "blake3/",
        "md5/",
        "stdout",
        "stderr",
        "-1",
        "+",
        "0",
        "9223372036854775808",
        "..",
        "\0",
        "A",
        "é",
    ];

    #[test]
    fn the_examples_are_names() {
        for (name, bytes) in mutation::seeds("resource_name") {
            let text = std::str::from_utf8(&bytes).unwrap();
            assert!(ReadName::parse(text).is_ok() || WriteName::parse(text).is_ok(), "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn text_names_what_its_parts_name_or_is_refused(
            bytes in mutation::inputs("resource_name", PIECES),
        ) {
            check(&bytes);
        }
    }
}
