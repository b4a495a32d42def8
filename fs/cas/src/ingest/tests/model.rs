//! Pruning against a plain model: walk everything, keep what any pattern matches and what leads to
//! it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Paths of a small tree; `/` after a directory, `@` after a symlink.
fn paths() -> impl Strategy<Value = Vec<String>> {
    let path = proptest::collection::vec("[ab]|\\.c", 1..5);
    let entry = (path, "|/|@").prop_map(|(path, kind)| path.join("/") + &kind);
    proptest::collection::vec(entry, 0..20)
}

fn patterns() -> impl Strategy<Value = Vec<Vec<String>>> {
    let component = prop_oneof![
        4 => "[ab]|\\.c", 2 => Just("*".to_owned()), 2 => Just("**".to_owned()),
        1 => "[ab]\\*|\\?|\\[ab\\]|\\{a,b/a\\}|\\*b",
    ];
    let pattern = proptest::collection::vec(component, 1..4).prop_map(|parts| parts.join("/"));
    let pattern = prop_oneof![12 => pattern, 1 => Just(".".to_owned())];
    proptest::collection::vec(proptest::collection::vec(pattern, 0..4), 1..4)
}

/// Makes what can be made of the paths; a name that is taken stays what it is.
fn plant(source: &Source, paths: &[String]) {
    for path in paths {
        let bare = path.trim_end_matches(['/', '@']);
        let place = source.at(bare);
        let through_link =
            bare.match_indices('/').any(|(at, _)| source.at(&bare[..at]).is_symlink());
        if through_link || fs::create_dir_all(place.parent().unwrap()).is_err() {
            continue;
        }
        let _taken = match path.as_bytes().last() {
            Some(b'/') => fs::create_dir(place),
            Some(b'@') => symlink("a", place),
            _ if place.symlink_metadata().is_ok() => Ok(()),
            _ => fs::write(place, bare),
        };
    }
}

/// Everything there is, in the notation of [`shown`].
fn everything(root: &Path, below: &str, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            everything(root, &path, all);
            all.insert(path, "/".to_owned());
        } else if kind.is_symlink() {
            all.insert(path, " -> a".to_owned());
        } else {
            all.insert(path, String::new());
        }
    }
}

/// What a job sees, or the patterns that select nothing.
fn expected(
    all: &BTreeMap<String, String>,
    patterns: &[String],
) -> Result<BTreeMap<String, String>, BTreeSet<String>> {
    let mut kept = BTreeMap::new();
    let mut wrong = BTreeSet::new();
    for text in patterns {
        let pattern = InputPattern::parse(text.as_bytes()).unwrap();
        let mut any = text == ".";
        for path in all.keys() {
            if !pattern.matches(&RelPath::new(path.as_bytes()).unwrap()) {
                continue;
            }
            any = true;
            let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
            kept.extend(ends.map(|end| (path[..end].to_owned(), all[&path[..end]].clone())));
        }
        if !any {
            wrong.insert(text.clone());
        }
    }
    if wrong.is_empty() { Ok(kept) } else { Err(wrong) }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(200)
    })]

    #[test]
    fn pruning_agrees_with_walking_everything(paths in paths(), jobs in patterns()) {
        let source = Source::new();
        plant(&source, &paths);
        let mut all = BTreeMap::new();
        everything(source.directory.path(), "", &mut all);
        let expected: Vec<_> = jobs.iter().map(|patterns| expected(&all, patterns)).collect();
        let borrowed: Vec<Vec<&str>> =
            jobs.iter().map(|patterns| patterns.iter().map(String::as_str).collect()).collect();
        let borrowed: Vec<&[&str]> = borrowed.iter().map(Vec::as_slice).collect();
        match source.jobs(&borrowed) {
            Ok(snapshot) => {
                for (job, expected) in expected.iter().enumerate() {
                    prop_assert_eq!(Ok(&shown(&snapshot, job)), expected.as_ref());
                }
            }
            Err(IngestError::Inputs(errors)) => {
                for (job, expected) in expected.iter().enumerate() {
                    let wrong: BTreeSet<_> = errors
                        .iter()
                        .filter(|error| error.job == job)
                        .map(|error| error.pattern.to_string())
                        .collect();
                    let expected = expected.as_ref().err().cloned().unwrap_or_default();
                    prop_assert_eq!(wrong, expected);
                }
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
