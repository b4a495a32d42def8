//! The queue: which execution is next.
//!
//! Executions with equal requests (selector, resources, workers to avoid) form a **shape**; a shape's executions
//! of one user and class form a **lane**, first come, first served. All lanes of a user in a class
//! share an **account** with a virtual time: a start advances it by the cores reserved times the
//! usual run time of that account, and the account that is behind comes first (start-time fair
//! queueing, Goyal, Vin, Cheng 1996). A shape for which there is no room is **closed** until room
//! appears, so a decision looks at the first of the open shapes and never walks over executions.
//!
//! Order: lanes that started nothing for `ageing` (longest first), then class, virtual time, age.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::Need;
use crate::ids::{SelectorId, Time, UserId};
use crate::numbered::Numbered;
use crate::resources::Resources;
use crate::slab::Slab;
use crate::tried::Tried;

/// What is assumed of the run time of a user of whom nothing is known.
const FIRST_GUESS_MS: u64 = 1_000;

/// Executions that arrived one after the other and are kept together.
const EXECUTIONS_A_PAGE: usize = 32;

/// Place of a lane's head in the order; the least is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// 0 for starved lanes, else the class plus 1.
    level: u16,
    /// When it was starved, or the account's virtual time.
    tag: u64,
    seq: u64,
    pub(crate) lane: u32,
}

/// Whose an execution is, for the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) class: u8,
    pub(crate) user: UserId,
}

/// What the executions of a shape have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ShapeKey {
    selector: SelectorId,
    resources: Resources,
    sharing: Sharing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sharing {
    /// All requests are equal, and they avoid the same workers.
    Exact(Tried),
    /// Nearly equal requests, rounded up; either all of them avoid some workers or none does.
    Rounded { avoiding: bool },
}

#[derive(Debug)]
pub(crate) struct Shape {
    key: ShapeKey,
    ranks: BTreeSet<Rank>,
    listed: Option<Rank>,
    open: bool,
    /// Since when no online worker could ever take it.
    pub(crate) hopeless_since: Option<Time>,
    /// Since when later ones were preferred because it did not fit.
    overtaken_since: Option<Time>,
    /// Worker (slot) kept free for it.
    pub(crate) reserved: Option<u32>,
    timers: [Option<Time>; 2],
}

#[derive(Debug)]
struct Lane {
    shape: u32,
    account: u32,
    executions: Numbered<u32, EXECUTIONS_A_PAGE>,
    rank: Rank,
    served_at: Time,
    starved: bool,
    timer: Time,
}

#[derive(Debug)]
struct Account {
    owner: Owner,
    virtual_time: u64,
    usual_ms: u64,
    lanes: BTreeSet<u32>,
}

#[derive(Debug, Default)]
struct Class {
    virtual_time: u64,
    /// Accounts with lanes.
    busy: u32,
    /// Accounts without, by virtual time: forgotten when the class has caught up.
    idle: BTreeSet<(u64, u32)>,
}

/// What a timer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A shape may have been overtaken for too long.
    Reserve(u32),
    /// Executions of a hopeless shape may have waited for too long.
    Expire(u32),
    /// A lane may be starved; handled here.
    Starve(u32),
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) shapes: Slab<Shape>,
    shape_ids: BTreeMap<ShapeKey, u32>,
    lanes: Slab<Lane>,
    lane_ids: BTreeMap<(u32, u32), u32>,
    accounts: Slab<Account>,
    account_ids: BTreeMap<Owner, u32>,
    classes: BTreeMap<u8, Class>,
    order: BTreeSet<Rank>,
    closed: BTreeSet<u32>,
    timers: BTreeSet<(Time, Due)>,
    released: Vec<u32>,
    pub(crate) len: usize,
    max_exact_shapes: usize,
    ageing_ms: u64,
}

impl Queue {
    pub(crate) fn new(max_exact_shapes: usize, ageing_ms: u64) -> Self {
        Self { max_exact_shapes, ageing_ms, ..Self::default() }
    }

