//! From an action to what the sandbox runs: a mechanical translation of native jobs.

use std::path::{Path, PathBuf};

use distbuild_proto::action::{Action, Layout, Step};

use crate::inputs::Place;
use crate::sandbox::protocol::{DEP_DIR, OUTPUT_DIR, SOURCE_DIR};
use crate::sandbox::{BindMount, Command, JobSpec};

/// Why an action cannot be run here.
#[derive(Debug, thiserror::Error)]
#[error("this worker runs native jobs only")]
pub(crate) struct NotNative;

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

/// The sandbox's view of an action whose input root is shown at `root` and whose outputs go to `out`.
///
/// # Errors
/// The action has another layout.
pub(crate) fn job_spec(
    action: &Action,
    root: &ShownRoot,
    out: &Path,
) -> Result<JobSpec, NotNative> {
    match action.layout {
        Layout::Native => {}
        Layout::Root => return Err(NotNative),
    }
    let bind = |from: PathBuf, to: &str, writable| BindMount { from, to: to.into(), writable };
    let mut mounts = vec![
        bind(root.source(), SOURCE_DIR, false),
        bind(root.usual.join("dep"), DEP_DIR, false),
        bind(out.to_owned(), OUTPUT_DIR, true),
    ];
    mounts.extend(root.dependencies());
    Ok(JobSpec {
        commands: action.steps.iter().map(command).collect(),
        mounts,
        network: action.network,
        ..JobSpec::default()
    })
}

fn command(step: &Step) -> Command {
    match step {
        Step::Exec(exec) => Command::Exec {
            argv: exec.argv().iter().map(|word| word.to_vec()).collect(),
            environ: exec.environ().iter().map(|entry| entry.to_vec()).collect(),
            working_directory: exec.working_directory().to_vec(),
        },
        Step::Cat(cat) => Command::Cat { text: cat.text().to_vec(), output: cat.output().to_vec() },
    }
}
