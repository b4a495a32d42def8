//! Actions: what they refuse, and what their digest is made of.

use super::*;

fn exec(argv: &[&str], environ: &[&str], directory: &str) -> Result<Step, ActionError> {
    let bytes = |words: &[&str]| -> Vec<Bytes> {
        words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
    };
    let directory = Bytes::copy_from_slice(directory.as_bytes());
    ExecStep::new(bytes(argv), bytes(environ), directory).map(Step::Exec)
}

fn cat(output: &str) -> Result<Step, ActionError> {
    CatStep::new(Bytes::from("text"), Bytes::copy_from_slice(output.as_bytes())).map(Step::Cat)
}

fn parts() -> ActionParts {
    ActionParts {
        layout: Layout::Native,
        steps: vec![
            exec(&["cc", "-c"], &["A=1", "B="], "/distbuild/src").unwrap(),
            cat("/distbuild/out/x").unwrap(),
        ],
        input_root: DigestFunction::Blake3.digest(b"root"),
        output_paths: vec![],
        platform: Platform::new([("os", "linux")]),
        timeout: Some(Duration::from_secs(60)),
        resources: Resources::default(),
        network: false,
        toolchain: "t1".into(),
        salt: "s".into(),
        declared_id: Some(JobId::new([7; 20])),
    }
}

fn changed(change: impl FnOnce(&mut ActionParts)) -> Action {
    let mut parts = parts();
    change(&mut parts);
    Action::new(parts).unwrap()
}

#[test]
fn an_action_survives_the_wire() {
    let action = changed(|_| {});
    assert_eq!(Action::from_wire(action.to_wire()).unwrap(), action);
    let reapi = changed(|parts| {
        parts.layout = Layout::Root;
        parts.steps.truncate(1);
        parts.output_paths = vec![RelPath::new(b"a").unwrap(), RelPath::new(b"b\xff").unwrap()];
        parts.declared_id = None;
        parts.timeout = None;
    });
    assert_eq!(Action::from_wire(reapi.to_wire()).unwrap(), reapi);
}

#[test]
fn the_digest_of_an_action_does_not_change_between_versions() {
    assert_eq!(
        changed(|_| {}).digest().to_string(),
        "7b3bc1775ec515c7520fd33424a51dde7f0a3bf32c4c429c3d84ca2334bb938b"
    );
}

#[test]
fn limits_do_not_enter_the_digest_and_all_else_does() {
    let digest = changed(|_| {}).digest();
    assert_eq!(changed(|parts| parts.timeout = None).digest(), digest);
    let more = Resources { milli_cores: 8000, memory_bytes: 1 };
    assert_eq!(changed(|parts| parts.resources = more).digest(), digest);
    let changes: [fn(&mut ActionParts); 8] = [
        |parts| parts.steps.truncate(1),
        |parts| parts.steps[0] = exec(&["cc", "-c"], &["A=1"], "/distbuild/src").unwrap(),
        |parts| parts.input_root = DigestFunction::Sha256.digest(b"root"),
        |parts| parts.platform = Platform::default(),
        |parts| parts.network = true,
        |parts| parts.toolchain = "t2".into(),
        |parts| parts.salt.clear(),
        |parts| parts.declared_id = None,
    ];
    let mut digests: Vec<_> = changes.map(|change| changed(change).digest()).into();
    digests.push(digest);
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 9);
}

#[test]
fn degenerate_steps_are_refused() {
    assert!(matches!(exec(&[], &[], "/"), Err(ActionError::EmptyArgv)));
    assert!(matches!(exec(&[""], &[], "/"), Err(ActionError::EmptyArgv)));
    assert!(matches!(exec(&["a\0"], &[], "/"), Err(ActionError::Nul)));
    assert!(matches!(exec(&["a"], &["=x"], "/"), Err(ActionError::Environ(_))));
    assert!(matches!(exec(&["a"], &["B=", "A="], "/"), Err(ActionError::UnsortedEnviron)));
    assert!(matches!(exec(&["a"], &["A=1", "A=2"], "/"), Err(ActionError::UnsortedEnviron)));
    assert!(matches!(exec(&["a"], &[], "src"), Err(ActionError::WorkingDirectory(_))));
    for output in ["x", "/", "/a/../b", "/a//b", "/a/"] {
        assert!(matches!(cat(output), Err(ActionError::Output { .. })), "{output}");
    }
}

#[test]
fn outputs_lie_where_the_layout_has_them() {
    let refused = |change: fn(&mut ActionParts)| {
        let mut parts = parts();
        change(&mut parts);
        Action::new(parts).unwrap_err()
    };
    let error = refused(|parts| parts.steps[1] = cat("/distbuild/outside/x").unwrap());
    assert_eq!(
        error.to_string(),
        "output \"/distbuild/outside/x\" does not lie below /distbuild/out"
    );
    let error = refused(|parts| parts.output_paths = vec![RelPath::new(b"a").unwrap()]);
    assert!(matches!(error, ActionError::OutputPaths));
}

#[test]
fn an_unknown_layout_or_step_on_the_wire_is_refused() {
    let mut message = changed(|_| {}).to_wire();
    message.layout = 0;
    assert!(matches!(Action::from_wire(message), Err(ActionError::UnknownLayout(0))));
    let mut message = changed(|_| {}).to_wire();
    message.steps[0].kind = None;
    assert!(matches!(Action::from_wire(message), Err(ActionError::UnknownStep)));
    let mut message = changed(|_| {}).to_wire();
    message.declared_id = Bytes::from("short");
    assert!(matches!(Action::from_wire(message), Err(ActionError::DeclaredId(5))));
}

#[test]
fn an_input_root_holds_the_source_tree_and_numbered_dependencies() {
    let function = DigestFunction::Sha256;
    let src = function.digest(b"src");
    let deps: Vec<_> = (0..12_u8).map(|n| function.digest(&[n])).collect();
    let (root, blobs) = input_root(Some(src), &deps, function).unwrap();
    let directory = |digest: &Digest| {
        let (_, blob) = blobs.iter().find(|(name, _)| name == digest).unwrap();
        Directory::decode(function, blob).unwrap()
    };
    let children = directory(&root);
    let names: Vec<_> = children.names().map(ToString::to_string).collect();
    assert_eq!(names, ["dep", "src"]);
    assert_eq!(children.directories()[1].digest, src);
    let dep = directory(&children.directories()[0].digest);
    let names: Vec<_> = dep.names().map(ToString::to_string).collect();
    assert_eq!(names, ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"]);
    assert_eq!(dep.directories()[2].digest, deps[10]);
}

#[test]
fn without_inputs_the_source_tree_is_the_empty_directory() {
    let function = DigestFunction::Blake3;
    let (root, blobs) = input_root(None, &[], function).unwrap();
    let (_, blob) = blobs.iter().find(|(name, _)| *name == root).unwrap();
    let children = Directory::decode(function, blob).unwrap();
    assert!(children.directories().iter().all(|node| node.digest == function.digest(b"")));
    assert!(blobs.iter().any(|(name, blob)| *name == function.digest(b"") && blob.is_empty()));
}
