use std::ffi::OsStr;
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

#[test]
fn a_job_sees_what_it_declares_and_nothing_else() {
    let source = Source::with(&["src/a.c", "src/b.c", "include/a.h", "README"]);
    assert_eq!(source.seen(&["src/a.c"]), ["src/", "src/a.c"]);
    assert_eq!(
        source.seen(&["src/b.c", "include"]),
        ["include/", "include/a.h", "src/", "src/b.c"]
    );
    assert_eq!(source.seen(&[]), [""; 0]);
}

#[test]
fn a_directory_declared_whole_keeps_its_digest_in_every_job() {
    let source = Source::with(&["lib/a", "lib/x/b", "c"]);
    let snapshot = source.jobs(&[&["lib"], &["lib/", "c"], &["lib/**"], &["."]]).unwrap();
    let lib = |job: usize| {
        let blob = &snapshot.directories()[&snapshot.roots()[job]];
        Directory::decode(DigestFunction::Blake3, blob).unwrap().directories()[0].digest
    };
    assert_eq!(snapshot.roots()[0], snapshot.roots()[2]);
    assert_eq!([lib(0), lib(1)], [lib(2), lib(3)]);
}

#[test]
fn a_star_stays_within_a_component_and_two_cross_them() {
    let source = Source::with(&["s/a.c", "s/.b.c", "s/x/c.c", "s/x/y/d.c", "s/x/e.h"]);
    assert_eq!(source.seen(&["s/*.c"]), ["s/", "s/.b.c", "s/a.c"]);
    assert_eq!(source.seen(&["s/*/*.c"]), ["s/", "s/x/", "s/x/c.c"]);
    assert_eq!(source.seen(&["**/[cd].c"]), ["s/", "s/x/", "s/x/c.c", "s/x/y/", "s/x/y/d.c"]);
}

#[test]
fn a_glob_brings_directories_that_it_matches_but_not_what_lies_in_them() {
    let source = Source::with(&["s/x/a", "s/f", "s/empty/"]);
    assert_eq!(source.seen(&["s/*"]), ["s/", "s/empty/", "s/f", "s/x/"]);
    assert_eq!(source.seen(&["s/*", "s/x/a"]), ["s/", "s/empty/", "s/f", "s/x/", "s/x/a"]);
}

#[test]
fn dot_files_and_ignored_files_are_inputs_like_all_others() {
    let source = Source::with(&["d/.hidden/x", "d/ignored.o"]);
    source.write("d/.gitignore", "*.o\n");
    let names: Vec<_> = source.seen(&["d"]);
    assert_eq!(names.len(), 5, "{names:?}");
    assert_eq!(source.seen(&["d/*.o"]), ["d/", "d/ignored.o"]);
}

#[test]
fn empty_directories_and_empty_files_are_kept() {
    let source = Source::with(&["d/empty/", "d/e/e/"]);
    source.write("d/file", "");
    let seen = source.seen(&["d"]);
    assert_eq!(seen[..4], ["d/", "d/e/", "d/e/e/", "d/empty/"]);
    assert!(seen[4].starts_with("d/file="), "{seen:?}");
}

#[test]
fn names_of_any_bytes_survive() {
    let source = Source::new();
    fs::create_dir(source.at("d")).unwrap();
    for name in [&b"with space"[..], b"new\nline", b"\xff\xfe", &[b'n'; 255]] {
        fs::write(source.at("d").join(OsStr::from_bytes(name)), "x").unwrap();
    }
    let snapshot = source.jobs(&[&["d"], &["d/?*"]]).unwrap();
    assert_eq!(shown(&snapshot, 0).len(), 5);
    assert!(shown(&snapshot, 0).contains_key("d/\\xff\\xfe"));
    assert_eq!(snapshot.roots()[0], snapshot.roots()[1]);
}

#[test]
fn only_the_owners_executable_bit_counts_and_follows_a_change_of_mode() {
    let source = Source::with(&["owner", "others", "script"]);
    source.chmod("owner", 0o744);
    source.chmod("others", 0o655);
    assert_eq!(source.seen(&["*"]), ["others", "owner*", "script"]);
    source.chmod("script", 0o755);
    assert_eq!(source.seen(&["script"]), ["script*"]);
}

#[test]
fn symlinks_are_kept_and_not_followed() {
    let source = Source::with(&["d/file", "out/secret"]);
    source.link("d/to-file", "file");
    source.link("d/to-directory", "../out");
    source.link("d/dangling", "/no/such/place");
    let links =
        ["d/dangling -> /no/such/place", "d/file", "d/to-directory -> ../out", "d/to-file -> file"];
    let all = [&["d/"][..], &links].concat();
    assert_eq!(source.seen(&["d"]), all);
    assert_eq!(source.seen(&["d/**/*"]), all);
    assert_eq!(source.seen(&["d/to-directory"]), ["d/", links[2]]);
    assert_eq!(source.jobs(&[&["d"]]).unwrap().files().len(), 1, "a symlink has no contents");
}

