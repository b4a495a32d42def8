use super::*;

#[test]
fn the_digest_of_a_directory_is_that_of_its_tree() {
    let source = Source::with(&["d/a", "d/x/b", "d/empty/"]);
    source.link("d/link", "a");
    source.chmod("d/a", 0o755);
    let snapshot = source.jobs(&[&["."]]).unwrap();
    let digest = digest_tree(source.directory.path(), &source.cache, source.now).unwrap();
    assert_eq!(digest, snapshot.roots()[0]);
}

/// A memory that lies in the source root itself, of the directories in `out`.
fn memory(source: &Source) -> TreeMemory {
    TreeMemory::open(&source.at("memory"), &source.at("out"), source.cache.function())
}

fn digests(source: &Source, names: &[&str]) -> Vec<Option<Digest>> {
    let mut memory = memory(source);
    let digests = memory.digest_trees(names, &source.cache, source.now);
    memory.save().unwrap();
    digests.into_iter().map(Result::ok).collect()
}

fn alone(source: &Source, name: &str) -> Option<Digest> {
    let cache = StatCache::in_memory(DigestFunction::Blake3);
    digest_tree(&source.at("out").join(name), &cache, source.now).ok()
}

/// Removes what a digest would be made of anew, and keeps all identities.
fn blind(source: &Source, name: &str) {
    // Nobody lists a directory whose entries nobody may read, but root; so the stat cache lies instead.
    let file = source.at("out").join(name);
    let root = source::SourceRoot::open(file.parent().unwrap()).unwrap();
    let path = RelPath::new(file.file_name().unwrap().as_bytes()).unwrap();
    let meta = root.hash_file(&path, DigestFunction::Blake3, &mut Vec::new()).unwrap().meta;
    let lie = DigestFunction::Blake3.digest(&vec![0; meta.identity.size_bytes as usize]);
    source.cache.remember(&meta.identity, &lie, source.now);
}

#[test]
fn many_directories_get_their_digests_in_order_each_with_its_own_error() {
    let source = Source::with(&["out/0/f", "out/1/f", "out/2/f"]);
    let mut names = vec!["0", "1", "none", "2"];
    names.extend(["1"; 20]);
    for _ in 0..2 {
        let mut memory = memory(&source);
        let found = memory.digest_trees(&names, &source.cache, source.now);
        memory.save().unwrap();
        assert!(
            matches!(&found[2], Err(OutputTreeError::Io { path, .. }) if *path == source.at("out/none"))
        );
        for (at, name) in [(0, "0"), (1, "1"), (3, "2"), (23, "1")] {
            assert_eq!(found[at].as_ref().ok().copied(), alone(&source, name));
        }
    }
}

#[test]
fn an_unchanged_directory_is_neither_listed_nor_read_again() {
    let source = Source::with(&["out/a/f", "out/a/d/g"]);
    source.link("out/a/d/link", "f");
    let before = digests(&source, &["a"]);
    assert_eq!(before, [alone(&source, "a")]);
    blind(&source, "a/f");
    assert_eq!(digests(&source, &["a"]), before);
    // What was not asked for this time is remembered all the same.
    digests(&source, &["b"]);
    assert_eq!(digests(&source, &["a"]), before);
}

/// What happens, and how.
type Change = (&'static str, fn(&Source));

#[test]
fn whatever_changes_in_a_directory_is_seen() {
    let changes: [Change; 9] = [
        ("contents of the same length", |source| source.write("out/a/d/g", "OUT/A/D/G")),
        ("another mode", |source| source.chmod("out/a/f", 0o755)),
        ("a new file", |source| source.write("out/a/d/new", "")),
        ("a file gone", |source| fs::remove_file(source.at("out/a/d/g")).unwrap()),
        ("a new empty directory", |source| fs::create_dir(source.at("out/a/d/e/f")).unwrap()),
        ("a directory that became another", |source| {
            fs::rename(source.at("out/a/d"), source.at("aside")).unwrap();
            source.write("out/a/d/g", "other");
        }),
        ("another link target", |source| {
            fs::remove_file(source.at("out/a/link")).unwrap();
            source.link("out/a/link", "other");
        }),
        ("two files that changed names", |source| {
            fs::rename(source.at("out/a/f"), source.at("out/a/x")).unwrap();
            fs::rename(source.at("out/a/d/g"), source.at("out/a/f")).unwrap();
            fs::rename(source.at("out/a/x"), source.at("out/a/d/g")).unwrap();
        }),
        ("all of it gone", |source| fs::remove_dir_all(source.at("out/a")).unwrap()),
    ];
    for (what, change) in changes {
        let source = Source::with(&["out/a/f", "out/a/d/g", "out/a/d/e/"]);
        source.link("out/a/link", "f");
        let before = digests(&source, &["a"]);
        assert_eq!(digests(&source, &["a"]), before);
        change(&source);
        let after = digests(&source, &["a"]);
        assert_ne!(after, before, "{what}");
        assert_eq!(after, [alone(&source, "a")], "{what}");
    }
}

#[test]
fn what_changed_just_before_it_was_read_is_not_remembered() {
    let mut source = Source::with(&["out/a/f"]);
    source.now = SystemTime::now();
    let before = digests(&source, &["a"]);
    source.now += Duration::from_secs(60);
    blind(&source, "a/f");
    assert_ne!(digests(&source, &["a"]), before, "it was read again");
}

#[test]
fn a_damaged_memory_or_one_of_another_function_remembers_nothing() {
    let source = Source::with(&["out/a/f"]);
    let before = digests(&source, &["a"]);
    let file = fs::read_dir(source.at("memory")).unwrap().next().unwrap().unwrap().path();
    let list = fs::read(&file).unwrap();
    blind(&source, "a/f");
    let mut flipped = list.clone();
    flipped[20] ^= 1;
    for bad in [&list[..list.len() - 1], &[], &flipped] {
        fs::write(&file, bad).unwrap();
        assert_ne!(digests(&source, &["a"]), before);
    }
    fs::write(&file, &list).unwrap();
    assert_eq!(digests(&source, &["a"]), before);
    let cache = StatCache::in_memory(DigestFunction::Sha256);
    let mut other = TreeMemory::open(&source.at("memory"), &source.at("out"), cache.function());
    let found = other.digest_trees(&["a"], &cache, source.now).remove(0).unwrap();
    assert_eq!(found.function(), DigestFunction::Sha256);
}

#[test]
fn a_changed_output_has_another_digest_and_a_special_file_none() {
    let source = Source::with(&["f"]);
    let digest = || digest_tree(source.directory.path(), &source.cache, source.now);
    let before = digest().unwrap();
    source.write("f", "g");
    assert_ne!(digest().unwrap(), before);
    nix::unistd::mkfifo(&source.at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(digest(), Err(OutputTreeError::Special { .. })));
}
