//! From an action to what the sandbox runs: a mechanical translation.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use distbuild_proto::RelPath;
use distbuild_proto::action::{Action, Step};

use crate::inputs::Place;
use crate::sandbox::protocol::{DEP_DIR, OUTPUT_DIR, ROOT_DIR, SOURCE_DIR};
use crate::sandbox::{BindMount, Command, InputRoot, JobSpec, RootAt};

/// Where the input root of an action is shown.
#[derive(Debug)]
pub(crate) struct ShownRoot {
    /// In the usual mount.
    pub(crate) usual: PathBuf,
    /// In the mount for passthrough.
    pub(crate) passthrough: PathBuf,
    /// The parts that are taken from the latter.
    pub(crate) large: Vec<Place>,
}

impl ShownRoot {
    /// Where the source tree is taken from.
    fn source(&self) -> PathBuf {
        let large = self.large.contains(&Place::Source);
        if large { self.passthrough.join("src") } else { self.usual.join("src") }
    }

    /// The dependencies that cover their names in the usual mount.
    fn dependencies(&self) -> impl Iterator<Item = BindMount> {
        self.large.iter().filter_map(|place| {
            let Place::Dep(number) = place else { return None };
            let number = number.to_string();
            let from = self.passthrough.join("dep").join(&number);
            Some(BindMount { from, to: Path::new(DEP_DIR).join(number), writable: false })
        })
    }
}

/// The sandbox's view of a native action whose input root is shown at `root` and whose outputs go to `out`.
pub(crate) fn native_job(action: &Action, root: &ShownRoot, out: &Path) -> JobSpec {
    let bind = |from: PathBuf, to: &str, writable| BindMount { from, to: to.into(), writable };
    let mut mounts = vec![
        bind(root.source(), SOURCE_DIR, false),
        bind(root.usual.join("dep"), DEP_DIR, false),
        bind(out.to_owned(), OUTPUT_DIR, true),
    ];
    mounts.extend(root.dependencies());
    JobSpec { mounts, ..job(action, RootAt::Fixed) }
}

/// The sandbox's view of an action that may change its input root, whose changes go to `changes`.
pub(crate) fn root_job(action: &Action, root: &ShownRoot, changes: &Path, at: RootAt) -> JobSpec {
    let large = root.large.contains(&Place::Source);
    let inputs = if large { &root.passthrough } else { &root.usual };
    let input_root = InputRoot {
        inputs: inputs.clone(),
        changes: changes.to_owned(),
        at,
        directories: parents(&action.output_paths),
    };
    JobSpec { input_root: Some(input_root), ..job(action, at) }
}

fn job(action: &Action, at: RootAt) -> JobSpec {
    JobSpec {
        commands: action.steps.iter().map(|step| command(step, at)).collect(),
        network: action.network,
        ..JobSpec::default()
    }
}

/// The directories in which these paths lie, without those that others lie in.
fn parents(paths: &[RelPath]) -> Vec<PathBuf> {
    let parents = paths.iter().filter_map(|path| path.as_path().parent());
    let sorted: BTreeSet<_> = parents.filter(|parent| !parent.as_os_str().is_empty()).collect();
    let mut innermost: Vec<&Path> = Vec::with_capacity(sorted.len());
    for parent in sorted {
        // What lies in a directory follows it.
        innermost.pop_if(|last| parent.starts_with(*last));
        innermost.push(parent);
    }
    innermost.into_iter().map(Path::to_owned).collect()
}

/// A path of an action, in which an input root is at [`ROOT_DIR`], as it is where the root is `at`.
fn path(path: &[u8], at: RootAt) -> Vec<u8> {
    let inside = match at {
        RootAt::Fixed => None,
        RootAt::Slash => path.strip_prefix(ROOT_DIR.as_bytes()),
    };
    match inside {
        Some([]) => b"/".to_vec(),
        Some(inside @ [b'/', ..]) => inside.to_vec(),
        _ => path.to_vec(),
    }
}

fn command(step: &Step, at: RootAt) -> Command {
    match step {
        Step::Exec(exec) => Command::Exec {
            argv: exec.argv().iter().map(|word| word.to_vec()).collect(),
            environ: exec.environ().iter().map(|entry| entry.to_vec()).collect(),
            working_directory: path(exec.working_directory(), at),
        },
        Step::Cat(cat) => {
            Command::Cat { text: cat.text().to_vec(), output: path(cat.output(), at) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_the_innermost_directories_of_outputs() {
        let paths = ["a", "a/b/c", "a/b/d/e", "a/f", "b/c/d", "b-c/x"];
        let paths: Vec<_> = paths.map(|path| RelPath::new(path.as_bytes()).unwrap()).into();
        let expected = ["a/b/d", "b/c", "b-c"].map(PathBuf::from);
        let found = parents(&paths);
        assert_eq!(BTreeSet::from_iter(found), BTreeSet::from(expected));
        assert!(parents(&[RelPath::root()]).is_empty());
    }

    #[test]
    fn paths_follow_the_place_of_the_root() {
        let slash = |text: &str| String::from_utf8(path(text.as_bytes(), RootAt::Slash)).unwrap();
        assert_eq!(slash("/distbuild/root"), "/");
        assert_eq!(slash("/distbuild/root/a/b"), "/a/b");
        assert_eq!(slash("/distbuild/rooted"), "/distbuild/rooted");
        let fixed = path(b"/distbuild/root/a", RootAt::Fixed);
        assert_eq!(fixed, b"/distbuild/root/a");
    }
}
