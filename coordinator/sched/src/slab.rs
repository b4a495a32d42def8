//! `Slab`: values under dense `u32` indexes that are used again after a removal.
//!
//! An index is valid from `insert` to `remove`. Indexing with any other is a bug of the caller and
//! panics, as with a slice. When the last value goes, the memory goes too.

use std::ops::{Index, IndexMut};

#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(value);
            return index;
        }
        self.entries.push(Some(value));
        (self.entries.len() - 1) as u32
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.entries.get_mut(index as usize)?.take()?;
        self.free.push(index);
        if self.free.len() == self.entries.len() {
            *self = Self::default();
        }
        Some(value)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)?.as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| Some((index as u32, entry.as_ref()?)))
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        self.entries[index as usize].as_ref().expect("the index of a live value")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.entries[index as usize].as_mut().expect("the index of a live value")
    }
}

#[cfg(test)]
mod tests {
    use super::Slab;

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
        assert_eq!((slab.len(), slab.entries.capacity()), (0, 0));
    }
}
