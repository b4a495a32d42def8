//! How a command runs, and what becomes of its files.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use distbuild_tests::Farm;

use crate::executor::Input::{Directory, File, Link, Program};
use crate::executor::{Executor, Input, shell};

fn directory(inputs: &[(&'static str, Input)]) -> Input {
    Directory(inputs.iter().cloned().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_found_by_its_path_or_in_the_default_path() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let tool = Program("#!/bin/sh\necho \"$0\" > out\n");
    let inputs = [("w", directory(&[("bin", directory(&[("tool", tool)]))]))];
    for (program, name) in [("bin/tool", "bin/tool"), ("./bin/tool", "./bin/tool")] {
        let command = api::Command {
            arguments: vec![program.to_owned()],
            working_directory: "w".to_owned(),
            output_paths: vec!["out".to_owned()],
            ..Default::default()
        };
        let result = client.result(&command, &inputs).await;
        assert_eq!(client.output(&result, "out").await, format!("{name}\n"));
    }
    for program in ["cp", "/bin/cp"] {
        let command = api::Command {
            arguments: [program, "a", "b"].map(str::to_owned).into(),
            output_paths: vec!["b".to_owned()],
            ..Default::default()
        };
        let result = client.result(&command, &[("a", File("copied"))]).await;
        assert_eq!(client.output(&result, "b").await, "copied");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_beside_the_working_directory_are_reached_and_outputs_there_are_taken() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let inputs = [
        ("out", directory(&[("Default", directory(&[]))])),
        ("src", directory(&[("a.cc", File("source"))])),
    ];
    let mut command =
        shell("cat ../../src/a.cc > obj/a.o; cp obj/a.o ../../top", &["obj/a.o", "../../top"]);
    command.working_directory = "out/Default".to_owned();
    let result = client.result(&command, &inputs).await;
    assert_eq!(client.output(&result, "obj/a.o").await, "source");
    assert_eq!(client.output(&result, "../../top").await, "source");
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_of_outputs_are_made_outputs_are_not_and_what_is_missing_is_no_error() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let script = "test -d a/b && ! test -e a/b/out && ! test -e d/e && echo made > a/b/out";
    let result = client.result(&shell(script, &["a/b/out", "d/e", "none"]), &[]).await;
    assert_eq!(client.output(&result, "a/b/out").await, "made\n");
    assert!(result.output_directories.is_empty() && result.output_files.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_may_be_changed_and_the_next_action_does_not_see_it() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let inputs =
        [("d", directory(&[("kept", File("kept")), ("f", File("old"))])), ("g", File("g"))];
    let script = "echo new > d/f; rm g; echo more >> d/kept; mv d/kept d/moved";
    let result = client.result(&shell(script, &["d", "g"]), &inputs).await;
    let tree = client.tree(&result, "d").await;
    let names: Vec<_> = tree.root.unwrap().files.iter().map(|file| file.name.clone()).collect();
    assert_eq!(names, ["f", "moved"]);
    assert!(result.output_files.is_empty(), "g was removed");
    let result = client.result(&shell("cat d/f d/kept g > out", &["out"]), &inputs).await;
    assert_eq!(client.output(&result, "out").await, "oldkeptg");
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_may_lie_inside_input_directories_and_unchanged_inputs_are_outputs_too() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let inputs = [("d", directory(&[("in", File("input")), ("empty", directory(&[]))]))];
    let result = client.result(&shell("echo made > d/empty/out", &["d/empty/out"]), &inputs).await;
    assert_eq!(client.output(&result, "d/empty/out").await, "made\n");
    let result = client.result(&shell("echo made > d/out", &["d", "d/in"]), &inputs).await;
    assert_eq!(client.output(&result, "d/in").await, "input");
    let tree = client.tree(&result, "d").await;
    let root = tree.root.unwrap();
    let names: Vec<_> = root.files.iter().map(|file| file.name.clone()).collect();
    assert_eq!((names, root.directories.len()), (vec!["in".to_owned(), "out".to_owned()], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_empty_path_is_the_whole_working_directory() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let inputs = [("w", directory(&[("in", File("input"))])), ("beside", File("x"))];
    let mut command = shell("mkdir d; echo made > d/out", &[""]);
    command.working_directory = "w".to_owned();
    let result = client.result(&command, &inputs).await;
    let tree = client.tree(&result, "").await;
    let root = tree.root.unwrap();
    assert_eq!((root.files[0].name.as_str(), root.directories[0].name.as_str()), ("in", "d"));
    assert_eq!((root.files.len(), tree.children.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_among_outputs_stay_links_also_those_to_nowhere() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let script = "ln -s nowhere l; ln -s in f; mkdir d; ln -s ../in d/up; cat link > out";
    let inputs = [("in", File("input")), ("link", Link("in"))];
    let result = client.result(&shell(script, &["l", "f", "d", "out", "link"]), &inputs).await;
    let mut links: Vec<_> =
        result.output_symlinks.iter().map(|it| (it.path.as_str(), it.target.as_str())).collect();
    links.sort_unstable();
    assert_eq!(links, [("f", "in"), ("l", "nowhere"), ("link", "in")]);
    assert_eq!(client.output(&result, "out").await, "input");
    let tree = client.tree(&result, "d").await;
    assert_eq!(tree.root.unwrap().symlinks[0].target, "../in");
}

#[tokio::test(flavor = "multi_thread")]
#[expect(deprecated, reason = "the older fields are what is tested")]
async fn the_older_output_fields_work_as_they_did() {
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let mut command =
        shell("echo f > a/f; mkdir b/d; echo g > b/d/g; ln -s x a/l; ln -s y a/m", &[]);
    command.output_files = vec!["a/f".to_owned(), "a/l".to_owned()];
    command.output_directories = vec!["a/m".to_owned(), "b/d".to_owned()];
    let result = client.result(&command, &[]).await;
    assert_eq!(client.output(&result, "a/f").await, "f\n");
    assert_eq!(client.tree(&result, "b/d").await.root.unwrap().files[0].name, "g");
    assert_eq!(result.output_file_symlinks[0].path, "a/l");
    assert_eq!(result.output_directory_symlinks[0].path, "a/m");
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_come_in_the_form_that_is_asked_for() {
    use api::command::OutputDirectoryFormat::{DirectoryOnly, TreeAndDirectory};
    let farm = Farm::start(1);
    let client = Executor::new(&farm).await;
    let mut command = shell("mkdir -p d/e; echo x > d/e/f", &["d"]);
    for (format, has_tree) in [(DirectoryOnly, false), (TreeAndDirectory, true)] {
        command.output_directory_format = format.into();
        let result = client.result(&command, &[]).await;
        let told = &result.output_directories[0];
        assert_eq!(told.tree_digest.is_some(), has_tree);
        let root = client.read(told.root_directory_digest.as_ref().unwrap()).await;
        let root: api::Directory = prost::Message::decode(&root[..]).unwrap();
        let inner = client.read(root.directories[0].digest.as_ref().unwrap()).await;
        let inner: api::Directory = prost::Message::decode(&inner[..]).unwrap();
        assert_eq!(client.text(inner.files[0].digest.as_ref()).await, "x\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_over_one_tree_at_the_same_time_do_not_see_each_others_writes() {
    let mut farm = Farm::without_workers();
    farm.add_worker(0, &["--cores", "4"]);
    farm.wait_for_workers(1);
    let client = Executor::new(&farm).await;
    let inputs = [("d", directory(&[("f", File("input"))]))];
    let mut running = Vec::new();
    for number in 0..4 {
        let script = format!("echo {number} > d/f; sleep 0.3; ls d; cat d/f > out");
        let action = client.action(&shell(&script, &["out"]), &inputs, |_| {}).await;
        running.push(client.start(&action).await);
    }
    for (number, watched) in running.iter_mut().enumerate() {
        let result = watched.response().await.result.unwrap();
        assert_eq!(client.output(&result, "out").await, format!("{number}\n"));
        assert_eq!(client.text(result.stdout_digest.as_ref()).await, "f\n");
    }
}
