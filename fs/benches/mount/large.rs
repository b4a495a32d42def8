//! One large file in the page cache, read through the process that serves the mount and by passthrough. Nothing is
//! waited for, so speed is told by processor time, ours and that of the process which serves: other work on
//! the machine disturbs it less.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::libc;

use crate::samples::{Target, in_turns, own_cpu, row};
use crate::served::Served;

const BYTES: usize = 1 << 30;
const PAGE: usize = 4096;
const RANDOM_READS: usize = 100_000;
const ROUNDS: usize = 7;

/// Done with a file.
type Operation = fn(&Path);

/// What is measured, and at least how fast passthrough must be against a plain file.
const OPERATIONS: [(&str, Operation, f64); 3] = [
    ("from the beginning to the end", sequential, 0.95),
    ("4 KiB at random", random, 0.9),
    ("mapped", mapped, 0.9),
];

pub(crate) fn run() {
    let served = Served::start();
    let digest = make(&served);
    let root = served.insert_directory(&[("large".to_owned(), digest)], &[]);
    served.add_view(1, root);
    // Passthrough reads the file of the store itself, so that this is also what is compared with.
    let places = [
        served.stored(digest),
        served.usual("action/1/large"),
        served.passthrough("action/1/large"),
    ];
    println!(
        "| speed of one file of 1 GiB by processor time, warm, × plain | no OPEN | passthrough |"
    );
    println!("|---|---|---|");
    let mut rows = Vec::new();
    for (name, operation, least) in OPERATIONS {
        for place in &places {
            sequential(place);
        }
        let [plain, usual, passthrough] = in_turns(ROUNDS, |place| {
            let before = own_cpu() + served.cpu();
            operation(&places[place]);
            (own_cpu() + served.cpu() - before).as_secs_f64()
        });
        let (usual, passthrough) = (plain.over(&usual), plain.over(&passthrough));
        println!("| {name} | {} | {} |", usual.show(2), passthrough.show(2));
        let what = format!("1 GiB through passthrough, {name}, × plain");
        rows.push((what, passthrough, Target::AtLeast(least)));
    }
    rows.iter().for_each(|(what, ratio, target)| row(what, ratio, *target));
}

fn make(served: &Served) -> distbuild_proto::Digest {
    let mut contents = vec![0_u8; BYTES];
    for (at, word) in contents.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    served.insert(&contents)
}

fn sequential(path: &Path) {
    let mut file = File::open(path).unwrap();
    let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            read => total += read,
        }
    }
    assert_eq!(total, BYTES);
}

fn random(path: &Path) {
    let file = File::open(path).unwrap();
    let mut buffer = [0; PAGE];
    let mut place = 1_u64;
    for _ in 0..RANDOM_READS {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let page = (place >> 33) % (BYTES / PAGE) as u64;
        file.read_exact_at(&mut buffer, page * PAGE as u64).unwrap();
    }
}

#[expect(unsafe_code, reason = "a mapping has no safe interface")]
fn mapped(path: &Path) {
    let file = File::open(path).unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), BYTES as u64);
    // SAFETY: a new mapping, read within its length while it exists; nobody changes the file.
    let sum = unsafe {
        let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE);
        let at = libc::mmap(std::ptr::null_mut(), BYTES, protection, flags, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        let bytes = std::slice::from_raw_parts(at.cast::<u8>(), BYTES);
        let sum = bytes.iter().step_by(PAGE).fold(0_u64, |sum, byte| sum + u64::from(*byte));
        assert_eq!(libc::munmap(at, BYTES), 0);
        sum
    };
    std::hint::black_box(sum);
}
