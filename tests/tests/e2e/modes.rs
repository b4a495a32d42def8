//! What survives the way through a build: modes, links, names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use distbuild_tests::project::{shell, shell_with};
use distbuild_tests::{Farm, Project};
use serde_json::json;

fn mode(path: &std::path::Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn modes_symlinks_empty_directories_and_odd_names_survive_from_source_to_output() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell_with(
        "copy",
        &["tree"],
        &[],
        "cp -R tree/. {{OUTPUT_DIR}}/; \
         stat -c '%a %n' tree tree/tool tree/data > {{OUTPUT_DIR}}/modes",
    )]));
    project.file_with_mode("tree/tool", "#!/bin/sh\n", 0o755);
    project.file_with_mode("tree/data", "data", 0o644);
    project.file("tree/empty", "");
    project.file("tree/with space\nand newline", "odd");
    project.file(std::path::Path::new("tree").join(OsStr::from_bytes(b"not \xff utf-8")), "bytes");
    std::fs::create_dir(project.join("tree/empty directory")).unwrap();
    std::os::unix::fs::symlink("../nowhere", project.join("tree/dangling")).unwrap();
    std::os::unix::fs::symlink("data", project.join("tree/link")).unwrap();
    farm.build(&project.graph()).succeed();
    let out = project.out("copy");
    assert_eq!((mode(&out.join("tool")), mode(&out.join("data"))), (0o755, 0o644));
    assert_eq!(
        std::fs::read_to_string(out.join("modes")).unwrap(),
        "755 tree\n755 tree/tool\n644 tree/data\n",
        "a job sees the modes that its outputs will have"
    );
    assert_eq!(std::fs::read(out.join("empty")).unwrap(), b"");
    assert_eq!(std::fs::read(out.join("with space\nand newline")).unwrap(), b"odd");
    assert_eq!(std::fs::read(out.join(OsStr::from_bytes(b"not \xff utf-8"))).unwrap(), b"bytes");
    assert!(out.join("empty directory").is_dir());
    let target = |name| std::fs::read_link(out.join(name)).unwrap();
    assert_eq!(target("dangling").as_os_str(), "../nowhere");
    assert_eq!(target("link").as_os_str(), "data");
}

#[test]
fn outputs_with_odd_modes_and_hard_links_reach_the_client_and_the_next_job() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([
        shell(
            "make",
            "cd {{OUTPUT_DIR}}; echo x > secret; chmod 600 secret; echo '#!/bin/sh' > run; chmod 700 run; \
             ln run twin; mkdir closed; echo y > closed/in; chmod 000 closed",
        ),
        shell_with("use", &[], &["make"], "cd {{DEP:make}}; cat secret closed/in; ./run && ./twin"),
    ]));
    farm.build(&project.graph()).succeed();
    let out = project.out("make");
    assert_eq!((mode(&out.join("secret")), mode(&out.join("run"))), (0o644, 0o755));
    assert_eq!(mode(&out.join("twin")), 0o755);
    assert_eq!(std::fs::read(out.join("closed/in")).unwrap(), b"y\n");
}

#[test]
fn a_job_may_change_its_copy_of_an_input_but_never_the_input() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell_with(
        "edit",
        &["tree"],
        &[],
        "cp -R tree {{OUTPUT_DIR}}/copy; echo more >> {{OUTPUT_DIR}}/copy/data; \
         rm {{OUTPUT_DIR}}/copy/tool; echo new > {{OUTPUT_DIR}}/copy/new; \
         ! { echo more >> tree/data; } 2> {{OUTPUT_DIR}}/append; ! touch tree/new; ! rm tree/data",
    )]));
    project.file("tree/data", "data\n");
    project.file_with_mode("tree/tool", "tool", 0o755);
    farm.build(&project.graph()).succeed();
    let out = project.out("edit");
    assert_eq!(std::fs::read(out.join("copy/data")).unwrap(), b"data\nmore\n");
    assert!(out.join("copy/new").exists() && !out.join("copy/tool").exists());
    let refused = std::fs::read_to_string(out.join("append")).unwrap();
    assert!(refused.contains("Read-only file system"), "{refused}");
}

#[test]
fn two_equal_files_are_two_files_to_programs_that_compare_inodes() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell_with(
        "compare",
        &["a", "b"],
        &[],
        "test a -ef a && ! test a -ef b && cp a {{OUTPUT_DIR}}/b",
    )]));
    project.file("a", "equal");
    project.file("b", "equal");
    farm.build(&project.graph()).succeed();
}

#[test]
fn a_special_file_among_the_outputs_is_the_jobs_failure_and_named() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell("pipe", "mkfifo {{OUTPUT_DIR}}/a-pipe")]));
    let build = farm.build(&project.graph()).run();
    assert_eq!(build.code, 1, "{}", build.stderr);
    assert!(build.stderr.contains("a-pipe"), "{}", build.stderr);
}
