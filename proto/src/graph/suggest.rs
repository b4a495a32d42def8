//! "Did you mean …?": the candidate nearest to a word that is not known.
//!
//! Distance is the number of characters to insert, delete, replace or swap with their neighbour
//! (optimal string alignment; Boytsov, "Indexing methods for approximate dictionary searching", 2011),
//! counted in bytes. A candidate further away than a third of the word is no help and not suggested.

/// The nearest of the candidates, the first of those equally near; none when nothing is near.
pub fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut limit = (wanted.len() / 3).clamp(1, 8);
    let mut best = None;
    for candidate in candidates {
        let Some(distance) = distance_within(wanted, candidate, limit) else {
            continue;
        };
        best = Some(candidate);
        if distance == 0 {
            break;
        }
        limit = distance - 1;
    }
    best
}

/// The distance of two words if it is at most `limit`. Words that differ by case only are at most 1
/// apart.
fn distance_within(a: &str, b: &str, limit: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    if a.eq_ignore_ascii_case(b) {
        let distance = usize::from(a != b);
        return (distance <= limit).then_some(distance);
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let prefix = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[prefix..], &b[prefix..]);
    let suffix = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let distance = alignment(&a[..a.len() - suffix], &b[..b.len() - suffix], limit)?;
    (distance <= limit).then_some(distance)
}

/// Optimal string alignment row by row; gives up once a whole row is beyond the limit.
fn alignment(a: &[u8], b: &[u8], limit: usize) -> Option<usize> {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let mut cost = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        if row.iter().all(|cost| *cost > limit) {
            return None;
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_fingers_finds_its_word() {
        let fields = ["inputs", "deps", "cmds", "platform"];
        assert_eq!(nearest("inptus", fields), Some("inputs"));
        assert_eq!(nearest("input", fields), Some("inputs"));
        assert_eq!(nearest("dep", fields), Some("deps"));
        assert_eq!(nearest("Platform", fields), Some("platform"));
        assert_eq!(nearest("OS", ["os", "arch"]), Some("os"));
    }

    #[test]
    fn what_is_far_away_is_not_suggested() {
        assert_eq!(nearest("banana", ["inputs", "deps"]), None);
        assert_eq!(nearest("", ["a", "deps"]), Some("a"));
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn the_first_of_the_equally_near_wins() {
        assert_eq!(nearest("lib0", ["lib1", "lib2"]), Some("lib1"));
        assert_eq!(nearest("lib2", ["lib1", "lib2"]), Some("lib2"));
    }

    #[test]
    fn a_swap_of_neighbours_is_one_step() {
        assert_eq!(distance_within("abcd", "acbd", 4), Some(1));
        assert_eq!(distance_within("abcd", "badc", 4), Some(2));
        assert_eq!(distance_within("kitten", "sitting", 4), Some(3));
        assert_eq!(distance_within("kitten", "sitting", 2), None);
    }
}
