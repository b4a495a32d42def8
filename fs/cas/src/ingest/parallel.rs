//! Work on a slice by a few threads; results come back in the order of the slice.
//!
//! Ingest waits for system calls on warm caches and for hash functions: a thread a CPU is all that
//! helps. Threads live for one call, so that nothing is left behind between builds.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// More threads than this only fight for the same directories.
const MAX_THREADS: usize = 8;

/// `work` for every item. `scratch` makes what one thread keeps between its items, such as a
/// buffer. Fewer items than `inline_below` are done by the caller's thread, because a thread costs
/// some 30 µs.
pub(super) fn map<T, S, R>(
    items: &[T],
    inline_below: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &T) -> R + Sync,
) -> Vec<R>
where
    T: Sync,
    R: Send,
{
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cpus.min(MAX_THREADS).min(items.len());
    if threads < 2 || items.len() < inline_below {
        let mut scratch = scratch();
        return items.iter().map(|item| work(&mut scratch, item)).collect();
    }
    let next = AtomicUsize::new(0);
    let claim = || {
        let mut scratch = scratch();
        let mut done = Vec::new();
        while let Some((at, item)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            items.get(at).map(|item| (at, item))
        } {
            done.push((at, work(&mut scratch, item)));
        }
        done
    };
    let mut done = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(claim)).collect();
        let mut done = claim();
        for other in others {
            match other.join() {
                Ok(theirs) => done.extend(theirs),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<u64> = (0..1000).collect();
        let doubled = map(&items, 2, || (), |(), item| item * 2);
        assert_eq!(doubled, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        assert!(map(&[0u8; 0], 0, || (), |(), _| ()).is_empty());
    }
}
