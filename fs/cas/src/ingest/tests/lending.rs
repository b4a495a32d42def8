use super::*;

const LARGE: usize = 300_000;

fn lent(source: &Source) -> (Snapshot, Digest) {
    let snapshot = source.jobs(&[&["."]]).unwrap();
    let digest = *snapshot.files().keys().next().unwrap();
    (snapshot, digest)
}

fn is_changed(error: &LendError, source: &Source, path: &str) -> bool {
    let expected = fs::canonicalize(source.directory.path()).unwrap().join(path);
    matches!(error, LendError::SourceChanged { path } if *path == expected)
}

#[test]
fn a_lent_file_comes_whole_in_pieces_of_any_size() {
    let source = Source::new();
    let contents = "0123456789".repeat(LARGE / 10);
    source.write("file", &contents);
    let (snapshot, digest) = lent(&source);
    assert_eq!(snapshot.open_verified(&digest).unwrap().read_all().unwrap(), contents);
    for max_bytes in [0, 1000, 4096, LARGE, LARGE + 1] {
        let mut reader = snapshot.open_verified(&digest).unwrap();
        let mut read = Vec::new();
        while let Some(piece) = reader.next_piece(max_bytes).unwrap() {
            assert!(!piece.is_empty() && piece.len() <= max_bytes.max(1));
            read.extend_from_slice(&piece);
            if max_bytes == 0 && read.len() == 100 {
                break;
            }
        }
        assert!(max_bytes == 0 || read == contents.as_bytes());
    }
}

#[test]
fn an_empty_file_can_be_lent() {
    let source = Source::new();
    source.write("empty", "");
    let (snapshot, digest) = lent(&source);
    assert_eq!(snapshot.open_verified(&digest).unwrap().next_piece(10).unwrap(), None);
}

#[test]
fn only_declared_contents_are_lent() {
    let source = Source::with(&["a", "b"]);
    let snapshot = source.jobs(&[&["a"]]).unwrap();
    let undeclared = DigestFunction::Blake3.digest(b"b");
    let error = snapshot.open_verified(&undeclared).unwrap_err();
    assert!(matches!(error, LendError::NotDeclared(digest) if digest == undeclared));
}

#[test]
fn a_file_that_changed_after_hashing_is_an_error_that_names_it() {
    let source = Source::new();
    source.write("file", "before");
    let (snapshot, digest) = lent(&source);
    source.write("file", "after!");
    let error = snapshot.open_verified(&digest).unwrap_err();
    assert!(is_changed(&error, &source, "file"), "{error}");
}

#[test]
fn a_file_that_is_gone_or_replaced_is_an_error_that_names_it() {
    let source = Source::with(&["d/file"]);
    let (snapshot, digest) = lent(&source);
    let gone = |source: &Source| {
        let error = snapshot.open_verified(&digest).unwrap_err();
        assert!(is_changed(&error, source, "d/file"), "{error}");
    };
    fs::remove_file(source.at("d/file")).unwrap();
    gone(&source);
    source.link("d/file", "../elsewhere");
    source.write("elsewhere", "d/file");
    gone(&source);
    fs::remove_file(source.at("d/file")).unwrap();
    nix::unistd::mkfifo(&source.at("d/file"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    gone(&source);
    fs::rename(source.at("d"), source.at("moved")).unwrap();
    source.link("d", "moved");
    gone(&source);
}

#[test]
fn a_file_that_changes_while_it_is_lent_never_comes_to_its_end() {
    for grows in [false, true] {
        let source = Source::new();
        source.write("file", &"x".repeat(LARGE));
        let (snapshot, digest) = lent(&source);
        let mut reader = snapshot.open_verified(&digest).unwrap();
        assert_eq!(reader.next_piece(LARGE / 2).unwrap().unwrap().len(), LARGE / 2);
        source.write("file", &"y".repeat(if grows { LARGE } else { LARGE / 2 }));
        let error = reader.next_piece(LARGE).unwrap_err();
        assert!(is_changed(&error, &source, "file"), "{error}");
        assert_eq!(reader.next_piece(LARGE).unwrap(), None, "nothing comes after an error");
    }
}

#[test]
fn a_wrong_digest_in_the_cache_is_found_before_a_byte_is_lent_and_forgotten() {
    let source = Source::new();
    source.write("file", "right");
    let wrong = DigestFunction::Blake3.digest(b"wrong");
    let (snapshot, right) = lent(&source);
    let identity = snapshot.files()[&right].identity;
    source.cache.remember(&identity, &wrong, source.now);
    let (snapshot, digest) = lent(&source);
    assert_eq!(digest, wrong);
    let error = snapshot.open_verified(&wrong).unwrap().next_piece(LARGE).unwrap_err();
    assert!(is_changed(&error, &source, "file"), "{error}");
    assert_eq!(lent(&source).1, right, "the next build reads the file again");
}
