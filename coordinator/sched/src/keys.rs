//! `Keys`: which execution has an action key.
//!
//! A hash table, and the one container here without an order: nothing ever walks over it, so no
//! effect can depend on where an entry lies. A key is a hash already and serves as its own; whoever
//! wanted to slow a look-up down would have to find keys that agree in thirty bits, two million hashes
//! each. The whole key stands in the execution and is compared there. Entries are spread over shards
//! that grow each at its own time, so that no single insertion moves them all.

use hashbrown::HashTable;

use crate::ids::ActionKey;

const SHARDS: usize = 256;

/// Part of a key, and the execution that has it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    tag: u32,
    execution: u32,
}

#[derive(Debug)]
pub(crate) struct Keys {
    shards: Box<[HashTable<Entry>]>,
    len: usize,
}

impl Default for Keys {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| HashTable::new()).collect(), len: 0 }
    }
}

impl Keys {
    /// The execution that `has` the key.
    pub(crate) fn find(&self, key: &ActionKey, has: impl Fn(u32) -> bool) -> Option<u32> {
        let (shard, tag) = parts(key);
        let equal = |entry: &Entry| entry.tag == tag && has(entry.execution);
        self.shards[shard].find(hash(tag), equal).map(|entry| entry.execution)
    }

    /// Adds a key, which must not be there.
    pub(crate) fn insert(&mut self, key: &ActionKey, execution: u32) {
        let (shard, tag) = parts(key);
        let entry = Entry { tag, execution };
        self.shards[shard].insert_unique(hash(tag), entry, |entry| hash(entry.tag));
        self.len += 1;
    }

    /// Takes an execution's key out. The memory goes with the last one of a shard.
    pub(crate) fn remove(&mut self, key: &ActionKey, execution: u32) {
        let (shard, tag) = parts(key);
        let shard = &mut self.shards[shard];
        if let Ok(entry) = shard.find_entry(hash(tag), |entry| entry.execution == execution) {
            entry.remove();
            self.len -= 1;
            if shard.is_empty() {
                *shard = HashTable::new();
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Shard and tag of a key.
fn parts(key: &ActionKey) -> (usize, u32) {
    let [shard, a, b, c, d, ..] = key.0;
    (usize::from(shard), u32::from_le_bytes([a, b, c, d]))
}

/// The table looks at the lowest bits and at the highest.
fn hash(tag: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(prefix: u8, number: u32) -> ActionKey {
        let mut bytes = [prefix; 32];
        bytes[28..].copy_from_slice(&number.to_le_bytes());
        ActionKey(bytes)
    }

    #[test]
    fn keys_that_agree_in_all_but_the_end_are_told_apart() {
        let mut keys = Keys::default();
        for number in 0..1000 {
            keys.insert(&key((number % 3) as u8, number), number);
        }
        for number in (0..1000).step_by(2) {
            keys.remove(&key((number % 3) as u8, number), number);
        }
        for number in 0..1000 {
            let wanted = key((number % 3) as u8, number);
            let found = keys.find(&wanted, |other| key((other % 3) as u8, other) == wanted);
            assert_eq!(found, (number % 2 == 1).then_some(number));
        }
        assert_eq!(keys.len(), 500);
    }

    #[test]
    fn the_memory_goes_with_the_last_key() {
        let mut keys = Keys::default();
        for number in 0..1000 {
            keys.insert(&key(7, number), number);
        }
        for number in 0..1000 {
            keys.remove(&key(7, number), number);
        }
        assert_eq!(keys.shards.iter().map(HashTable::capacity).sum::<usize>(), 0);
    }
}
