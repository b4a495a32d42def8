//! `Instance`: the name space that a client works in.
//!
//! Any name will do, the empty one and names of several segments included; an instance is there as soon as
//! somebody names it. Results of actions are kept for each by itself. Blobs are not: a digest says all that there is
//! to say of a blob.

use std::fmt;
use std::sync::Arc;

use distbuild_proto::DigestFunction;

/// Longest name in bytes.
pub const MAX_INSTANCE_BYTES: usize = 256;

/// Segments that mean something in resource names, and are therefore no part of an instance.
pub const KEYWORDS: [&str; 8] = [
    "blobs",
    "uploads",
    "actions",
    "actionResults",
    "operations",
    "capabilities",
    "compressed-blobs",
    "logstreams",
];

/// The name of an instance: segments joined by `/`, none of them empty or a keyword. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance(Arc<str>);

impl Instance {
    /// Checks a name.
    ///
    /// # Errors
    /// An empty segment, a keyword, a control character, or over [`MAX_INSTANCE_BYTES`].
    pub fn parse(name: &str) -> Result<Self, InstanceError> {
        if name.len() > MAX_INSTANCE_BYTES {
            return Err(InstanceError::TooLong(name.len()));
        }
        for segment in name.split('/').filter(|_| !name.is_empty()) {
            if segment.is_empty() || segment.contains(char::is_control) {
                return Err(InstanceError::Segment(name.to_owned()));
            }
            if KEYWORDS.contains(&segment) {
                return Err(InstanceError::Keyword(segment.to_owned()));
            }
        }
        Ok(Self(name.into()))
    }

    /// The name, empty for the instance without one.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is told to a client that asks for *the* digest function, as Bazel 4 does, which refuses to work with
    /// another one: the one that the last segment names (`sha1`, `blake3`), else SHA-256. All are served everywhere.
    pub fn digest_function(&self) -> DigestFunction {
        let last = self.0.rsplit('/').next().unwrap_or_default();
        last.parse().unwrap_or(DigestFunction::Sha256)
    }

    /// The name as it begins a resource name: followed by a slash, or nothing.
    pub(crate) fn prefix(&self) -> Prefix<'_> {
        Prefix(&self.0)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An instance in front of the rest of a resource name.
pub(crate) struct Prefix<'a>(&'a str);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.0.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}", self.0)
    }
}

/// Why text names no instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceError {
    /// Over [`MAX_INSTANCE_BYTES`].
    #[error("an instance name of {0} bytes, allowed are {MAX_INSTANCE_BYTES}")]
    TooLong(usize),
    /// A segment that is empty or has a control character.
    #[error("instance name {0:?} has an empty segment or a control character")]
    Segment(String),
    /// A segment that means something in resource names.
    #[error("no segment of an instance name may be {0:?}")]
    Keyword(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_name_and_names_of_several_segments_are_instances() {
        for name in ["", "main", "a/b/c", "remote execution", "Blobs"] {
            assert_eq!(Instance::parse(name).unwrap().as_str(), name);
        }
        assert_eq!(Instance::parse("").unwrap().prefix().to_string(), "");
        assert_eq!(Instance::parse("a/b").unwrap().prefix().to_string(), "a/b/");
    }

    #[test]
    fn the_last_segment_may_name_the_digest_function_that_is_announced() {
        let function = |name| Instance::parse(name).unwrap().digest_function();
        assert_eq!(function("sha1"), DigestFunction::Sha1);
        assert_eq!(function("team/blake3"), DigestFunction::Blake3);
        for other in ["", "main", "sha1/main", "SHA1", "sha256"] {
            assert_eq!(function(other), DigestFunction::Sha256, "{other:?}");
        }
    }

    #[test]
    fn keywords_and_empty_segments_are_no_part_of_an_instance() {
        for keyword in KEYWORDS {
            assert!(Instance::parse(keyword).is_err());
            assert!(Instance::parse(&format!("a/{keyword}/b")).is_err());
        }
        for bad in ["/", "/a", "a/", "a//b", "a\0b", "a\nb", &"x".repeat(257)] {
            assert!(Instance::parse(bad).is_err(), "{bad:?}");
        }
    }
}
