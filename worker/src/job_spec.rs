//! From an action to what the sandbox runs: a mechanical translation of native jobs.

use std::path::{Path, PathBuf};

use distbuild_proto::action::{Action, Layout, Step};

use crate::sandbox::protocol::{DEP_DIR, OUTPUT_DIR, SOURCE_DIR};
use crate::sandbox::{BindMount, Command, JobSpec};

/// Why an action cannot be run here.
#[derive(Debug, thiserror::Error)]
#[error("this worker runs native jobs only")]
pub(crate) struct NotNative;

/// The sandbox's view of an action whose input root is shown at `root` and whose outputs go to `out`.
///
/// # Errors
/// The action has another layout.
pub(crate) fn job_spec(action: &Action, root: &Path, out: &Path) -> Result<JobSpec, NotNative> {
    match action.layout {
        Layout::Native => {}
        Layout::Root => return Err(NotNative),
    }
    let bind = |from: PathBuf, to: &str, writable| BindMount { from, to: to.into(), writable };
    Ok(JobSpec {
        commands: action.steps.iter().map(command).collect(),
        mounts: vec![
            bind(root.join("src"), SOURCE_DIR, false),
            bind(root.join("dep"), DEP_DIR, false),
            bind(out.to_owned(), OUTPUT_DIR, true),
        ],
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
