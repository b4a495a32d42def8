//! `Resources`: what a job reserves and what a worker offers, as a vector and not as slots.

use std::fmt;

/// Processor time and memory. One fits into another only if every part does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    /// Thousandths of a processor core.
    pub milli_cores: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Resources {
    /// A vector of these parts.
    pub const fn new(milli_cores: u32, memory_bytes: u64) -> Self {
        Self { milli_cores, memory_bytes }
    }

    /// Whether all of this can be taken from `free`.
    pub const fn fits(self, free: Self) -> bool {
        self.milli_cores <= free.milli_cores && self.memory_bytes <= free.memory_bytes
    }

    /// What is left after `taken`; `None` if it does not fit.
    pub fn minus(self, taken: Self) -> Option<Self> {
        Some(Self {
            milli_cores: self.milli_cores.checked_sub(taken.milli_cores)?,
            memory_bytes: self.memory_bytes.checked_sub(taken.memory_bytes)?,
        })
    }

    /// The sum; parts stick at their greatest value.
    pub const fn plus(self, given: Self) -> Self {
        Self {
            milli_cores: self.milli_cores.saturating_add(given.milli_cores),
            memory_bytes: self.memory_bytes.saturating_add(given.memory_bytes),
        }
    }

    /// Every part rounded up to a power of two, so that near-equal requests become equal.
    pub(crate) fn rounded_up(self) -> Self {
        Self {
            milli_cores: self.milli_cores.checked_next_power_of_two().unwrap_or(u32::MAX),
            memory_bytes: self.memory_bytes.checked_next_power_of_two().unwrap_or(u64::MAX),
        }
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} milli-cores, {} bytes of memory", self.milli_cores, self.memory_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::Resources;

    #[test]
    fn a_vector_fits_only_if_every_part_does() {
        let free = Resources::new(2000, 100);
        assert!(Resources::new(2000, 100).fits(free));
        assert!(!Resources::new(2001, 1).fits(free));
        assert!(!Resources::new(1, 101).fits(free));
    }

    #[test]
    fn nothing_is_taken_that_is_not_there() {
        let free = Resources::new(2000, 100);
        assert_eq!(free.minus(Resources::new(500, 100)), Some(Resources::new(1500, 0)));
        assert_eq!(free.minus(Resources::new(500, 101)), None);
    }

    #[test]
    fn rounding_goes_up_and_sticks_at_the_end() {
        assert_eq!(Resources::new(1000, 5).rounded_up(), Resources::new(1024, 8));
        let most = Resources::new(u32::MAX, u64::MAX);
        assert_eq!(most.rounded_up(), most);
    }
}
