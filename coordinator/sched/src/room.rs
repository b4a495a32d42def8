//! `RoomIndex`: finds the roomiest worker that fits a request in O(log n), in two dimensions.
//!
//! A treap ordered by free milli-cores (ties: the lower worker id is the greater key) in which
//! every node knows the most free memory below it. The rightmost node with enough memory has the
//! most free cores of all that have enough memory; either it fits or nothing does. The heap
//! priority is a fixed mix of the worker id, so equal contents have equal shape in every run.
//! One array of nodes, indexed by the worker's slot, serves the trees of all pools.

use std::cmp::Reverse;

use crate::ids::WorkerId;
use crate::job::NONE;
use crate::resources::Resources;
use crate::steps::step;

type Key = (u32, Reverse<WorkerId>);

#[derive(Clone, Copy, Debug)]
struct Node {
    key: Key,
    memory: u64,
    max_memory: u64,
    priority: u64,
    left: u32,
    right: u32,
}

#[derive(Debug, Default)]
pub(crate) struct RoomIndex {
    nodes: Vec<Option<Node>>,
}

impl RoomIndex {
    /// Adds a worker, which must not be in any tree, to the tree at `root`.
    pub(crate) fn insert(&mut self, root: &mut u32, slot: u32, id: WorkerId, free: Resources) {
        if self.nodes.len() <= slot as usize {
            self.nodes.resize(slot as usize + 1, None);
        }
        self.nodes[slot as usize] = Some(Node {
            key: (free.milli_cores, Reverse(id)),
            memory: free.memory_bytes,
            max_memory: free.memory_bytes,
            priority: mixed(u64::from(id.0)),
            left: NONE,
            right: NONE,
        });
        *root = self.insert_below(*root, slot);
    }

    /// Takes a worker out of the tree at `root`, if it is in a tree.
    pub(crate) fn remove(&mut self, root: &mut u32, slot: u32) {
        let Some(node) = self.nodes.get(slot as usize).copied().flatten() else {
            return;
        };
        *root = self.remove_below(*root, node.key);
        self.nodes[slot as usize] = None;
    }

    /// Whether the worker is in a tree.
    pub(crate) fn holds(&self, slot: u32) -> bool {
        self.nodes.get(slot as usize).is_some_and(Option::is_some)
    }

    /// The worker with the most free cores of those that `need` fits, and those cores.
    pub(crate) fn roomiest(&self, root: u32, need: Resources) -> Option<(Key, u32)> {
        let mut at = root;
        loop {
            let node = self.node(at)?;
            if node.max_memory < need.memory_bytes {
                return None;
            }
            let right = self.node(node.right);
            if right.is_some_and(|right| right.max_memory >= need.memory_bytes) {
                at = node.right;
            } else if node.memory >= need.memory_bytes {
                return (node.key.0 >= need.milli_cores).then_some((node.key, at));
            } else {
                at = node.left;
            }
        }
    }

    fn node(&self, at: u32) -> Option<&Node> {
        step();
        self.nodes.get(at as usize)?.as_ref()
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        self.nodes[at as usize].as_mut().expect("a node of the tree")
    }

    fn max_memory(&self, at: u32) -> u64 {
        self.node(at).map_or(0, |node| node.max_memory)
    }

    fn refresh(&mut self, at: u32) {
        let node = *self.node_mut(at);
        let below = self.max_memory(node.left).max(self.max_memory(node.right));
        self.node_mut(at).max_memory = node.memory.max(below);
    }

    fn insert_below(&mut self, root: u32, new: u32) -> u32 {
        let added = *self.node_mut(new);
        let Some(&node) = self.node(root) else {
            return new;
        };
        if added.priority > node.priority {
            let (left, right) = self.split(root, added.key);
            let added = self.node_mut(new);
            (added.left, added.right) = (left, right);
            self.refresh(new);
            return new;
        }
        if added.key < node.key {
            let left = self.insert_below(node.left, new);
            self.node_mut(root).left = left;
        } else {
            let right = self.insert_below(node.right, new);
            self.node_mut(root).right = right;
        }
        self.refresh(root);
        root
    }

    /// Trees of the keys below `key` and of the others.
    fn split(&mut self, root: u32, key: Key) -> (u32, u32) {
        let Some(&node) = self.node(root) else {
            return (NONE, NONE);
        };
        if node.key < key {
            let (left, right) = self.split(node.right, key);
            self.node_mut(root).right = left;
            self.refresh(root);
            (root, right)
        } else {
            let (left, right) = self.split(node.left, key);
            self.node_mut(root).left = right;
            self.refresh(root);
            (left, root)
        }
    }

    fn remove_below(&mut self, root: u32, key: Key) -> u32 {
        let Some(&node) = self.node(root) else {
            return NONE;
        };
        if node.key == key {
            return self.merge(node.left, node.right);
        }
        if key < node.key {
            let left = self.remove_below(node.left, key);
            self.node_mut(root).left = left;
        } else {
            let right = self.remove_below(node.right, key);
            self.node_mut(root).right = right;
        }
        self.refresh(root);
        root
    }

    /// One tree of two; every key on the left is below every key on the right.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        let (Some(&l), Some(&r)) = (self.node(left), self.node(right)) else {
            return if left == NONE { right } else { left };
        };
        if l.priority > r.priority {
            let merged = self.merge(l.right, right);
            self.node_mut(left).right = merged;
            self.refresh(left);
            left
        } else {
            let merged = self.merge(left, r.left);
            self.node_mut(right).left = merged;
            self.refresh(right);
            right
        }
    }
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection that looks random.
fn mixed(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_finds_what_a_scan_over_all_workers_finds(
            steps in prop::collection::vec((0u32..40, 0u32..8, 0u64..8, any::<bool>()), 1..200),
            need in (0u32..9, 0u64..9),
        ) {
            let need = Resources::new(need.0, need.1);
            let (mut index, mut root) = (RoomIndex::default(), NONE);
            let mut plain: Vec<Option<Resources>> = vec![None; 40];
            for (slot, cores, memory, add) in steps {
                index.remove(&mut root, slot);
                plain[slot as usize] = None;
                if add {
                    let free = Resources::new(cores, memory);
                    index.insert(&mut root, slot, WorkerId(slot), free);
                    plain[slot as usize] = Some(free);
                }
                let expected = (0..40u32)
                    .filter_map(|slot| Some((slot, plain[slot as usize]?)))
                    .filter(|(_, free)| need.fits(*free))
                    .max_by_key(|(slot, free)| (free.milli_cores, Reverse(*slot)))
                    .map(|(slot, _)| slot);
                let found = index.roomiest(root, need).map(|(_, slot)| slot);
                prop_assert_eq!(found, expected);
            }
        }
    }
}
