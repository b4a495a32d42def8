//! Reading blobs from files of the store.
//!
//! The store never changes a blob in place, so an open file stays what it was verified to be even
//! after the store has removed its name.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use distbuild_proto::Directory;

use crate::contents::{BlobKey, WantError};

/// An encoded directory may be this long: some 400 000 children.
const DIRECTORY_LIMIT_BYTES: u64 = 64 << 20;

/// Opens a blob and checks that its length is what its name says.
pub fn open(store: &Path, key: &BlobKey) -> Result<File, WantError> {
    let path = key.path(store);
    let read = |error: io::Error| WantError::Read(format!("{}: {error}", path.display()));
    let file = File::open(&path).map_err(read)?;
    let len = file.metadata().map_err(read)?.len();
    if len != key.digest.size_bytes() {
        return Err(WantError::Damaged(format!("{} has {len} bytes", path.display())));
    }
    Ok(file)
}

/// Reads and decodes a directory from its open file.
pub fn read_directory(file: File, key: &BlobKey) -> Result<Directory, WantError> {
    if key.digest.size_bytes() > DIRECTORY_LIMIT_BYTES {
        let message = format!("a directory of over {DIRECTORY_LIMIT_BYTES} bytes");
        return Err(WantError::Damaged(message));
    }
    let mut blob = Vec::with_capacity(key.digest.size_bytes() as usize);
    file.take(DIRECTORY_LIMIT_BYTES)
        .read_to_end(&mut blob)
        .map_err(|error| WantError::Read(error.to_string()))?;
    Directory::decode(key.digest.function(), &blob)
        .map_err(|error| WantError::Damaged(error.to_string()))
}

/// Reads all of `buffer`, waiting for the disk.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), WantError> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => WantError::Damaged("the blob was cut short".into()),
        _ => WantError::Read(error.to_string()),
    })
}

/// Reads all of `buffer` if that needs no waiting for the disk; false if it does.
#[expect(unsafe_code, reason = "neither std nor nix knows preadv2")]
pub fn read_cached_at(file: &File, buffer: &mut [u8], offset: u64) -> bool {
    let Ok(offset) = libc::off_t::try_from(offset) else {
        return false;
    };
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `part` names exactly the bytes of `buffer`, which is exclusively borrowed during the call,
    // and the descriptor is open as long as `file` is borrowed.
    let read =
        unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(read).is_ok_and(|read| read == buffer.len())
}
