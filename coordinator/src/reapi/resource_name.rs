//! The names of what `ByteStream` reads and writes.
//!
//! ```text
//! {instance/}blobs/{function/}{hash}/{size}                                                    read
//! {instance/}compressed-blobs/{compressor}/{function/}{hash}/{size}                            read
//! {instance/}logstreams/{operation}/{stdout|stderr}                                            read
//! {instance/}uploads/{uuid}/blobs/{function/}{hash}/{size}{/metadata}                          write
//! {instance/}uploads/{uuid}/compressed-blobs/{compressor}/{function/}{hash}/{size}{/metadata}  write
//! ```
//!
//! The instance ends where the first keyword stands. `{function/}` may stand for every function and must for BLAKE3;
//! what we write omits it where the length of the hash implies it. `{metadata}` is not looked at.

use std::fmt;

use distbuild_proto::{Digest, DigestError, DigestFunction};

use super::digest;
use super::instance::{Instance, InstanceError, KEYWORDS};

/// Longest resource name in bytes.
pub const MAX_NAME_BYTES: usize = 2048;
/// Longest `uuid` in bytes; a UUID has 36.
const MAX_UPLOAD_ID_BYTES: usize = 128;

/// How the bytes of a transfer are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compressor {
    /// As they are.
    Identity,
    /// Zstandard frames.
    Zstd,
}

/// What a command prints to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogStream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReadName {
    /// A blob.
    Blob {
        /// In whose name.
        instance: Instance,
        /// Which.
        digest: Digest,
        /// How it is to come.
        compressor: Compressor,
    },
    /// What the command of an execution prints, while it runs.
    Log(LogName),
}

/// The name of what the command of an execution prints.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogName {
    /// Where it was asked for.
    pub instance: Instance,
    /// The last segment of the operation's name.
    pub operation: String,
    /// Which of the two.
    pub stream: LogStream,
}

/// What is to be written, and by which upload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WriteName {
    /// In whose name.
    pub instance: Instance,
    /// What the client calls this upload: a UUID, but any segment will do.
    pub upload: String,
    /// Which blob.
    pub digest: Digest,
    /// How it comes.
    pub compressor: Compressor,
}

impl ReadName {
    /// Parses the name in a `ReadRequest`.
    ///
    /// # Errors
    /// Anything but the forms above.
    pub fn parse(name: &str) -> Result<Self, ResourceNameError> {
        let (instance, keyword, rest) = split(name)?;
        let (target, tail) = match (keyword, &rest[..]) {
            ("logstreams", [operation, stream]) => {
                let stream = match *stream {
                    "stdout" => LogStream::Stdout,
                    "stderr" => LogStream::Stderr,
                    _ => return Err(ResourceNameError::form(name)),
                };
                if operation.is_empty() {
                    return Err(ResourceNameError::form(name));
                }
                let operation = (*operation).to_owned();
                return Ok(Self::Log(LogName { instance, operation, stream }));
            }
            (keyword, rest) => blob(name, keyword, rest)?,
        };
        if !tail.is_empty() {
            return Err(ResourceNameError::form(name));
        }
        let (digest, compressor) = target;
        Ok(Self::Blob { instance, digest, compressor })
    }
}

impl WriteName {
    /// Parses the name in a `WriteRequest` or a `QueryWriteStatusRequest`.
    ///
    /// # Errors
    /// Anything but the forms above.
    pub fn parse(name: &str) -> Result<Self, ResourceNameError> {
        let (instance, keyword, rest) = split(name)?;
        let ("uploads", [upload, keyword, rest @ ..]) = (keyword, &rest[..]) else {
            return Err(ResourceNameError::form(name));
        };
        if upload.is_empty() || upload.len() > MAX_UPLOAD_ID_BYTES {
            return Err(ResourceNameError::UploadId(name.to_owned()));
        }
        let ((digest, compressor), _metadata) = blob(name, keyword, rest)?;
        Ok(Self { instance, upload: (*upload).to_owned(), digest, compressor })
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stream = match self.stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        write!(f, "{}logstreams/{}/{stream}", self.instance.prefix(), self.operation)
    }
}

/// A blob as resource names and the violations of a precondition name it: `blobs/{function/}{hash}/{size}`.
pub(crate) fn blob_name(digest: &Digest) -> String {
    let function = digest::function_segment(digest.function());
    format!("blobs/{function}{}/{}", digest.hex(), digest.size_bytes())
}

/// The instance, the first keyword, and the segments after it.
fn split(name: &str) -> Result<(Instance, &str, Vec<&str>), ResourceNameError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(ResourceNameError::TooLong(name.len()));
    }
    let mut at = 0;
    for segment in name.split('/') {
        if KEYWORDS.contains(&segment) {
            let instance = match at {
                0 => "",
                // Without the slash in front of the keyword. A name that begins with one has an empty segment.
                1 => return Err(ResourceNameError::form(name)),
                _ => &name[..at - 1],
            };
            let rest = name.get(at + segment.len() + 1..).unwrap_or_default();
            return Ok((Instance::parse(instance)?, segment, rest.split('/').collect()));
        }
        at += segment.len() + 1;
    }
    Err(ResourceNameError::form(name))
}

