//! Hints at inputs that a failed job did not declare.
//!
//! When what a job printed says that a file was not found, the words of that line are tried as paths of
//! the source tree: from its root, from the command's working and include directories, and beside the
//! files that the line names. What is there and not among the job's inputs is worth a hint. It is a
//! guess, for people; it decides nothing, reads no contents, and looks at a bounded number of names.

use std::path::Path;

use distbuild_proto::RelPath;
use distbuild_proto::action::Step;
use distbuild_proto::graph::{Job, SOURCE_DIR};

/// Bytes of what a job printed that are looked at.
pub(crate) const LOOKED_AT_BYTES: usize = 64 << 10;
/// Names that are looked up.
const LOOKED_UP: usize = 256;
/// Hints that are given.
const GIVEN: usize = 3;
/// Words of a line that are tried.
const WORDS: usize = 32;
/// Directories of a command that are tried.
const DIRECTORIES: usize = 16;

/// How programs say that a file is missing, in lower case.
const COMPLAINTS: [&str; 8] = [
    "no such file",
    "not found",
    "cannot find",
    "can't find",
    "could not find",
    "cannot open",
    "can't open",
    "no rule to make",
];

/// What a failed job seems to have missed although it is in the source tree, as lines for people.
pub(crate) fn lines(source: &Path, job: &Job, command: u32, printed: &[u8]) -> Vec<String> {
    let missed = missed(job, command, printed, |path| {
        std::fs::symlink_metadata(source.join(path.as_path())).is_ok()
    });
    let line = |path: &RelPath| {
        let path = String::from_utf8_lossy(path.as_bytes());
        format!(
            "  hint: {path:?} is in the source tree but not among the job's \"inputs\"; \
             if the job reads it, add it there"
        )
    };
    missed.iter().map(line).collect()
}

fn missed(
    job: &Job,
    command: u32,
    printed: &[u8],
    exists: impl Fn(&RelPath) -> bool,
) -> Vec<RelPath> {
    let text = String::from_utf8_lossy(&printed[..printed.len().min(LOOKED_AT_BYTES)]);
    let directories = directories(job, command);
    let (mut found, mut looked_up) = (Vec::new(), 0);
    for line in text.lines().filter(|line| complains(line)) {
        let words: Vec<&str> = words(line).collect();
        let beside = words.iter().filter_map(|word| word.rsplit_once('/')).map(|(above, _)| above);
        let from: Vec<&str> =
            directories.iter().map(String::as_str).chain(beside.take(DIRECTORIES)).collect();
        for word in &words {
            for path in from.iter().filter_map(|from| below_source(from, word)) {
                let declared = || job.inputs().iter().any(|input| input.matches(&path));
                if found.contains(&path) || declared() {
                    continue;
                }
                if looked_up == LOOKED_UP || found.len() == GIVEN {
                    return found;
                }
                looked_up += 1;
                if exists(&path) {
                    found.push(path);
                    break;
                }
            }
        }
    }
    found
}

fn complains(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    COMPLAINTS.iter().any(|complaint| line.contains(complaint))
}

/// What may be a path in a line of text.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let separates = |c: char| c.is_whitespace() || "'\"`‘’“”()[]<>,;:".contains(c);
    let words = line.split(separates).map(|word| word.trim_end_matches(['.', '/']));
    words.filter(|word| !word.is_empty()).take(WORDS)
}

/// Where a command looks for files: the source root, its working directory, its include directories.
fn directories(job: &Job, command: u32) -> Vec<String> {
    let mut directories = vec![String::new()];
    let steps = job.steps();
    let Some(Step::Exec(exec)) = steps.get(command as usize) else { return directories };
    directories.push(String::from_utf8_lossy(exec.working_directory()).into_owned());
    let words: Vec<_> = exec.argv().iter().map(|word| String::from_utf8_lossy(word)).collect();
    // A script in one word has its words, too.
    let mut words = words.iter().flat_map(|word| word.split_whitespace());
    while let Some(word) = words.next() {
        let directory = match word.strip_prefix("-I").or_else(|| word.strip_prefix("-isystem")) {
            Some("") => words.next(),
            other => other,
        };
        directories.extend(directory.map(str::to_owned));
        if directories.len() >= DIRECTORIES {
            break;
        }
    }
    directories
}

