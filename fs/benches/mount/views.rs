//! Showing a tree as a view and taking it away, with the look-ups that binding its parts makes: whatever its size.

use std::fs;
use std::time::Instant;

use crate::samples::{Samples, Target, in_turns, row};
use crate::served::Served;

const ROUNDS: usize = 300;
/// Trees of so many files.
const SIZES: [usize; 4] = [10, 1_000, 10_000, 100_000];
/// What an action's whole set-up may take, in microseconds.
const TARGET: f64 = 150.0;

pub(crate) fn run() {
    let served = Served::start();
    let empty = served.insert(b"");
    let dependencies = served.insert_directory(&[], &[]);
    println!("| µs a view, on the wall | shown, its two parts looked up | taken away |");
    println!("|---|---|---|");
    let roots = SIZES.map(|size| {
        let directories: Vec<_> = (0..size.div_ceil(100))
            .map(|number| {
                let files = (0..size.min(100)).map(|file| (format!("f{number}-{file}"), empty));
                let digest = served.insert_directory(&files.collect::<Vec<_>>(), &[]);
                (format!("d{number}"), digest)
            })
            .collect();
        let source = served.insert_directory(&[], &directories);
        served
            .insert_directory(&[], &[("src".to_owned(), source), ("dep".to_owned(), dependencies)])
    });
    let (mut view, mut gone) = (0, [const { Samples::NONE }; SIZES.len()]);
    let shown: [_; SIZES.len()] = in_turns(ROUNDS, |size| {
        view += 1;
        let started = Instant::now();
        served.add_view(view, roots[size]);
        for part in ["src", "dep"] {
            assert!(fs::metadata(served.usual(&format!("action/{view}/{part}"))).is_ok());
        }
        let shown = started.elapsed();
        let started = Instant::now();
        served.drop_view(view);
        gone[size].push(started.elapsed().as_secs_f64() * 1e6);
        shown.as_secs_f64() * 1e6
    });
    for ((size, shown), gone) in SIZES.iter().zip(&shown).zip(&gone) {
        println!("| {size} files | {} | {} |", shown.show(0), gone.show(0));
    }
    let largest = &shown[SIZES.len() - 1];
    row("a view of 100 000 files shown, µs", largest, Target::AtMost(TARGET));
}
