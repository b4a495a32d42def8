//! `Slab`: values under dense `u32` indexes that are used again after a removal.
//!
//! An index is valid from `insert` to `remove`. Indexing with any other is a bug of the caller and
//! panics, as with a slice. Values lie in chunks that never move, so that no single insertion pays
//! for all that came before. When the last value goes, the memory goes too.

use std::ops::{Index, IndexMut};

use crate::job::NONE;
use crate::steps::step;

/// Values in one chunk, as a power of two.
const CHUNK_BITS: u32 = 9;
const CHUNK: usize = 1 << CHUNK_BITS;

#[derive(Debug)]
enum Entry<T> {
    Full(T),
    /// The next vacant index, or `NONE`.
    Vacant(u32),
}

#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Entry<T>>>,
    /// The index that was vacated last.
    vacant: u32,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), vacant: NONE, len: 0 }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        step();
        self.len += 1;
        if self.vacant != NONE {
            let index = self.vacant;
            if let Some(entry) = self.entry_mut(index)
                && let Entry::Vacant(next) = std::mem::replace(entry, Entry::Full(value))
            {
                self.vacant = next;
            }
            return index;
        }
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK => last.push(Entry::Full(value)),
            // The first chunk grows as it must; those after it are wanted whole.
            last => {
                let mut chunk = Vec::with_capacity(if last.is_some() { CHUNK } else { 1 });
                chunk.push(Entry::Full(value));
                self.chunks.push(chunk);
            }
        }
        (self.len - 1) as u32
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        step();
        let vacant = self.vacant;
        let entry = self.entry_mut(index).filter(|entry| matches!(entry, Entry::Full(_)))?;
        let Entry::Full(value) = std::mem::replace(entry, Entry::Vacant(vacant)) else {
            return None;
        };
        self.vacant = index;
        self.len -= 1;
        if self.len == 0 {
            *self = Self::default();
        }
        Some(value)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        step();
        match self.entry(index)? {
            Entry::Full(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        step();
        match self.entry_mut(index)? {
            Entry::Full(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    fn entry(&self, index: u32) -> Option<&Entry<T>> {
        self.chunks.get((index >> CHUNK_BITS) as usize)?.get(index as usize % CHUNK)
    }

    fn entry_mut(&mut self, index: u32) -> Option<&mut Entry<T>> {
        self.chunks.get_mut((index >> CHUNK_BITS) as usize)?.get_mut(index as usize % CHUNK)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.chunks.iter().flatten().zip(0..).filter_map(|(entry, index)| {
            step();
            match entry {
                Entry::Full(value) => Some((index, value)),
                Entry::Vacant(_) => None,
            }
        })
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        self.get(index).expect("the index of a live value")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.get_mut(index).expect("the index of a live value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_used_again_after_its_value_was_removed() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.insert("c"), a);
        assert_eq!((slab[a], slab[b], slab.len()), ("c", "b", 2));
    }

    #[test]
    fn the_memory_goes_with_the_last_value() {
        let mut slab = Slab::default();
        let indexes: Vec<u32> = (0..100).map(|n| slab.insert(n)).collect();
        for index in indexes {
            slab.remove(index);
        }
        assert_eq!((slab.len(), slab.chunks.capacity()), (0, 0));
    }

    #[test]
    fn indexes_go_on_across_chunks() {
        let mut slab = Slab::default();
        let count = 3 * CHUNK as u32 + 7;
        assert!((0..count).all(|n| slab.insert(n) == n));
        for odd in (1..count).step_by(2) {
            assert_eq!(slab.remove(odd), Some(odd));
        }
        let left: Vec<u32> = slab.iter().map(|(index, _)| index).collect();
        assert_eq!(left, (0..count).step_by(2).collect::<Vec<_>>());
        assert_eq!(slab.get(count), None);
    }
}
