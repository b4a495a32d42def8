//! Which piece a holder is asked for next. A pure state machine: time is what the caller says it is.
//!
//! In this order: pieces that a reader waits for; what is missing from the last of those on, and round
//! from the beginning, so that reading ahead follows the reader; and, if pieces may be asked of two
//! holders, one that another holder has not sent for a while. A piece is asked of two holders at most.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Neither here nor asked for.
    missing: BTreeSet<usize>,
    asked: BTreeMap<usize, Asked>,
    urgent: VecDeque<usize>,
    /// Where reading ahead goes on.
    ahead: usize,
    /// After how long a piece may be asked of a second holder; never, if there is no telling which of
    /// two answers is right.
    stall: Option<Duration>,
}

/// Of whom a piece was asked, and when of the last one.
#[derive(Debug)]
struct Asked {
    first: usize,
    second: Option<usize>,
    at: Instant,
}

/// What a holder does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Asks for this piece.
    Ask(usize),
    /// Waits until something changes, or until then.
    Wait(Option<Instant>),
    /// Nothing is left to do for anybody.
    Whole,
}

impl Plan {
    pub(crate) fn new(pieces: usize, stall: Option<Duration>) -> Self {
        Self {
            missing: (0..pieces).collect(),
            asked: BTreeMap::new(),
            urgent: VecDeque::new(),
            ahead: 0,
            stall,
        }
    }

    /// What `holder` does next. It waits for no other piece if it is `idle`.
    pub(crate) fn next(&mut self, now: Instant, holder: usize, idle: bool) -> Next {
        if let Some(piece) = self.next_missing() {
            self.missing.remove(&piece);
            self.asked.insert(piece, Asked { first: holder, second: None, at: now });
            return Next::Ask(piece);
        }
        if self.asked.is_empty() {
            return Next::Whole;
        }
        let Some(stall) = self.stall.filter(|_| idle) else { return Next::Wait(None) };
        let others = self.asked.iter_mut().filter(|(_, asked)| asked.is_open_to(holder));
        match others.min_by_key(|(_, asked)| asked.at) {
            Some((piece, asked)) if now >= asked.at + stall => {
                asked.second = Some(holder);
                asked.at = now;
                Next::Ask(*piece)
            }
            slow => Next::Wait(slow.map(|(_, asked)| asked.at + stall)),
        }
    }

    fn next_missing(&mut self) -> Option<usize> {
        while let Some(urgent) = self.urgent.pop_front() {
            if self.missing.contains(&urgent) {
                return Some(urgent);
            }
        }
        let ahead = self.missing.range(self.ahead..).next();
        ahead.or_else(|| self.missing.first()).copied()
    }

    /// A piece is here.
    pub(crate) fn arrived(&mut self, piece: usize) {
        self.asked.remove(&piece);
        self.missing.remove(&piece);
    }

    /// Whether a piece is here.
    pub(crate) fn has(&self, piece: usize) -> bool {
        !self.missing.contains(&piece) && !self.asked.contains_key(&piece)
    }

    /// Whether every piece is here.
    pub(crate) fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.asked.is_empty()
    }

    /// A holder sends nothing more; what was asked of it alone is missing again.
    pub(crate) fn lost(&mut self, holder: usize) {
        let missing = &mut self.missing;
        self.asked.retain(|piece, asked| {
            match (asked.first == holder, asked.second) {
                (true, Some(second)) => (asked.first, asked.second) = (second, None),
                (true, None) => {
                    missing.insert(*piece);
                    return false;
                }
                (false, Some(second)) if second == holder => asked.second = None,
                (false, _) => {}
            }
            true
        });
    }

    /// A reader waits for these pieces and will probably want those that follow.
    pub(crate) fn hurry(&mut self, pieces: Range<usize>) {
        for piece in pieces.clone().rev() {
            if self.missing.contains(&piece) && !self.urgent.contains(&piece) {
                self.urgent.push_front(piece);
            }
        }
        self.ahead = pieces.start;
    }
}

impl Asked {
    fn is_open_to(&self, holder: usize) -> bool {
        self.second.is_none() && self.first != holder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(1);

    fn ask(plan: &mut Plan, now: Instant, holder: usize) -> Option<usize> {
        match plan.next(now, holder, true) {
            Next::Ask(piece) => Some(piece),
            _ => None,
        }
    }

    #[test]
    fn pieces_go_in_order_and_each_to_one_holder() {
        let (mut plan, now) = (Plan::new(4, Some(STALL)), Instant::now());
        let asked: Vec<_> = [0, 1, 0, 1, 0].map(|holder| ask(&mut plan, now, holder)).into();
        assert_eq!(asked, [Some(0), Some(1), Some(2), Some(3), None]);
        assert_eq!(plan.next(now, 0, true), Next::Wait(Some(now + STALL)));
        assert_eq!(plan.next(now, 0, false), Next::Wait(None));
        (0..4).for_each(|piece| plan.arrived(piece));
        assert!(plan.is_whole());
        assert_eq!(plan.next(now, 0, true), Next::Whole);
    }

    #[test]
    fn what_a_reader_waits_for_comes_first_and_reading_ahead_follows_it() {
        let (mut plan, now) = (Plan::new(8, None), Instant::now());
        assert_eq!(ask(&mut plan, now, 0), Some(0));
        plan.hurry(5..6);
        plan.hurry(2..4);
        plan.hurry(2..4);
        let order: Vec<_> = std::iter::from_fn(|| ask(&mut plan, now, 0)).collect();
        assert_eq!(order, [2, 3, 5, 4, 6, 7, 1]);
    }

    #[test]
    fn a_slow_piece_is_asked_of_a_second_holder_and_never_of_a_third() {
        let (mut plan, now) = (Plan::new(1, Some(STALL)), Instant::now());
        assert_eq!(ask(&mut plan, now, 0), Some(0));
        assert_eq!(ask(&mut plan, now + STALL / 2, 1), None);
        assert_eq!(ask(&mut plan, now + STALL, 0), None);
        assert_eq!(ask(&mut plan, now + STALL, 1), Some(0));
        assert_eq!(plan.next(now + 10 * STALL, 2, true), Next::Wait(None));
        plan.lost(1);
        assert_eq!(ask(&mut plan, now + 10 * STALL, 2), Some(0));
        plan.arrived(0);
        assert!(plan.is_whole() && plan.has(0));
    }

    #[test]
    fn what_was_asked_of_a_lost_holder_alone_is_missing_again() {
        let (mut plan, now) = (Plan::new(3, Some(STALL)), Instant::now());
        for (holder, piece) in [(0, 0), (1, 1), (1, 2)] {
            assert_eq!(ask(&mut plan, now, holder), Some(piece));
        }
        let later = now + STALL;
        assert_eq!(ask(&mut plan, later, 0), Some(1));
        plan.lost(1);
        assert_eq!(ask(&mut plan, later, 2), Some(2));
        plan.lost(0);
        assert_eq!(ask(&mut plan, later, 2), Some(0));
        assert_eq!(ask(&mut plan, later, 2), Some(1));
    }

    #[test]
    fn without_a_way_to_tell_which_is_right_no_piece_is_asked_twice() {
        let (mut plan, now) = (Plan::new(1, None), Instant::now());
        assert_eq!(ask(&mut plan, now, 0), Some(0));
        assert_eq!(plan.next(now + 100 * STALL, 1, true), Next::Wait(None));
    }
}
