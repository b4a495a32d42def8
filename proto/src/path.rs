//! Names and relative paths as Unix has them: bytes, not text.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One component of a path: not empty, not `.` or `..`, without `/` and NUL.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Longest name that Linux file systems hold, in bytes (`NAME_MAX`).
    pub const MAX_BYTES: usize = 255;

    /// Checks a name.
    pub fn new(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.is_empty()
            || bytes == b"."
            || bytes == b".."
            || bytes.contains(&b'/')
            || bytes.contains(&0)
            || bytes.len() > Self::MAX_BYTES
        {
            return Err(PathError::Name(bytes.escape_ascii().to_string()));
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name for calls of the operating system.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl std::borrow::Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// A path below some root: components joined by one `/`; the empty path is the root itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RelPath(Box<[u8]>);

impl RelPath {
    /// The root itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks a path: every component is a [`Name`], no leading, trailing or doubled `/`.
    pub fn new(bytes: &[u8]) -> Result<Self, PathError> {
        if !bytes.is_empty() {
            for component in bytes.split(|byte| *byte == b'/') {
                Name::new(component)
                    .map_err(|_| PathError::Path(bytes.escape_ascii().to_string()))?;
            }
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes, components joined by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
    }

    /// This path with one more component.
    pub fn join(&self, name: &Name) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.as_bytes().len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_bytes());
        Self(bytes.into())
    }

    /// The path for calls of the operating system.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Why bytes are no name or path.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Not a single component.
    #[error(
        "\"{0}\" is not a file name (empty, \".\", \"..\", with \"/\" or NUL, or over 255 bytes)"
    )]
    Name(String),
    /// Not a relative path that stays below its root.
    #[error(
        "\"{0}\" is not a relative path (absolute, or with an empty, \".\" or \"..\" component)"
    )]
    Path(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn degenerate_names_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        assert!(Name::new(b"with space\n\xff").is_ok());
    }

    #[test]
    fn a_path_cannot_leave_its_root() {
        for bad in ["/a", "a/", "a//b", "a/../b", "./a", ".."] {
            assert!(RelPath::new(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let path = RelPath::new(b"a/b").unwrap();
        assert_eq!(path.components().collect::<Vec<_>>(), [b"a", b"b"]);
        assert!(RelPath::new(b"").unwrap().is_root());
    }
}