type Target = (Digest, Compressor);

/// The blob that the segments from its keyword on name, and the segments that are left.
fn blob<'a, 'b>(
    name: &str,
    keyword: &str,
    segments: &'b [&'a str],
) -> Result<(Target, &'b [&'a str]), ResourceNameError> {
    let (compressor, segments) = match (keyword, segments) {
        ("blobs", rest) => (Compressor::Identity, rest),
        ("compressed-blobs", ["zstd", rest @ ..]) => (Compressor::Zstd, rest),
        ("compressed-blobs", [other, ..]) => {
            return Err(ResourceNameError::Compressor((*other).to_owned()));
        }
        _ => return Err(ResourceNameError::form(name)),
    };
    let (function, segments) = match segments {
        [first, rest @ ..] if first.parse::<DigestFunction>().is_ok() => (first.parse().ok(), rest),
        all => (None, all),
    };
    let [hash, size, rest @ ..] = segments else {
        return Err(ResourceNameError::form(name));
    };
    let function = function
        .or_else(|| digest::implied(hash))
        .ok_or_else(|| DigestError::NotHex((*hash).to_owned()))?;
    let size_bytes = parse_size(size).ok_or_else(|| ResourceNameError::Size((*size).to_owned()))?;
    Ok(((Digest::from_hex(function, hash, size_bytes)?, compressor), rest))
}

/// A size as it is written in one way only: decimal, no sign, no leading zero; at most `i64::MAX`.
fn parse_size(text: &str) -> Option<u64> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit())
        && (text.len() == 1 || !text.starts_with('0'));
    let size_bytes: i64 = canonical.then(|| text.parse().ok())??;
    u64::try_from(size_bytes).ok()
}

