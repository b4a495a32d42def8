//! Topological order by depth-first search, without recursion: a chain of a million jobs is no
//! deeper for the stack than one job.

/// The order found, and the cycles that keep it from being topological.
pub(super) struct Order {
    /// Every node once, dependencies first; among the rest, the order of the numbers.
    pub(super) nodes: Vec<u32>,
    /// The first cycles found.
    pub(super) cycles: Vec<Cycle>,
    /// How many dependencies close a cycle.
    pub(super) cycle_count: usize,
}

/// Nodes of which each needs the next, and the last the first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cycle {
    /// The first nodes, at most [`Cycle::SHOWN`]; the very first has the smallest number.
    pub(super) nodes: Vec<u32>,
    /// How many nodes there are in all.
    pub(super) length: usize,
}

impl Cycle {
    /// A cycle can be as long as the graph; a message cannot.
    pub(super) const SHOWN: usize = 16;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    OnPath,
    Done,
}

/// Orders the nodes `0..count`, `dep` being a node's dependency at a position; lists at most `listed`
/// cycles and counts the rest.
pub(super) fn order(count: usize, dep: impl Fn(u32, usize) -> Option<u32>, listed: usize) -> Order {
    let mut order = Order { nodes: Vec::with_capacity(count), cycles: Vec::new(), cycle_count: 0 };
    let mut marks = vec![Mark::New; count];
    // The path from a root to the node at hand, with the number of dependencies that are done.
    let mut path: Vec<(u32, usize)> = Vec::new();
    for root in 0..count as u32 {
        if marks[root as usize] != Mark::New {
            continue;
        }
        marks[root as usize] = Mark::OnPath;
        path.push((root, 0));
        while let Some((node, done)) = path.last_mut() {
            let Some(dep) = dep(*node, *done) else {
                marks[*node as usize] = Mark::Done;
                order.nodes.push(*node);
                path.pop();
                continue;
            };
            *done += 1;
            match marks[dep as usize] {
                Mark::New => {
                    marks[dep as usize] = Mark::OnPath;
                    path.push((dep, 0));
                }
                Mark::OnPath => {
                    order.cycle_count += 1;
                    if order.cycles.len() < listed {
                        order.cycles.push(cycle(&path, dep));
                    }
                }
                Mark::Done => {}
            }
        }
    }
    order
}

/// The end of the path from `first` on, turned so that it starts with its smallest node.
fn cycle(path: &[(u32, usize)], first: u32) -> Cycle {
    let start = path.iter().rposition(|(node, _)| *node == first).unwrap_or(0);
    let turn = &path[start..];
    let smallest = turn.iter().enumerate().min_by_key(|(_, (node, _))| *node);
    let smallest = smallest.map_or(0, |(at, _)| at);
    let nodes = turn[smallest..].iter().chain(&turn[..smallest]);
    Cycle { nodes: nodes.take(Cycle::SHOWN).map(|(node, _)| *node).collect(), length: turn.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(deps: &[&[u32]]) -> Order {
        order(deps.len(), |node, at| deps[node as usize].get(at).copied(), 10)
    }

    #[test]
    fn a_sorted_graph_keeps_its_order() {
        assert_eq!(of(&[&[], &[0], &[0], &[1, 2]]).nodes, [0, 1, 2, 3]);
    }

    #[test]
    fn dependencies_come_first() {
        let order = of(&[&[3, 1], &[2], &[], &[2]]);
        assert_eq!(order.nodes, [2, 3, 1, 0]);
        assert_eq!(order.cycle_count, 0);
    }

    #[test]
    fn a_cycle_starts_with_its_smallest_node() {
        let order = of(&[&[], &[3], &[1], &[2]]);
        assert_eq!(order.cycles, [Cycle { nodes: vec![1, 3, 2], length: 3 }]);
        assert_eq!(of(&[&[0]]).cycles, [Cycle { nodes: vec![0], length: 1 }]);
    }

    #[test]
    fn a_chain_of_a_million_does_not_overflow_the_stack() {
        let count = 1_000_000;
        let next = |node: u32, at: usize| (at == 0 && node + 1 < count).then_some(node + 1);
        let chain = order(count as usize, next, 1);
        assert_eq!(chain.nodes.first(), Some(&(count - 1)));
        assert_eq!(chain.nodes.len(), count as usize);
        let ring = order(count as usize, |node, at| (at == 0).then_some((node + 1) % count), 1);
        assert_eq!((ring.cycles[0].length, ring.cycles[0].nodes.len()), (1_000_000, 16));
    }
}
