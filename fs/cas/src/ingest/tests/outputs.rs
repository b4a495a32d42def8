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

#[test]
fn many_directories_get_their_digests_in_order_each_with_its_own_error() {
    let source = Source::with(&["out/0/f", "out/1/f", "out/2/f"]);
    let mut directories: Vec<_> = ["out/0", "out/1", "none", "out/2"].map(|p| source.at(p)).into();
    directories.extend((0..20).map(|_| source.at("out/1")));
    let digests = digest_trees(&directories, &source.cache, source.now);
    assert!(
        matches!(&digests[2], Err(OutputTreeError::Io { path, .. }) if *path == source.at("none"))
    );
    for (at, name) in [(0, "out/0"), (1, "out/1"), (3, "out/2"), (23, "out/1")] {
        let alone = digest_tree(&source.at(name), &source.cache, source.now).unwrap();
        assert_eq!(*digests[at].as_ref().unwrap(), alone);
    }
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