#[test]
fn a_path_through_a_symlink_is_an_error_that_names_the_symlink() {
    let source = Source::with(&["real/x"]);
    source.link("link", "real");
    source.link("file-link", "real/x");
    for pattern in ["link/x", "link/*", "link/**", "link/none/x"] {
        let wrong = source.wrong(&[pattern]);
        assert_eq!(wrong.len(), 1);
        let text = "leaves the source root through a symlink, \"link\"";
        assert!(wrong[0].contains(text) && wrong[0].contains(pattern), "{wrong:?}");
    }
    assert_eq!(source.seen(&["file-link"]), ["file-link -> real/x"]);
}

#[test]
fn what_does_not_exist_is_an_error_with_the_nearest_match() {
    let source = Source::with(&["src/lapi.c", "src/lapi.h", "src/other"]);
    assert_eq!(
        source.wrong(&["src/lapi.cc", "scr/lapi.c", "src/qqqqqq", "src/lapi.c/x"]),
        [
            r#"input "src/lapi.cc": "src/lapi.cc" does not exist; did you mean "src/lapi.c"?"#,
            r#"input "scr/lapi.c": "scr" does not exist; did you mean "src"?"#,
            r#"input "src/qqqqqq": "src/qqqqqq" does not exist"#,
            r#"input "src/lapi.c/x": "src/lapi.c" is not a directory"#,
        ]
    );
}

#[test]
fn a_glob_that_matches_nothing_is_an_error() {
    let source = Source::with(&["src/a.c", "empty/"]);
    for pattern in ["*.c", "src/*.h", "empty/**", "empty/*"] {
        let wrong = source.wrong(&[pattern]);
        assert_eq!(wrong, [format!("input {pattern:?}: the pattern matches no file")]);
    }
    assert!(source.wrong(&["sr/*.c"])[0].contains("did you mean \"src\""));
    assert!(source.wrong(&["src/a.c/*"])[0].contains("not a directory"));
}

#[test]
fn all_errors_of_all_jobs_are_found_at_once() {
    let source = Source::with(&["a"]);
    let error = source.jobs(&[&["x", "a", "y"], &["a"], &["*.z", "x"]]).unwrap_err();
    let IngestError::Inputs(errors) = error else { panic!("{error:?}") };
    let found: Vec<_> = errors.iter().map(|error| (error.job, error.pattern.to_string())).collect();
    let expected = [(0, "x"), (0, "y"), (2, "*.z"), (2, "x")];
    assert_eq!(found, expected.map(|(job, pattern)| (job, pattern.to_owned())));
}

