//! The workers: pools of equal properties, the selectors that match them, and who has room.
//!
//! A question about room costs O(pools the selector matches × log workers); pools are few, since
//! workers of one kind offer equal properties. A worker that drains, or is kept free for one
//! request, is in no index: it is never found, only asked for by slot.
//!
//! A worker that only went wrong for a while is **suspect**: it is found only if no other has room,
//! and not while it runs anything, until an attempt shows that it can run jobs.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{AttemptEnd, Blame, NoWorkerReason};
use crate::graph::Need;
use crate::ids::{AttemptId, SelectorId, StoreId, WorkerId};
use crate::job::NONE;
use crate::resources::Resources;
use crate::room::RoomIndex;
use crate::slab::Slab;
use crate::tried::Tried;

type Properties = BTreeMap<String, String>;

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) store: StoreId,
    pub(crate) pool: u32,
    pub(crate) capacity: Resources,
    pub(crate) free: Resources,
    pub(crate) draining: bool,
    /// The shape this worker is kept free for.
    pub(crate) reserved_for: Option<u32>,
    pub(crate) attempts: BTreeSet<AttemptId>,
    /// Executions (by queue number and slot) that wait for this worker's locality.
    pub(crate) line: BTreeSet<(u64, u32)>,
    /// Infrastructure errors it may be to blame for, since an attempt showed that it runs jobs.
    errors_in_row: u32,
    pub(crate) suspect: bool,
}

impl Worker {
    /// It runs the one attempt that shows whether it can run jobs again.
    pub(crate) fn on_probe(&self) -> bool {
        self.suspect && !self.attempts.is_empty()
    }

    /// Whether it belongs into the index of rooms.
    fn takes_any(&self) -> bool {
        !self.draining && self.reserved_for.is_none() && !self.on_probe()
    }
}

#[derive(Debug)]
struct Pool {
    properties: Properties,
    members: BTreeSet<u32>,
    /// Distinct capacities of members that take jobs, with their number.
    capacities: BTreeMap<Resources, u32>,
    root: u32,
    suspect_root: u32,
}

impl Pool {
    fn root_of(&mut self, suspect: bool) -> &mut u32 {
        if suspect { &mut self.suspect_root } else { &mut self.root }
    }
}

#[derive(Debug, Default)]
struct Selector {
    properties: Properties,
    pools: BTreeSet<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pub(crate) workers: Slab<Worker>,
    slots: BTreeMap<WorkerId, u32>,
    /// The slot of the worker on a store, or `NONE`, by the store's number.
    stores: Vec<u32>,
    pools: Slab<Pool>,
    pool_ids: BTreeMap<Properties, u32>,
    selectors: BTreeMap<SelectorId, Selector>,
    rooms: RoomIndex,
    /// Workers kept free for one request.
    pub(crate) reserved: u32,
    /// Suspect workers.
    pub(crate) suspects: u32,
    /// Free resources of the workers that take jobs.
    pub(crate) free: Resources,
}

impl Fleet {
    /// Adds a worker; `None` if the session is known.
    pub(crate) fn join(
        &mut self,
        id: WorkerId,
        store: StoreId,
        properties: Properties,
        capacity: Resources,
        draining: bool,
    ) -> Option<u32> {
        if self.slots.contains_key(&id) {
            return None;
        }
        let pool = self.pool(properties);
        let slot = self.workers.insert(Worker {
            id,
            store,
            pool,
            capacity,
            free: capacity,
            draining,
            reserved_for: None,
            attempts: BTreeSet::new(),
            line: BTreeSet::new(),
            errors_in_row: 0,
            suspect: false,
        });
        self.slots.insert(id, slot);
        if self.stores.len() <= store.0 as usize {
            self.stores.resize(store.0 as usize + 1, NONE);
        }
        self.stores[store.0 as usize] = slot;
        self.pools[pool].members.insert(slot);
        if !draining {
            self.open(slot);
        }
        Some(slot)
    }

    /// Takes a worker out.
    pub(crate) fn leave(&mut self, slot: u32) -> Option<Worker> {
        self.drain(slot);
        let worker = self.workers.remove(slot)?;
        self.suspects -= u32::from(worker.suspect);
        self.slots.remove(&worker.id);
        if let Some(of_store) = self.stores.get_mut(worker.store.0 as usize)
            && *of_store == slot
        {
            *of_store = NONE;
        }
        let pool = &mut self.pools[worker.pool];
        pool.members.remove(&slot);
        if pool.members.is_empty()
            && let Some(pool) = self.pools.remove(worker.pool)
        {
            self.pool_ids.remove(&pool.properties);
            for selector in self.selectors.values_mut() {
                selector.pools.remove(&worker.pool);
            }
        }
        Some(worker)
    }

    /// Makes a worker take no more jobs. It must not be reserved.
    pub(crate) fn drain(&mut self, slot: u32) {
        let worker = &self.workers[slot];
        if worker.draining {
            return;
        }
        let (capacity, free, pool) = (worker.capacity, worker.free, worker.pool);
        self.unlist(slot);
        let pool = &mut self.pools[pool];
        if let Some(count) = pool.capacities.get_mut(&capacity) {
            *count -= 1;
            if *count == 0 {
                pool.capacities.remove(&capacity);
            }
        }
        self.free = self.free.minus(free).unwrap_or_default();
        self.workers[slot].draining = true;
    }

