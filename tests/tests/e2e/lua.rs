//! A real project: Lua 5.4 on three worker processes, as the example lays it out.

use std::path::Path;

use distbuild_tests::{Farm, Project, example};

fn lua_directory(project: &Project) -> String {
    let mut names = std::fs::read_dir(project.join("lua-src")).unwrap().flatten();
    let name = names.find_map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        name.starts_with("lua-5.4").then_some(name)
    });
    format!("lua-src/{}", name.unwrap())
}

/// Every output file, with its contents.
fn outputs(project: &Project) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for job in std::fs::read_dir(project.join("distbuild-out")).unwrap().flatten() {
        for file in std::fs::read_dir(job.path()).unwrap().flatten() {
            let name = format!("{}/{}", job.file_name().display(), file.file_name().display());
            found.push((name, std::fs::read(file.path()).unwrap()));
        }
    }
    found.sort();
    found
}

fn append(path: &Path, text: &str) {
    let mut contents = std::fs::read_to_string(path).unwrap();
    contents.push_str(text);
    std::fs::write(path, contents).unwrap();
}

#[test]
fn lua_on_three_workers_from_empty_caches_to_every_kind_of_second_build() {
    let mut farm = Farm::start(3);
    let project = example::lua();

    let cold = farm.build(&project.graph()).succeed();
    assert_eq!((cold.jobs("total"), cold.jobs("executed")), (35, 35));
    let (declared, opened) = (cold.bytes("declared"), cold.bytes("opened"));
    assert!(opened * 2 <= declared, "opened {opened} of {declared} declared bytes");
    let sent = cold.bytes("sent_by_client");
    assert!(sent * 100 <= opened * 105, "sent {sent} of {opened} opened bytes");
    assert!(cold.stdout.contains("Lua 5.4 works"), "{}", cold.stdout);
    let first_outputs = outputs(&project);

    let cached = farm.build(&project.graph()).succeed();
    assert_eq!((cached.jobs("cached"), cached.jobs("executed")), (35, 0));
    assert_eq!(cached.bytes("sent_by_client"), 0);

    std::fs::remove_dir_all(project.join("distbuild-out")).unwrap();
    farm.kill_worker(0);
    std::fs::remove_dir_all(farm.worker_state(0)).unwrap();
    farm.add_worker(0, &[]);
    farm.wait_for_workers(3);
    let back = farm.build(&project.graph()).succeed();
    assert_eq!(back.jobs("failed") + back.jobs("infra_error"), 0);
    assert_eq!(outputs(&project), first_outputs, "outputs came back as they were");

    let directory = project.join(lua_directory(&project));
    append(&directory.join("lapi.c"), "\n/* a comment */\n");
    let comment = farm.build(&project.graph()).succeed();
    assert_eq!(comment.jobs("executed"), 1, "one compile looked at it");
    assert_eq!(comment.jobs("cut_off"), 34, "its object is as before, and nobody else looked");

    std::fs::write(directory.join("nobody-looks-for-it.h"), "").unwrap();
    assert_eq!(farm.build(&project.graph()).succeed().jobs("executed"), 0);

    let header = project.join(lua_directory(&project)).join("lua.h");
    append(&header, "\n#define DISTBUILD_EDITED 1\n");
    let source = project.join(lua_directory(&project)).join("lauxlib.c");
    append(&source, "\nconst int distbuild_edited = DISTBUILD_EDITED;\n");
    farm.build(&project.graph()).succeed();
    let incremental = outputs(&project);
    farm.build(&project.graph()).args(["--no-cache"]).succeed();
    assert_eq!(outputs(&project), incremental, "a clean build gives the same bits");
}
