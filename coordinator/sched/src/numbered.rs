//! `Numbered`: values under numbers that are given out in order, for look-up, removal and the least.
//!
//! A B-tree of pages with `N` neighbours each. Values that were added together lie together, and
//! the tree itself is so much smaller than one of single values that it stays in the processor's
//! cache. At worst a page holds one value.

use std::collections::BTreeMap;

use crate::steps::step;

#[derive(Debug)]
struct Page<T, const N: usize> {
    /// Which values there are, by bit.
    full: u64,
    /// What has no bit is of no meaning.
    values: [T; N],
}

/// `N` is a power of two, at most 64.
#[derive(Debug)]
pub(crate) struct Numbered<T, const N: usize> {
    pages: BTreeMap<u64, Box<Page<T, N>>>,
    len: usize,
}

impl<T, const N: usize> Default for Numbered<T, N> {
    fn default() -> Self {
        const { assert!(N.is_power_of_two() && N <= 64) };
        Self { pages: BTreeMap::new(), len: 0 }
    }
}

impl<T: Copy + Default, const N: usize> Numbered<T, N> {
    /// Adds a value; one that had the number goes.
    pub(crate) fn insert(&mut self, number: u64, value: T) {
        step();
        let (page, at) = place::<N>(number);
        let empty = || Box::new(Page { full: 0, values: [T::default(); N] });
        let page = self.pages.entry(page).or_insert_with(empty);
        self.len += usize::from(page.full & (1 << at) == 0);
        page.full |= 1 << at;
        page.values[at] = value;
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        step();
        let (of, at) = place::<N>(number);
        let page = self.pages.get_mut(&of).filter(|page| page.full & (1 << at) != 0)?;
        let value = page.values[at];
        page.full &= !(1 << at);
        self.len -= 1;
        if page.full == 0 {
            self.pages.remove(&of);
        }
        Some(value)
    }

    pub(crate) fn get(&self, number: u64) -> Option<&T> {
        step();
        let (page, at) = place::<N>(number);
        let page = self.pages.get(&page).filter(|page| page.full & (1 << at) != 0)?;
        Some(&page.values[at])
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        step();
        let (page, at) = place::<N>(number);
        let page = self.pages.get_mut(&page).filter(|page| page.full & (1 << at) != 0)?;
        Some(&mut page.values[at])
    }

    /// The value with the least number.
    pub(crate) fn first(&self) -> Option<(u64, &T)> {
        step();
        let (number, page) = self.pages.first_key_value()?;
        let at = page.full.trailing_zeros();
        let value = page.values.get(at as usize)?;
        Some((number * N as u64 + u64::from(at), value))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.pages.iter().flat_map(|(number, page)| {
            let first = number * N as u64;
            let full = (0..N as u64).filter(|at| page.full & (1 << at) != 0);
            full.map(move |at| {
                step();
                (first + at, &page.values[at as usize])
            })
        })
    }
}

/// The page of a number, and where it is there.
fn place<const N: usize>(number: u64) -> (u64, usize) {
    (number / N as u64, (number % N as u64) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_plain_map_holds(
            steps in prop::collection::vec((0u64..70, any::<bool>()), 1..200),
        ) {
            let (mut numbered, mut plain) = (Numbered::<usize, 8>::default(), BTreeMap::new());
            for (at, (number, add)) in steps.into_iter().enumerate() {
                if add {
                    numbered.insert(number, at);
                    plain.insert(number, at);
                } else {
                    prop_assert_eq!(numbered.remove(number), plain.remove(&number));
                }
                prop_assert_eq!(numbered.get(number), plain.get(&number));
                prop_assert_eq!(numbered.first(), plain.first_key_value().map(|(n, v)| (*n, v)));
                prop_assert_eq!(numbered.len(), plain.len());
                prop_assert!(numbered.iter().eq(plain.iter().map(|(n, v)| (*n, v))));
                prop_assert!(numbered.pages.values().all(|page| page.full != 0));
            }
        }
    }
}