    fn open(&mut self, slot: u32) {
        let worker = &self.workers[slot];
        let pool = &mut self.pools[worker.pool];
        *pool.capacities.entry(worker.capacity).or_default() += 1;
        self.free = self.free.plus(worker.free);
        self.list(slot);
    }

    /// Puts a worker into the index of rooms, if it belongs there.
    fn list(&mut self, slot: u32) {
        let worker = &self.workers[slot];
        if worker.takes_any() {
            let root = self.pools[worker.pool].root_of(worker.suspect);
            self.rooms.insert(root, slot, worker.id, worker.free);
        }
    }

    /// Takes a worker out of the index of rooms; to be done before anything about it changes.
    fn unlist(&mut self, slot: u32) {
        let worker = &self.workers[slot];
        let root = self.pools[worker.pool].root_of(worker.suspect);
        self.rooms.remove(root, slot);
    }

    fn pool(&mut self, properties: Properties) -> u32 {
        if let Some(&pool) = self.pool_ids.get(&properties) {
            return pool;
        }
        let pool = self.pools.insert(Pool {
            properties: properties.clone(),
            members: BTreeSet::new(),
            capacities: BTreeMap::new(),
            root: NONE,
            suspect_root: NONE,
        });
        for selector in self.selectors.values_mut() {
            if includes(&properties, &selector.properties) {
                selector.pools.insert(pool);
            }
        }
        self.pool_ids.insert(properties, pool);
        pool
    }

    pub(crate) fn define(&mut self, id: SelectorId, properties: Properties) {
        let matching = |(_, pool): &(u32, &Pool)| includes(&pool.properties, &properties);
        let pools = self.pools.iter().filter(matching).map(|(id, _)| id).collect();
        self.selectors.insert(id, Selector { properties, pools });
    }

    pub(crate) fn slot(&self, id: WorkerId) -> Option<u32> {
        self.slots.get(&id).copied()
    }

    pub(crate) fn slot_of_store(&self, store: StoreId) -> Option<u32> {
        self.stores.get(store.0 as usize).copied().filter(|slot| *slot != NONE)
    }

    pub(crate) fn matches(&self, selector: SelectorId, slot: u32) -> bool {
        let selector = self.selectors.get(&selector);
        selector.is_some_and(|selector| selector.pools.contains(&self.workers[slot].pool))
    }

    /// Whether a worker could take `need` now.
    pub(crate) fn has_room(&self, slot: u32, need: Need) -> bool {
        self.rooms.holds(slot)
            && need.resources.fits(self.workers[slot].free)
            && !need.avoid.contains(self.workers[slot].store)
            && self.matches(need.selector, slot)
    }

    /// Whether a worker could take `need` if it ran nothing else.
    pub(crate) fn could_take(&self, slot: u32, need: Need) -> bool {
        let worker = &self.workers[slot];
        !worker.draining
            && need.resources.fits(worker.capacity)
            && !need.avoid.contains(worker.store)
            && self.matches(need.selector, slot)
    }

    /// Whether it is worth waiting for a worker that could take `need`.
    pub(crate) fn trusts_with(&self, slot: u32, need: Need) -> bool {
        !self.workers[slot].suspect && self.could_take(slot, need)
    }

    /// Whether a worker that `need` does not avoid could take it if it ran nothing else.
    pub(crate) fn could_elsewhere(&self, need: Need) -> bool {
        let anywhere = Need { avoid: Tried::default(), ..need };
        let slots = need.avoid.iter().filter_map(|store| self.slot_of_store(store));
        let avoided = slots.filter(|slot| self.could_take(*slot, anywhere)).count();
        let pools = self.selectors.get(&need.selector).map(|selector| &selector.pools);
        let capacities = pools.into_iter().flatten().flat_map(|pool| &self.pools[*pool].capacities);
        let fitting = capacities.filter(|(capacity, _)| need.resources.fits(**capacity));
        fitting.map(|(_, count)| *count as usize).sum::<usize>() > avoided
    }

    /// Takes note of how an attempt on a worker ended. An end that says nothing about the worker
    /// (cancelled, rejected, inputs at fault) changes nothing.
    pub(crate) fn judge(&mut self, slot: u32, end: AttemptEnd, suspect_after: u32) {
        let errors = match end {
            AttemptEnd::Succeeded
            | AttemptEnd::Failed
            | AttemptEnd::TimedOut
            | AttemptEnd::OutOfMemory => 0,
            AttemptEnd::Infra { blame: Blame::Worker | Blame::Unknown, lost_inputs: false } => {
                self.workers[slot].errors_in_row.saturating_add(1)
            }
            AttemptEnd::Infra { .. } | AttemptEnd::Cancelled | AttemptEnd::Rejected => return,
        };
        let suspect = errors >= suspect_after.max(1);
        if suspect != self.workers[slot].suspect {
            self.unlist(slot);
            self.workers[slot].suspect = suspect;
            self.list(slot);
            match suspect {
                true => self.suspects += 1,
                false => self.suspects -= 1,
            }
        }
        self.workers[slot].errors_in_row = errors;
    }