/// The path that a word means in a directory, both as a command writes them; none outside of the
/// source tree.
fn below_source(directory: &str, word: &str) -> Option<RelPath> {
    let written =
        if word.starts_with('/') { word.to_owned() } else { format!("{directory}/{word}") };
    let relative = match written.strip_prefix(SOURCE_DIR) {
        Some(below) => below,
        None if directory.starts_with('/') || word.starts_with('/') => return None,
        None => &written,
    };
    let mut names = Vec::new();
    for name in relative.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    RelPath::new(names.join("/").as_bytes()).ok().filter(|path| !path.is_root())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use distbuild_proto::graph::Graph;
    use serde_json::json;

    use super::*;

    const TREE: [&str; 5] = ["main.c", "src/a.c", "src/a.h", "include/b.h", "tool.py"];

    fn hinted(exec: serde_json::Value, printed: &str) -> Vec<String> {
        let job = json!({ "name": "a", "inputs": ["src/*.c"], "cmds": [{ "exec": exec }] });
        let file = json!({ "version": 1, "jobs": [job] });
        let graph = Graph::from_json(file.to_string().as_bytes()).unwrap();
        let exists = |path: &RelPath| TREE.iter().any(|known| known.as_bytes() == path.as_bytes());
        let found = missed(&graph.jobs()[0], 0, printed.as_bytes(), exists);
        found.iter().map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn what_compilers_and_tools_miss_is_found_in_the_source_tree() {
        let gcc = json!(["cc", "-Iinclude", "-c", "src/a.c"]);
        let script = json!(["sh", "-c", "cc -I include -c src/a.c"]);
        for (exec, printed, expected) in [
            (&gcc, "src/a.c:1:10: fatal error: a.h: No such file or directory", "src/a.h"),
            (&gcc, "src/a.c:2:10: fatal error: 'b.h' file not found", "include/b.h"),
            (&script, "src/a.c:2:10: fatal error: b.h: No such file or directory", "include/b.h"),
            (&gcc, "cp: cannot stat 'main.c': No such file or directory", "main.c"),
            (&gcc, "python3: can't open file '/distbuild/src/tool.py': [Errno 2]", "tool.py"),
            (&gcc, "make: *** No rule to make target `src/../main.c'.  Stop.", "main.c"),
        ] {
            assert_eq!(hinted(exec.clone(), printed), [expected], "{printed}");
        }
    }

    #[test]
    fn declared_absent_and_outer_files_are_no_hint_and_neither_are_other_lines() {
        let exec = json!(["cc", "-c", "src/a.c"]);
        for printed in [
            "src/a.c: No such file or directory",
            "stdlib.h: No such file or directory",
            "/usr/main.c: No such file or directory",
            "../../main.c: No such file or directory",
            "main.c: syntax error",
        ] {
            assert!(hinted(exec.clone(), printed).is_empty(), "{printed}");
        }
    }

    #[test]
    fn a_long_complaint_costs_a_bounded_number_of_looks() {
        let job = json!({ "name": "a", "cmds": [{ "exec": ["x"] }] });
        let file = json!({ "version": 1, "jobs": [job] });
        let graph = Graph::from_json(file.to_string().as_bytes()).unwrap();
        let printed: String = (0..10_000).map(|n| format!("f{n}: not found\n")).collect();
        let looks = Cell::new(0);
        missed(&graph.jobs()[0], 0, printed.as_bytes(), |_| {
            looks.set(looks.get() + 1);
            false
        });
        assert_eq!(looks.get(), LOOKED_UP);
        let shown = missed(&graph.jobs()[0], 0, printed.as_bytes(), |_| true);
        assert_eq!(shown.len(), GIVEN);
    }
}
