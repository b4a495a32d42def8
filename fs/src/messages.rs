//! Counting the kernel's messages, by kind. A message costs more than the work that it asks for, so
//! tests assert these numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The kinds of messages that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of FUSE's opcodes")]
pub enum Message {
    Lookup,
    Forget,
    Getattr,
    Readlink,
    Read,
    Readdir,
    Open,
    Release,
    Opendir,
    Flush,
    Getxattr,
    Listxattr,
    Access,
    Statfs,
    Other,
}

impl Message {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Lookup,
        Self::Forget,
        Self::Getattr,
        Self::Readlink,
        Self::Read,
        Self::Readdir,
        Self::Open,
        Self::Release,
        Self::Opendir,
        Self::Flush,
        Self::Getxattr,
        Self::Listxattr,
        Self::Access,
        Self::Statfs,
        Self::Other,
    ];
}

/// Messages so far, by kind. Each forgotten inode counts, although
/// they come in batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageCounts([u64; Message::ALL.len()]);

impl MessageCounts {
    /// Messages of one kind.
    pub fn get(&self, message: Message) -> u64 {
        self.0[message as usize]
    }

    /// Messages of all kinds.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The messages since an earlier count.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|kind| self.0[kind].saturating_sub(earlier.0[kind])))
    }

    /// Each kind with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Message, u64)> {
        Message::ALL.into_iter().zip(self.0)
    }
}

/// Counts messages as they come.
#[derive(Debug, Default)]
pub struct Messages([AtomicU64; Message::ALL.len()]);

impl Messages {
    pub(crate) fn count(&self, message: Message) {
        self.0[message as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts so far.
    pub fn counts(&self) -> MessageCounts {
        MessageCounts(std::array::from_fn(|kind| self.0[kind].load(Ordering::Relaxed)))
    }
}
