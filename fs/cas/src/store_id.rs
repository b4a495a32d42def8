//! `StoreId`: which store a folder is, for whoever keeps track of who holds what.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use distbuild_proto::digest::{parse_hex, to_hex};

use crate::error::StoreError;
use crate::layout::Layout;

/// 16 random bytes that a store's folder gets when it is made and keeps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId([u8; 16]);

impl StoreId {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A new one from the kernel's random numbers.
    pub(crate) fn random() -> Result<Self, StoreError> {
        let path = Path::new("/dev/urandom");
        let mut bytes = [0; 16];
        File::open(path)
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(|source| StoreError::io("read", path, source))?;
        Ok(Self(bytes))
    }

    /// The identity of the folder; of two processes that make it at once, one wins for both.
    pub(crate) fn load_or_make(layout: &Layout) -> Result<Self, StoreError> {
        let path = layout.store_id();
        if let Some(id) = Self::load(&path)? {
            return Ok(id);
        }
        let id = Self::random()?;
        // Linked only when whole, so that nobody reads a part of it.
        let unfinished = layout.root().join(format!("store-id.{id}"));
        let made = File::create_new(&unfinished)
            .and_then(|mut file| writeln!(file, "{id}"))
            .and_then(|()| fs::hard_link(&unfinished, &path));
        // What is left of a failure here is 33 bytes, and harmless.
        let _ = fs::remove_file(&unfinished);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(StoreError::io("write", &path, error))
            }
            _ => Self::load(&path)?.ok_or(StoreError::Foreign { path, reason: "no store id" }),
        }
    }

    fn load(path: &Path) -> Result<Option<Self>, StoreError> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(64).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path, error)),
        }
        let mut bytes = [0; 16];
        parse_hex(text.trim_end(), &mut bytes).map_err(|_| StoreError::Foreign {
            path: path.to_owned(),
            reason: "the store id is not 32 hexadecimal digits",
        })?;
        Ok(Some(Self(bytes)))
    }
}

/// 32 lower-case hexadecimal digits.
impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
