//! Inputs at random that are nearly right: examples with a few changes.

use std::collections::BTreeMap;
use std::fs::DirEntry;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Changes to one input.
const MOST_CHANGES: usize = 6;
/// Bytes that one change inserts.
const MOST_INSERTED: usize = 40;

/// One change; places are chosen among those that the input has at that moment.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Remove(Index, Index),
    Insert(Index, Vec<u8>),
    /// A part is repeated elsewhere.
    Copy(Index, Index, Index),
}

/// The examples in `seeds/<kind>`, by file name.
pub(crate) fn seeds(kind: &str) -> BTreeMap<String, Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(kind);
    let files = std::fs::read_dir(&directory).unwrap().map(Result::unwrap);
    let seed = |file: DirEntry| {
        (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())
    };
    files.map(seed).collect()
}

/// Inputs made from the examples in `seeds/<kind>`, with pieces that matter to this kind of input.
pub(crate) fn inputs(
    kind: &str,
    pieces: &'static [&'static str],
) -> impl Strategy<Value = Vec<u8>> {
    let seeds: Vec<_> = seeds(kind).into_values().collect();
    let inserted = prop_oneof![
        3 => select(pieces).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..MOST_INSERTED),
    ];
    let place = any::<Index>;
    let change = prop_oneof![
        (place(), 1..=u8::MAX).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (place(), place()).prop_map(|(from, to)| Change::Remove(from, to)),
        (place(), inserted).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (place(), place(), place()).prop_map(|(from, to, at)| Change::Copy(from, to, at)),
    ];
    (select(seeds), vec(change, 0..MOST_CHANGES)).prop_map(|(mut input, changes)| {
        changes.into_iter().for_each(|change| change.apply(&mut input));
        input
    })
}

impl Change {
    fn apply(self, input: &mut Vec<u8>) {
        // Places between bytes: there is one more than there are bytes.
        let places = input.len() + 1;
        let between = |one: Index, other: Index| {
            let (one, other) = (one.index(places), other.index(places));
            one.min(other)..one.max(other)
        };
        match self {
            Self::Flip(at, bits) => {
                if !input.is_empty() {
                    let at = at.index(input.len());
                    input[at] ^= bits;
                }
            }
            Self::Remove(from, to) => drop(input.drain(between(from, to))),
            Self::Insert(at, bytes) => {
                let at = at.index(places);
                drop(input.splice(at..at, bytes));
            }
            Self::Copy(from, to, at) => {
                let (part, at) = (input[between(from, to)].to_vec(), at.index(places));
                drop(input.splice(at..at, part));
            }
        }
    }
}
