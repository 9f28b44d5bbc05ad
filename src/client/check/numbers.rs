//! Numbers of messages as ranges: what is remembered for a whole run stays small.

use std::collections::BTreeMap;

/// A set of numbers, most of which follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// First number of a range ⇒ its last.
    ranges: BTreeMap<u64, u64>,
}

impl Numbers {
    pub fn insert(&mut self, n: u64) {
        if self.contains(n) {
            return;
        }
        let before = self.ranges.range(..n).next_back().filter(|(_, last)| **last + 1 == n).map(|(first, _)| *first);
        let last = n.checked_add(1).and_then(|next| self.ranges.remove(&next)).unwrap_or(n);
        self.ranges.insert(before.unwrap_or(n), last);
    }

    pub fn contains(&self, n: u64) -> bool {
        self.ranges.range(..=n).next_back().is_some_and(|(_, last)| n <= *last)
    }
}

impl FromIterator<u64> for Numbers {
    fn from_iter<I: IntoIterator<Item = u64>>(all: I) -> Self {
        let mut numbers = Self::default();
        all.into_iter().for_each(|n| numbers.insert(n));
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_take_the_room_of_one() {
        let all = [5, 3, 9, 4, 4, 10, 8, u64::MAX, 1];
        let numbers: Numbers = all.into_iter().collect();
        for n in 0..20 {
            assert_eq!(numbers.contains(n), all.contains(&n), "{n}");
        }
        assert!(numbers.contains(u64::MAX));
        assert_eq!(numbers.ranges, BTreeMap::from([(1, 1), (3, 5), (8, 10), (u64::MAX, u64::MAX)]));
    }
}