    /// Puts an execution into its lane, by `seq`; returns the lane.
    pub(crate) fn push(&mut self, now: Time, id: u32, seq: u64, owner: Owner, need: Need) -> u32 {
        let shape = self.shape(need);
        let account = self.account(owner);
        let lane = match self.lane_ids.get(&(shape, account)) {
            Some(&lane) => lane,
            None => self.new_lane(now, shape, account, seq),
        };
        self.len += 1;
        self.lanes[lane].executions.insert(seq, id);
        self.rerank(lane);
        lane
    }

    fn new_lane(&mut self, now: Time, shape: u32, account: u32, seq: u64) -> u32 {
        let timer = now.plus_ms(self.ageing_ms);
        let lane = self.lanes.insert(Lane {
            shape,
            account,
            executions: Numbered::default(),
            rank: Rank { level: 0, tag: 0, seq, lane: 0 },
            served_at: now,
            starved: false,
            timer,
        });
        self.timers.insert((timer, Due::Starve(lane)));
        self.lane_ids.insert((shape, account), lane);
        let Account { owner, virtual_time, lanes, .. } = &mut self.accounts[account];
        if lanes.is_empty() {
            let class = self.classes.entry(owner.class).or_default();
            class.idle.remove(&(*virtual_time, account));
            class.busy += 1;
            *virtual_time = class.virtual_time.max(*virtual_time);
        }
        lanes.insert(lane);
        lane
    }

    fn shape(&mut self, need: Need) -> u32 {
        let Need { selector, resources, avoid } = need;
        let exact = ShapeKey { selector, resources, sharing: Sharing::Exact(avoid) };
        if let Some(&shape) = self.shape_ids.get(&exact) {
            return shape;
        }
        let key = if self.shapes.len() < self.max_exact_shapes {
            exact
        } else {
            let sharing = Sharing::Rounded { avoiding: !avoid.is_empty() };
            ShapeKey { selector, resources: resources.rounded_up(), sharing }
        };
        if let Some(&shape) = self.shape_ids.get(&key) {
            return shape;
        }
        let shape = self.shapes.insert(Shape {
            key,
            ranks: BTreeSet::new(),
            listed: None,
            open: true,
            hopeless_since: None,
            overtaken_since: None,
            reserved: None,
            timers: [None; 2],
        });
        self.shape_ids.insert(key, shape);
        shape
    }

    fn account(&mut self, owner: Owner) -> u32 {
        if let Some(&account) = self.account_ids.get(&owner) {
            return account;
        }
        let class = self.classes.entry(owner.class).or_default();
        let account = self.accounts.insert(Account {
            owner,
            virtual_time: class.virtual_time,
            usual_ms: FIRST_GUESS_MS,
            lanes: BTreeSet::new(),
        });
        class.idle.insert((class.virtual_time, account));
        self.account_ids.insert(owner, account);
        account
    }

    /// Takes an execution out that is not started (now).
    pub(crate) fn remove(&mut self, lane: u32, seq: u64) {
        self.take_out(lane, seq);
        self.rerank(lane);
    }

    fn take_out(&mut self, lane: u32, seq: u64) {
        if self.lanes[lane].executions.remove(seq).is_some() {
            self.len -= 1;
        }
    }

    /// Takes an execution out because it starts.
    pub(crate) fn start(&mut self, now: Time, lane: u32, seq: u64, milli_cores: u32) {
        let Lane { account, shape, served_at, starved, .. } = &mut self.lanes[lane];
        (*served_at, *starved) = (now, false);
        let account = *account;
        let shape = &mut self.shapes[*shape];
        shape.overtaken_since = None;
        self.released.extend(shape.reserved.take());
        self.take_out(lane, seq);
        self.charge(account, milli_cores, Some(lane));
        self.rerank(lane);
    }

    /// Accounts for a start outside the lanes.
    pub(crate) fn start_aside(&mut self, owner: Owner, milli_cores: u32) {
        let account = self.account(owner);
        self.charge(account, milli_cores, None);
        self.forget_idle(owner.class);
    }

    /// Moves an account on; the caller reranks the lane `except`.
    fn charge(&mut self, id: u32, milli_cores: u32, except: Option<u32>) {
        let account = &mut self.accounts[id];
        let class = self.classes.entry(account.owner.class).or_default();
        let before = account.virtual_time;
        let cost = u64::from(milli_cores.max(1)).saturating_mul(account.usual_ms.max(1));
        account.virtual_time = before.saturating_add(cost);
        if account.lanes.is_empty() {
            class.idle.remove(&(before, id));
            class.idle.insert((account.virtual_time, id));
            return;
        }
        class.virtual_time = class.virtual_time.max(before);
        let lanes = std::mem::take(&mut account.lanes);
        for &lane in lanes.iter().filter(|lane| Some(**lane) != except) {
            self.rerank(lane);
        }
        self.accounts[id].lanes = lanes;
    }