#[test]
fn special_files_are_errors_that_name_them_however_they_are_selected() {
    let source = Source::with(&["d/file"]);
    mkfifo(&source.at("d/pipe"), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(source.at("d/socket")).unwrap();
    for pattern in ["d", "d/**", "d/*", "."] {
        let wrong = source.wrong(&[pattern]).join("\n");
        assert!(wrong.contains("\"d/pipe\" is a named pipe"), "{pattern}: {wrong}");
        assert!(wrong.contains("\"d/socket\" is a socket"), "{pattern}: {wrong}");
    }
    assert_eq!(source.wrong(&["d/pipe"]).len(), 1);
    assert_eq!(source.seen(&["d/f*"]), ["d/", "d/file"], "what is not selected is no error");
}

#[test]
fn the_output_directory_the_state_and_the_graph_file_never_match() {
    let mut source = Source::with(&["a", "graph.json", "out/b/c", "deep/state/db", "deep/d"]);
    source.link("graph-link", "graph.json");
    source.excluded =
        ["graph-link", "out", "deep/state", "missing/out"].map(|p| source.at(p)).into();
    source.excluded.push("/".into());
    source.excluded.push(source.at(""));
    for pattern in [".", "**", "**/*"] {
        assert_eq!(source.seen(&[pattern]), ["a", "deep/", "deep/d"], "{pattern}");
    }
    for pattern in ["graph.json", "graph-link", "out", "out/b/c", "out/**", "out/b/*", "deep/state"]
    {
        let wrong = source.wrong(&[pattern]);
        assert!(
            wrong.len() == 1 && wrong[0].contains("none of which can be an input"),
            "{wrong:?}"
        );
    }
}

#[test]
fn only_what_is_declared_is_looked_at() {
    let source = Source::with(&["a/b/c", "a/b/d", "a/big/1", "a/big/2", "z/x/y.c", "z/w/y.c"]);
    let stats = source.jobs(&[&["a/b/c"]]).unwrap().stats();
    assert_eq!((stats.directories_listed, stats.names_looked_up), (0, 3));
    let stats = source.jobs(&[&["z/x*/*.c"]]).unwrap().stats();
    assert_eq!((stats.directories_listed, stats.names_looked_up), (2, 2), "z and z/x; z, y.c");
}

#[test]
fn a_directory_that_many_jobs_declare_is_walked_once() {
    let names: Vec<String> = (0..200).map(|i| format!("include/{i}.h")).collect();
    let source = Source::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let own: Vec<String> = (0..33).map(|i| format!("include/{i}.h")).collect();
    let jobs: Vec<Vec<&str>> =
        own.iter().map(|own| vec!["include", "include/*.h", own.as_str()]).collect();
    let jobs: Vec<&[&str]> = jobs.iter().map(Vec::as_slice).collect();
    let snapshot = source.jobs(&jobs).unwrap();
    let stats = snapshot.stats();
    assert_eq!((stats.directories_listed, stats.names_looked_up), (1, 201));
    assert_eq!(stats.files_hashed, 200);
    assert_eq!(snapshot.directories().len(), 2);
}

#[test]
fn bytes_are_declared_once_however_often_they_are_named() {
    let source = Source::new();
    source.write("a", "12345");
    source.write("b", "12345");
    source.write("c", "xy");
    source.write("undeclared", "1234567890");
    let snapshot = source.jobs(&[&["a", "b"], &["?"], &["c"]]).unwrap();
    let stats = snapshot.stats();
    assert_eq!((stats.files_declared, stats.declared_bytes), (3, 7));
    assert_eq!(snapshot.files().len(), 2);
    let digest = DigestFunction::Blake3.digest(b"12345");
    assert_eq!(snapshot.files()[&digest].path.as_bytes(), b"a");
}

#[test]
fn unchanged_files_are_not_opened_again_and_changed_ones_are() {
    let source = Source::with(&["d/a", "d/b", "d/c"]);
    let first = source.jobs(&[&["d"]]).unwrap();
    assert_eq!((first.stats().files_hashed, first.stats().files_from_cache), (3, 0));
    let second = source.jobs(&[&["d"]]).unwrap();
    assert_eq!((second.stats().files_hashed, second.stats().files_from_cache), (0, 3));
    assert_eq!(second.stats().bytes_hashed, 0);
    assert_eq!(first.roots(), second.roots());
    source.write("d/b", "changed");
    let third = source.jobs(&[&["d"]]).unwrap();
    assert_eq!((third.stats().files_hashed, third.stats().files_from_cache), (1, 2));
    assert_ne!(first.roots(), third.roots());
}

#[test]
fn a_change_of_equal_size_just_before_or_after_hashing_is_noticed() {
    let mut source = Source::new();
    source.write("a", "old");
    source.now = SystemTime::now();
    let first = source.jobs(&[&["a"]]).unwrap();
    source.write("a", "new");
    let second = source.jobs(&[&["a"]]).unwrap();
    assert_eq!(second.stats().files_hashed, 1);
    assert_ne!(first.roots(), second.roots());
    let third = source.jobs(&[&["a"]]).unwrap();
    assert_eq!(third.stats().files_from_cache, 0, "it is too fresh to be remembered");
}

#[test]
fn a_source_root_that_does_not_exist_is_an_error() {
    let source = Source::new();
    let error = Ingest::new(&source.at("nowhere"), &[], source.cache.clone()).unwrap_err();
    assert!(matches!(error, IngestError::Root { .. }), "{error}");
}

#[test]
fn directories_nest_256_deep_and_no_deeper() {
    let deepest = vec!["d"; 256].join("/");
    let source = Source::with(&[&format!("{deepest}/file")]);
    for pattern in [".", "**/file", &format!("{deepest}/file")] {
        assert_eq!(source.seen(&[pattern]).len(), 257);
    }
    digest_tree(source.directory.path(), &source.cache, source.now).unwrap();
    source.write(&format!("{deepest}/d/file"), "");
    for pattern in [".", "**/file", &format!("{deepest}/d/file")] {
        let wrong = source.wrong(&[pattern]);
        assert!(wrong[0].ends_with("directories nest more than 256 deep"), "{wrong:?}");
    }
    digest_tree(source.directory.path(), &source.cache, source.now).unwrap_err();
}

#[test]
fn a_file_that_cannot_be_hashed_is_an_error_of_every_job_that_selects_it() {
    let source = Source::with(&["d/gone", "d/there"]);
    let root = SourceRoot::open(source.directory.path()).unwrap();
    let ingest = Ingest::new(source.directory.path(), &[], Arc::clone(&source.cache)).unwrap();
    let jobs = [["d"], ["d/there"], ["d/g*"]]
        .map(|patterns| patterns.map(|text| InputPattern::parse(text.as_bytes()).unwrap()));
    let mut scan = Scan::new();
    let mut declared = Declared::gather(&jobs, &mut scan).unwrap();
    scan.run(&root);
    let files = declared.files(&scan);
    fs::remove_file(source.at("d/gone")).unwrap();
    let mut stats = IngestStats::default();
    assert!(ingest.hash(&mut scan, &root, &files, source.now, &mut stats));
    assert!(Judge::new(&scan, &root).judge(&mut declared.requests));
    let IngestError::Inputs(errors) = declared.errors(&jobs) else { panic!() };
    assert_eq!(errors.iter().map(|error| error.job).collect::<Vec<_>>(), [0, 2]);
    assert!(errors[0].to_string().contains("failed to read \"d/gone\""), "{}", errors[0]);
}