/// Why text is no resource name.
#[derive(Debug, thiserror::Error)]
pub enum ResourceNameError {
    /// Over [`MAX_NAME_BYTES`].
    #[error("a resource name of {0} bytes, allowed are {MAX_NAME_BYTES}")]
    TooLong(usize),
    /// None of the forms that are served.
    #[error(
        "{0:?} is no resource name that is served here: expected \
         {{instance/}}blobs/{{hash}}/{{size}} to read, or \
         {{instance/}}uploads/{{uuid}}/blobs/{{hash}}/{{size}} to write"
    )]
    Form(String),
    /// The name of the upload is empty or too long.
    #[error("the upload id in {0:?} is empty or over {MAX_UPLOAD_ID_BYTES} bytes")]
    UploadId(String),
    /// A compressor that is not served.
    #[error("compressor {0:?} is not served, served is zstd")]
    Compressor(String),
    /// Not a size.
    #[error("{0:?} is not a size in bytes")]
    Size(String),
    /// What stands in front of the keyword names no instance.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// Hash and function do not go together.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl ResourceNameError {
    fn form(name: &str) -> Self {
        Self::Form(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instance(name: &str) -> Instance {
        Instance::parse(name).unwrap()
    }

    fn read(name: &str) -> (Instance, Digest, Compressor) {
        match ReadName::parse(name) {
            Ok(ReadName::Blob { instance, digest, compressor }) => (instance, digest, compressor),
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn blobs_are_read_in_instances_of_no_one_and_many_segments() {
        let digest = DigestFunction::Sha256.digest(b"x");
        let name = blob_name(&digest);
        assert_eq!(name, format!("blobs/{}/1", digest.hex()));
        assert_eq!(read(&name), (instance(""), digest, Compressor::Identity));
        assert_eq!(read(&format!("a/{name}")).0, instance("a"));
        assert_eq!(read(&format!("a/b/c/{name}")).0, instance("a/b/c"));
    }

    #[test]
    fn the_function_may_be_named_and_blake3_must_be() {
        let sha1 = DigestFunction::Sha1.digest(b"x");
        assert_eq!(read(&format!("blobs/{}/1", sha1.hex())).1, sha1);
        assert_eq!(read(&format!("blobs/sha1/{}/1", sha1.hex())).1, sha1);
        let blake3 = DigestFunction::Blake3.digest(b"x");
        assert_eq!(read(&blob_name(&blake3)).1, blake3);
        assert_ne!(read(&format!("blobs/{}/1", blake3.hex())).1, blake3);
        assert!(ReadName::parse(&format!("blobs/sha1/{}/1", blake3.hex())).is_err());
        assert!(ReadName::parse(&format!("blobs/md5/{}/1", sha1.hex())).is_err());
    }

    #[test]
    fn compressed_blobs_name_their_compressor() {
        let digest = DigestFunction::Blake3.digest(b"x");
        let name = format!("i/compressed-blobs/zstd/blake3/{}/1", digest.hex());
        assert_eq!(read(&name), (instance("i"), digest, Compressor::Zstd));
        for other in ["identity", "deflate", "brotli", "ZSTD", ""] {
            let name = format!("compressed-blobs/{other}/blake3/{}/1", digest.hex());
            let error = ReadName::parse(&name).unwrap_err();
            assert!(matches!(error, ResourceNameError::Compressor(_)), "{error}");
        }
    }

    #[test]
    fn an_upload_has_an_id_and_perhaps_metadata() {
        let digest = DigestFunction::Sha256.digest(b"x");
        let upload = "7c5f4a2e-6a0f-4c8e-9a3f-0d5a7c1b2e3d";
        for (compressed, compressor) in
            [("blobs", Compressor::Identity), ("compressed-blobs/zstd", Compressor::Zstd)]
        {
            for tail in ["", "/", "/some/path.o", "/blobs/x"] {
                let hex = digest.hex();
                let name = format!("a/b/uploads/{upload}/{compressed}/{hex}/1{tail}");
                let parsed = WriteName::parse(&name).unwrap();
                let instance = instance("a/b");
                let upload = upload.to_owned();
                assert_eq!(parsed, WriteName { instance, upload, digest, compressor });
            }
        }
    }

    #[test]
    fn what_is_read_and_what_is_written_have_names_of_their_own() {
        let blob = blob_name(&DigestFunction::Sha256.digest(b"x"));
        assert!(WriteName::parse(&blob).is_err());
        assert!(ReadName::parse(&format!("uploads/u/{blob}")).is_err());
        assert!(ReadName::parse(&format!("{blob}/metadata")).is_err());
        assert!(WriteName::parse(&format!("uploads//{blob}")).is_err());
        assert!(WriteName::parse("uploads/u/logstreams/o/stdout").is_err());
    }

    #[test]
    fn a_log_is_named_by_its_operation() {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            for name in ["", "a/b"] {
                let operation = "o-1".to_owned();
                let log = LogName { instance: instance(name), operation, stream };
                assert_eq!(ReadName::parse(&log.to_string()).unwrap(), ReadName::Log(log));
            }
        }
        for bad in ["logstreams/o/stdin", "logstreams//stdout", "logstreams/o/p/stdout"] {
            assert!(ReadName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        let hex = DigestFunction::Sha256.digest(b"x").hex();
        let upper = hex.to_uppercase();
        for bad in [
            String::new(),
            "/".to_owned(),
            "blobs".to_owned(),
            "blobs/".to_owned(),
            format!("blobs/{hex}"),
            format!("/blobs/{hex}/1"),
            format!("a//blobs/{hex}/1"),
            format!("a/actions/blobs/{hex}/1"),
            format!("blobs/{upper}/1"),
            format!("blobs/{}/1", &hex[1..]),
            format!("blobs//{hex}/1"),
            format!("blobs/{hex}/"),
            format!("blobs/{hex}/-1"),
            format!("blobs/{hex}/+1"),
            format!("blobs/{hex}/01"),
            format!("blobs/{hex}/1.0"),
            format!("blobs/{hex}/9223372036854775808"),
            format!("{}/blobs/{hex}/1", "x".repeat(MAX_NAME_BYTES)),
        ] {
            assert!(ReadName::parse(&bad).is_err(), "{bad:?}");
            assert!(WriteName::parse(&format!("uploads/u/{bad}")).is_err(), "{bad:?}");
        }
        assert!(ReadName::parse(&format!("blobs/{hex}/9223372036854775807")).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_panics(name in "\\PC{0,200}") {
            let _ = (ReadName::parse(&name), WriteName::parse(&name));
        }

        #[test]
        fn what_nearly_is_a_name_does_not_panic(
            segments in proptest::collection::vec(
                prop_oneof![
                    proptest::sample::select(KEYWORDS.to_vec()).prop_map(str::to_owned),
                    Just(String::new()),
                    Just("zstd".to_owned()),
                    Just("blake3".to_owned()),
                    "[0-9a-f]{40}",
                    "[0-9a-f]{64}",
                    "[0-9]{1,20}",
                    "\\PC{0,4}",
                ],
                0..9,
            ),
        ) {
            let name = segments.join("/");
            if let Ok(ReadName::Blob { instance, digest, .. }) = ReadName::parse(&name) {
                let again = format!("{}{}", instance.prefix(), blob_name(&digest));
                let is_same = matches!(
                    ReadName::parse(&again),
                    Ok(ReadName::Blob { digest: found, .. }) if found == digest
                );
                prop_assert!(is_same);
            }
            let _ = WriteName::parse(&name);
        }
    }
}
