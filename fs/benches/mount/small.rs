//! Many small files: what each costs in processor time, ours and that of the process which serves.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::samples::{Samples, Target, in_turns, own_cpu, row};
use crate::served::Served;

const DIRECTORIES: usize = 200;
const FILES: usize = 100;
const ROUNDS: usize = 7;
/// How often each operation is done a round, for times well above the noise.
const REPEATS: usize = 3;

/// Done in a directory.
type Operation = fn(&Path);

/// What is measured, and at most how much more than a plain directory it may cost.
const OPERATIONS: [(&str, Operation, Target); 4] = [
    ("walk", walk, Target::Told),
    ("stat", stat, Target::AtMost(1.25)),
    ("cat", cat, Target::AtMost(1.3)),
    ("open", open, Target::AtMost(1.5)),
];

pub(crate) fn run() {
    let served = Served::start();
    let root = make(&served);
    served.add_view(1, root);
    // Other views of the same files would have the same pages: the passthrough connection has its own.
    let places: [PathBuf; 3] =
        [served.plain(), served.usual("action/1"), served.passthrough("action/1")];
    println!(
        "| µs of processor time a file, warm | plain | no OPEN | ÷ plain | messages | passthrough | ÷ plain |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for (name, operation, target) in OPERATIONS {
        for place in &places {
            operate(operation, place);
        }
        let before = served.stats().messages.total();
        let [plain, usual, passthrough] = in_turns(ROUNDS, |place| {
            let before = own_cpu() + served.cpu();
            (0..REPEATS).for_each(|_| operate(operation, &places[place]));
            let used = own_cpu() + served.cpu() - before;
            used.as_secs_f64() * 1e6 / (REPEATS * DIRECTORIES * FILES) as f64
        });
        let operations = ROUNDS * REPEATS * DIRECTORIES * FILES;
        let messages = served.stats().messages.total() - before;
        let (ratio, other) = (usual.over(&plain), passthrough.over(&plain));
        let [plain, usual, passthrough] = [plain, usual, passthrough].map(|s: Samples| s.show(2));
        println!(
            "| {name} | {plain} | {usual} | {} | {messages} in {operations} | {passthrough} | {} |",
            ratio.show(2),
            other.show(2)
        );
        rows.push((format!("warm {name} of small files, × plain"), ratio, target));
    }
    rows.iter().for_each(|(what, ratio, target)| row(what, ratio, *target));
}

/// The same files plain and in the store.
fn make(served: &Served) -> distbuild_proto::Digest {
    let mut directories = Vec::new();
    for directory in 0..DIRECTORIES {
        let plain = served.plain().join(format!("d{directory:03}"));
        fs::create_dir_all(&plain).unwrap();
        let files: Vec<_> = (0..FILES)
            .map(|file| {
                let name = format!("file{file:03}.h");
                let contents = format!("{directory} {file}\n").repeat(1 + file * 5);
                fs::write(plain.join(&name), &contents).unwrap();
                (name, served.insert(contents.as_bytes()))
            })
            .collect();
        directories.push((format!("d{directory:03}"), served.insert_directory(&files, &[])));
    }
    served.insert_directory(&[], &directories)
}

/// By relative paths, so that only the last two components are walked.
fn operate(operation: Operation, root: &Path) {
    std::env::set_current_dir(root).unwrap();
    operation(Path::new("."));
    std::env::set_current_dir("/").unwrap();
}

fn walk(root: &Path) {
    let directories = fs::read_dir(root).unwrap();
    let files = directories.map(|entry| fs::read_dir(entry.unwrap().file_name()).unwrap().count());
    assert_eq!(files.sum::<usize>(), DIRECTORIES * FILES);
}

fn each(mut work: impl FnMut(&str)) {
    let mut path = String::new();
    for directory in 0..DIRECTORIES {
        for file in 0..FILES {
            path.clear();
            std::fmt::Write::write_fmt(&mut path, format_args!("d{directory:03}/file{file:03}.h"))
                .unwrap();
            work(&path);
        }
    }
}

fn stat(_: &Path) {
    each(|path| assert!(fs::metadata(path).unwrap().is_file()));
}

fn open(_: &Path) {
    each(|path| drop(File::open(path).unwrap()));
}

fn cat(_: &Path) {
    let mut buffer = vec![0; 16 << 10];
    each(|path| {
        let mut file = File::open(path).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
    });
}
