//! `Turns`: a queue in which groups take turns, so that whoever wants one thing does not wait behind
//! somebody who wants 100 000.
//!
//! Within a group things come out in the order in which they went in; the groups go round. Every
//! operation takes constant time. Says nothing about how much may wait.

use std::collections::{HashMap, VecDeque};

/// See the module.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    /// None is empty.
    groups: HashMap<u64, VecDeque<T>>,
    /// Each group once; the first has the next turn.
    order: VecDeque<u64>,
    len: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { groups: HashMap::new(), order: VecDeque::new(), len: 0 }
    }
}

impl<T> Turns<T> {
    /// How many things wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many of them are of one group.
    pub(crate) fn len_of(&self, group: u64) -> usize {
        self.groups.get(&group).map_or(0, VecDeque::len)
    }

    /// Adds a thing behind those of its group; a new group comes last.
    pub(crate) fn push(&mut self, group: u64, thing: T) {
        let waiting = self.groups.entry(group).or_default();
        if waiting.is_empty() {
            self.order.push_back(group);
        }
        waiting.push_back(thing);
        self.len += 1;
    }

    /// The first thing of the group whose turn it is, and that group.
    pub(crate) fn pop(&mut self) -> Option<(u64, T)> {
        let group = self.order.pop_front()?;
        let waiting = self.groups.get_mut(&group)?;
        let thing = waiting.pop_front()?;
        if waiting.is_empty() {
            self.groups.remove(&group);
        } else {
            self.order.push_back(group);
        }
        self.len -= 1;
        Some((group, thing))
    }

    /// Undoes the last [`pop`](Self::pop).
    pub(crate) fn put_back(&mut self, group: u64, thing: T) {
        let waiting = self.groups.entry(group).or_default();
        if !waiting.is_empty() {
            self.order.pop_back();
        }
        waiting.push_front(thing);
        self.order.push_front(group);
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(mut turns: Turns<char>) -> String {
        std::iter::from_fn(|| turns.pop()).map(|(_, thing)| thing).collect()
    }

    fn turns(of: &[(u64, &str)]) -> Turns<char> {
        let mut turns = Turns::default();
        of.iter().for_each(|(group, things)| things.chars().for_each(|c| turns.push(*group, c)));
        turns
    }

    #[test]
    fn groups_take_turns_and_keep_their_own_order() {
        assert_eq!(rest(turns(&[(7, "abcd"), (3, "x"), (5, "12")])), "ax1b2cd");
    }

    #[test]
    fn what_is_put_back_comes_out_first_again() {
        for taken in 0..7 {
            let mut turns = turns(&[(7, "abcd"), (3, "x"), (5, "12")]);
            (0..taken).for_each(|_| assert!(turns.pop().is_some()));
            let (group, thing) = turns.pop().unwrap();
            turns.put_back(group, thing);
            assert_eq!(rest(turns), "ax1b2cd"[taken..]);
        }
    }

    #[test]
    fn what_waits_is_counted_by_group_and_in_all() {
        let mut turns = turns(&[(7, "ab"), (3, "x")]);
        assert_eq!((turns.len(), turns.len_of(7), turns.len_of(3), turns.len_of(1)), (3, 2, 1, 0));
        turns.pop();
        turns.pop();
        assert_eq!((turns.len(), turns.len_of(7), turns.len_of(3)), (1, 1, 0));
    }
}