    /// Learns how long an account's work runs: an average in which the last run counts an eighth.
    pub(crate) fn learn(&mut self, owner: Owner, ran_ms: u64) {
        if let Some(&account) = self.account_ids.get(&owner) {
            let usual = &mut self.accounts[account].usual_ms;
            *usual = usual.saturating_mul(7).saturating_add(ran_ms) / 8;
        }
    }

    /// Brings a lane's place in the order up to date; an empty lane goes.
    fn rerank(&mut self, id: u32) {
        let lane = &mut self.lanes[id];
        let shape = &mut self.shapes[lane.shape];
        if matches!(shape.key.sharing, Sharing::Rounded { .. }) && !shape.open {
            // Its requests differ: there may be room for what is the head now.
            shape.open = true;
            self.closed.remove(&lane.shape);
        }
        let old = lane.rank;
        let Some((seq, _)) = lane.executions.first() else {
            shape.ranks.remove(&old);
            let shape = lane.shape;
            self.drop_lane(id);
            self.relist(shape);
            return;
        };
        let account = &self.accounts[lane.account];
        let (level, tag) = match lane.starved {
            true => (0, lane.served_at.0),
            false => (u16::from(account.owner.class) + 1, account.virtual_time),
        };
        lane.rank = Rank { level, tag, seq, lane: id };
        if lane.rank != old || !shape.ranks.contains(&old) {
            shape.ranks.remove(&old);
            shape.ranks.insert(lane.rank);
        }
        let shape = lane.shape;
        self.relist(shape);
    }

    fn drop_lane(&mut self, id: u32) {
        let Some(lane) = self.lanes.remove(id) else {
            return;
        };
        self.timers.remove(&(lane.timer, Due::Starve(id)));
        self.lane_ids.remove(&(lane.shape, lane.account));
        let account = &mut self.accounts[lane.account];
        account.lanes.remove(&id);
        if account.lanes.is_empty() {
            let owner = account.owner;
            let class = self.classes.entry(owner.class).or_default();
            class.busy -= 1;
            class.idle.insert((account.virtual_time, lane.account));
            self.forget_idle(owner.class);
        }
    }

    /// Forgets idle accounts whose past no longer matters.
    fn forget_idle(&mut self, class: u8) {
        let Some(state) = self.classes.get_mut(&class) else {
            return;
        };
        while let Some(&(virtual_time, account)) = state.idle.first()
            && (state.busy == 0 || virtual_time <= state.virtual_time)
        {
            state.idle.pop_first();
            if let Some(account) = self.accounts.remove(account) {
                self.account_ids.remove(&account.owner);
            }
        }
        if state.busy == 0 {
            self.classes.remove(&class);
        }
    }

    /// Brings a shape's place in the order up to date; an empty shape goes.
    fn relist(&mut self, id: u32) {
        let shape = &mut self.shapes[id];
        let head = shape.ranks.first().copied();
        let listed = head.filter(|_| shape.open);
        if shape.listed != listed {
            if let Some(old) = shape.listed {
                self.order.remove(&old);
            }
            self.order.extend(listed);
            shape.listed = listed;
        }
        if head.is_none() {
            self.closed.remove(&id);
            if let Some(mut shape) = self.shapes.remove(id) {
                self.released.extend(shape.reserved.take());
                self.shape_ids.remove(&shape.key);
                for (timer, due) in
                    shape.timers.into_iter().zip([Due::Reserve(id), Due::Expire(id)])
                {
                    timer.map(|at| self.timers.remove(&(at, due)));
                }
            }
        }
    }

    /// The next in order of the open shapes: rank, shape, execution.
    pub(crate) fn next(&self) -> Option<(Rank, u32, u32)> {
        let rank = *self.order.first()?;
        let lane = &self.lanes[rank.lane];
        let (_, &execution) = lane.executions.first()?;
        Some((rank, lane.shape, execution))
    }

