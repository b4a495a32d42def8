//! The fixed directories above all views: the root, `action/` and `tree/`, and the names in them.

use distbuild_proto::{Digest, DigestFunction};

use crate::inode::{Ino, ViewId};
use crate::tree::{Attributes, Found, NodeKind};

/// What the root lists.
pub(crate) const NAMES: [&[u8]; 2] = [b"action", b"tree"];

/// May be entered by who knows a name in it, but not listed: a kernel that need not ask before it
/// opens a directory would keep the first listing for ever.
pub(crate) const UNLISTED: u16 = 0o111;

pub(crate) fn find(name: &[u8]) -> Found {
    match name {
        b"action" => Found::Entry(attributes(Ino::ACTIONS, UNLISTED)),
        b"tree" => Found::Entry(attributes(Ino::TREES, UNLISTED)),
        _ => Found::Absent,
    }
}

pub(crate) fn attributes(ino: Ino, permissions: u16) -> Attributes {
    Attributes { ino, kind: NodeKind::Directory, size_bytes: 0, permissions, mtime: None }
}

/// The name of a shared tree in `/tree`: `<function>-<hash in hex>-<size in bytes>`.
pub fn tree_name(digest: &Digest) -> String {
    format!("{}-{}-{}", digest.function(), digest.hex(), digest.size_bytes())
}

pub(crate) fn parse_tree_name(name: &[u8]) -> Option<Digest> {
    let text = std::str::from_utf8(name).ok()?;
    let mut parts = text.splitn(3, '-');
    let function: DigestFunction = parts.next()?.parse().ok()?;
    let (hex, size) = (parts.next()?, parts.next()?);
    let digest = Digest::from_hex(function, hex, size.parse().ok()?).ok()?;
    (tree_name(&digest) == text).then_some(digest)
}

/// The view that a name in `action/` stands for: its number in decimal, without leading zeros.
pub(crate) fn parse_view_name(name: &[u8]) -> Option<ViewId> {
    let number: u64 = std::str::from_utf8(name).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == name).then_some(ViewId(number))
}
