//! The kernel's table of mounts. Reading it never asks the file systems in it.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A mount.
pub(crate) struct Found {
    /// Major and minor number, as below `/sys/class/bdi`: no two mounted FUSE file systems share them.
    pub(crate) device: String,
    pub(crate) fs_type: Vec<u8>,
}

/// The topmost mount at a place.
pub(crate) fn find(path: &Path) -> io::Result<Option<Found>> {
    Ok(find_in(&fs::read("/proc/self/mountinfo")?, path))
}

fn find_in(table: &[u8], path: &Path) -> Option<Found> {
    let wanted = escape(path.as_os_str().as_bytes());
    table.split(|byte| *byte == b'\n').filter_map(|line| parse(line, &wanted)).next_back()
}

/// A line is `36 35 98:0 /root /point options [optional]… - type source super-options`.
fn parse(line: &[u8], wanted: &[u8]) -> Option<Found> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    if fields.nth(1)? != wanted {
        return None;
    }
    let mut fields = fields.skip_while(|field| *field != b"-");
    let fs_type = fields.nth(1)?.to_vec();
    Some(Found { device: String::from_utf8(device.to_vec()).ok()?, fs_type })
}

/// Paths stand in the table with blanks, line ends and backslashes in octal.
fn escape(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                escaped.extend_from_slice(format!("\\{byte:03o}").as_bytes());
            }
            _ => escaped.push(*byte),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_at_a_place_is_found_by_its_escaped_path() {
        let table = b"22 1 0:20 / /a\\040b rw shared:1 - tmpfs none rw\n\
            23 1 0:21 / /a\\040b ro - fuse.distbuild distbuild ro\n\
            24 1 0:22 / /other rw - proc proc rw\n";
        let found = find_in(table, Path::new("/a b")).unwrap();
        assert_eq!(found.device, "0:21");
        assert_eq!(found.fs_type, b"fuse.distbuild");
        assert!(find_in(table, Path::new("/a")).is_none());
    }
}
