//! Sets of byte positions, as few ranges: which parts of a file can be read.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A set of byte positions. Ranges that touch are one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// Ends by starts; no two overlap or touch, none is empty.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&before, &until)) = self.ends.range(..=end).next_back()
            && until >= start
        {
            self.ends.remove(&before);
            (start, end) = (start.min(before), end.max(until));
        }
        self.ends.insert(start, end);
    }

    /// Whether the whole of a range is in the set.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        let before = self.ends.range(..=range.start).next_back();
        range.is_empty() || before.is_some_and(|(_, &end)| end >= range.end)
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.ends.iter().map(|(&start, &end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_set_of_the_positions_that_were_inserted(
            inserted in prop::collection::vec((0..40_u64, 0..8_u64), 0..30),
            asked in (0..40_u64, 0..8_u64),
        ) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (start, len) in inserted {
                ranges.insert(start..start + len);
                model.extend(start..start + len);
            }
            let listed: Vec<_> = ranges.iter().collect();
            prop_assert!(listed.windows(2).all(|pair| pair[0].end < pair[1].start));
            let positions: BTreeSet<_> = listed.into_iter().flatten().collect();
            prop_assert_eq!(&positions, &model);
            let asked = asked.0..asked.0 + asked.1;
            prop_assert_eq!(ranges.covers(&asked), asked.clone().all(|at| model.contains(&at)));
        }
    }
}