    /// The next in order within a shape.
    pub(crate) fn head(&self, shape: u32) -> Option<u32> {
        let rank = self.shapes.get(shape)?.ranks.first()?;
        self.lanes[rank.lane].executions.first().map(|(_, &execution)| execution)
    }

    /// The first of every lane of a shape.
    pub(crate) fn heads(&self, shape: u32) -> impl Iterator<Item = u32> {
        let lanes = self.shapes[shape].ranks.iter().map(|rank| &self.lanes[rank.lane]);
        lanes.filter_map(|lane| lane.executions.first().map(|(_, &execution)| execution))
    }

    /// Whether the executions of a shape avoid different workers: none can be kept free for all.
    pub(crate) fn avoids_variously(&self, shape: u32) -> bool {
        self.shapes[shape].key.sharing == Sharing::Rounded { avoiding: true }
    }

    /// The shape of a lane.
    pub(crate) fn shape_of(&self, lane: u32) -> u32 {
        self.lanes[lane].shape
    }

    /// Marks that there is room for a shape, or none.
    pub(crate) fn set_open(&mut self, id: u32, open: bool) {
        self.shapes[id].open = open;
        match open {
            true => self.closed.remove(&id),
            false => self.closed.insert(id),
        };
        self.relist(id);
    }

    pub(crate) fn closed(&self) -> impl Iterator<Item = u32> {
        self.closed.iter().copied()
    }

    /// Whether the head of a closed shape comes before `rank` in the order.
    pub(crate) fn is_before(&self, shape: u32, rank: Rank) -> bool {
        self.shapes[shape].ranks.first().is_some_and(|first| *first < rank)
    }

    /// Notes that a shape was overtaken, and looks again after `reserve_after_ms`.
    pub(crate) fn overtaken(&mut self, now: Time, id: u32, reserve_after_ms: u64) {
        let shape = &mut self.shapes[id];
        if shape.overtaken_since.is_none() {
            shape.overtaken_since = Some(now);
            self.look_again(Due::Reserve(id), now.plus_ms(reserve_after_ms));
        }
    }

    /// Since when later ones were preferred to this shape.
    pub(crate) fn overtaken_since(&self, id: u32) -> Option<Time> {
        self.shapes[id].overtaken_since
    }

    /// Sets the one timer of this kind for a shape.
    pub(crate) fn look_again(&mut self, due: Due, at: Time) {
        let timer = match due {
            Due::Reserve(id) => &mut self.shapes[id].timers[0],
            Due::Expire(id) => &mut self.shapes[id].timers[1],
            Due::Starve(_) => return,
        };
        if let Some(old) = timer.replace(at) {
            self.timers.remove(&(old, due));
        }
        self.timers.insert((at, due));
    }

    /// Workers that need not be kept free any more.
    pub(crate) fn take_released(&mut self) -> Option<u32> {
        self.released.pop()
    }

    pub(crate) fn next_timer(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes one timer that has come; starved lanes are moved up here (`ages`: always, but for a
    /// planted bug).
    pub(crate) fn pop_due(&mut self, now: Time, ages: bool) -> Option<Due> {
        while let Some(&(at, due)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            match due {
                Due::Reserve(id) => self.shapes[id].timers[0] = None,
                Due::Expire(id) => self.shapes[id].timers[1] = None,
                Due::Starve(id) => {
                    self.age(now, id, ages);
                    continue;
                }
            }
            return Some(due);
        }
        None
    }

    /// Timers of lanes are not moved at every start; so this may come too early.
    fn age(&mut self, now: Time, id: u32, ages: bool) {
        let lane = &mut self.lanes[id];
        let starves_at = lane.served_at.plus_ms(self.ageing_ms);
        lane.starved = ages && starves_at <= now;
        lane.timer = match starves_at <= now {
            true => now.plus_ms(self.ageing_ms.max(1)),
            false => starves_at,
        };
        self.timers.insert((lane.timer, Due::Starve(id)));
        self.rerank(id);
    }

    /// Every queued execution with its lane.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u64, u32)> {
        self.lanes.iter().flat_map(|(id, lane)| {
            lane.executions.iter().map(move |(seq, &execution)| (id, seq, execution))
        })
    }
}