    /// The worker with the most free cores that could take `need` now; suspect ones come last. Costs
    /// as much again for every worker that `need` avoids and would have got.
    pub(crate) fn roomiest(&mut self, need: Need) -> Option<u32> {
        let mut avoided = Vec::new();
        let found = loop {
            let found = self.roomiest_of(need, false).or_else(|| self.roomiest_of(need, true));
            match found {
                Some(slot) if need.avoid.contains(self.workers[slot].store) => {
                    self.unlist(slot);
                    avoided.push(slot);
                }
                found => break found,
            }
        };
        avoided.into_iter().for_each(|slot| self.list(slot));
        found
    }

    fn roomiest_of(&self, need: Need, suspect: bool) -> Option<u32> {
        let pools = self.selectors.get(&need.selector).map(|selector| &selector.pools);
        let pools = pools.into_iter().flatten().map(|pool| &self.pools[*pool]);
        let roots = pools.map(|pool| if suspect { pool.suspect_root } else { pool.root });
        let best = roots.filter_map(|root| self.rooms.roomiest(root, need.resources)).max();
        best.map(|(_, slot)| slot)
    }

    /// Why no online worker, avoided or not, could ever take `need`; `None` if some could.
    pub(crate) fn why_not(&self, need: Need) -> Option<NoWorkerReason> {
        let pools = self.selectors.get(&need.selector).map(|selector| &selector.pools);
        let mut reason = NoWorkerReason::NoMatch;
        for pool in pools.into_iter().flatten() {
            for capacity in self.pools[*pool].capacities.keys() {
                if need.resources.fits(*capacity) {
                    return None;
                }
                reason = NoWorkerReason::TooBig;
            }
        }
        Some(reason)
    }

    /// Members of every pool that a selector matches, by slot within a pool.
    pub(crate) fn matching(&self, selector: SelectorId) -> impl Iterator<Item = u32> {
        let pools = self.selectors.get(&selector).map(|selector| &selector.pools);
        pools.into_iter().flatten().flat_map(|pool| &self.pools[*pool].members).copied()
    }

    /// Takes resources for an attempt. The caller knows that they fit.
    pub(crate) fn take(&mut self, slot: u32, attempt: AttemptId, resources: Resources) {
        self.unlist(slot);
        let worker = &mut self.workers[slot];
        worker.attempts.insert(attempt);
        let left = worker.free.minus(resources).unwrap_or_default();
        self.set_free(slot, left);
    }

    /// Gives an attempt's resources back.
    pub(crate) fn give(&mut self, slot: u32, attempt: AttemptId, resources: Resources) {
        self.unlist(slot);
        let worker = &mut self.workers[slot];
        worker.attempts.remove(&attempt);
        let left = worker.free.plus(resources);
        self.set_free(slot, left);
    }

    /// The worker is not in the index of rooms; it is put there.
    fn set_free(&mut self, slot: u32, free: Resources) {
        let worker = &mut self.workers[slot];
        let before = std::mem::replace(&mut worker.free, free);
        if !worker.draining {
            self.free = self.free.minus(before).unwrap_or_default().plus(free);
        }
        self.list(slot);
    }

    /// Keeps a worker free for a shape, or stops doing so.
    pub(crate) fn reserve(&mut self, slot: u32, shape: Option<u32>) {
        self.unlist(slot);
        match (std::mem::replace(&mut self.workers[slot].reserved_for, shape), shape) {
            (None, Some(_)) => self.reserved += 1,
            (Some(_), None) => self.reserved -= 1,
            _ => {}
        }
        self.list(slot);
    }

    /// Recomputes what is kept incrementally.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut free = Resources::default();
        let (mut reserved, mut suspects) = (0, 0);
        for (slot, worker) in self.workers.iter() {
            if self.rooms.holds(slot) != worker.takes_any() {
                return Err(format!("worker {:?} is wrongly (not) in the room index", worker.id));
            }
            if self.slots.get(&worker.id) != Some(&slot) {
                return Err(format!("worker {:?} has no slot", worker.id));
            }
            if !worker.draining {
                free = free.plus(worker.free);
            }
            reserved += u32::from(worker.reserved_for.is_some());
            suspects += u32::from(worker.suspect);
        }
        if suspects != self.suspects {
            return Err(format!("{suspects} workers are suspect, {} counted", self.suspects));
        }
        if (free, reserved) != (self.free, self.reserved) {
            return Err(format!("free {} or reserved {} is wrong", self.free, self.reserved));
        }
        for selector in self.selectors.values() {
            for (id, pool) in self.pools.iter() {
                let matches = includes(&pool.properties, &selector.properties);
                if selector.pools.contains(&id) != matches {
                    return Err(format!("pool {id} is wrongly (not) matched"));
                }
            }
        }
        Ok(())
    }
}

fn includes(offered: &Properties, asked: &Properties) -> bool {
    asked.iter().all(|(name, value)| offered.get(name) == Some(value))
}
