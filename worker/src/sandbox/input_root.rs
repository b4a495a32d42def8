//! An input root that the job may change: an overlay whose lower layer is the tree, and whose upper
//! layer is a directory of the job's own, on the host's disk.
//!
//! The options make the upper layer hold what was changed and nothing else, in a form that can be
//! read without mounting it ([`distbuild_cas::tree_from_overlay`]): whole files, whiteouts, opaque
//! directories. Directories of the tree cannot be renamed (`EXDEV`; mv(1) copies then). The marks are
//! extended attributes of the `user` kind, for root as for ordinary users, so that both work alike; a
//! job cannot set them, the kernel keeps those names from it. What is lost with the host is lost
//! anyway, so nothing is synced.
//!
//! In a root that becomes `/` of the job, `/dev`, `/proc` and `/tmp` are mounted. If the tree has no
//! such directories, an empty layer below it has; they are in no output.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::unistd::{Gid, Uid};

use super::config::JobUser;
use super::error::{AtStep, SandboxError};
use super::init::private_tmpfs;
use super::namespaces::{self, Access};
use super::protocol::{CHANGES_DIR, InputRoot, JobSpec, RootAt, WORK_DIR};
use super::template::{INPUT_ROOT, JOB_ROOT, MOUNT_POINT_NAMES, MOUNT_POINTS, RESOLV_CONF, below};

/// How the layers are put together. `xino`: numbers of inodes are unique and stay while the overlay is mounted.
const OPTIONS: &[u8] = b"userxattr,redirect_dir=nofollow,metacopy=off,index=off,xino=on,volatile";
/// Most bytes that mount(2) takes as options: a page, with its end.
const MAX_OPTION_BYTES: usize = 4095;
/// The name of a directory in which overlays are tried out.
const TRIAL: &str = "overlay-trial";

/// Why a job's root was not set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetUpError {
    /// The host does not let it be: an infrastructure error.
    #[error(transparent)]
    Host(#[from] SandboxError),
    /// The inputs do not fit what the job asks for: the job's own fault; one line.
    #[error("{0}")]
    Inputs(String),
}

/// Mounts the overlay at `at` and hands it to the job's user.
pub(super) fn mount(
    root: &InputRoot,
    user: Option<JobUser>,
    at: &Path,
) -> Result<(), SandboxError> {
    let changes = root.changes.join(CHANGES_DIR);
    if let Some(JobUser { uid, gid }) = user {
        nix::unistd::chown(&changes, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .at(|| "hand the input root to the job".to_owned())?;
    }
    match root.at {
        RootAt::Fixed => mount_overlay(&[&root.inputs], &root.changes, at),
        RootAt::Slash => mount_overlay(&[&root.inputs, Path::new(MOUNT_POINTS)], &root.changes, at),
    }
}

/// Mounts what a job needs beside its inputs into a root that will be `/`.
pub(super) fn mount_places(
    spec: &JobSpec,
    user: Option<JobUser>,
    root: &Path,
) -> Result<(), SetUpError> {
    for name in MOUNT_POINT_NAMES {
        let place = root.join(name);
        let found = fs::symlink_metadata(&place).at(|| format!("look at /{name}"))?;
        // Nothing may be mounted elsewhere by a link.
        if !found.is_dir() {
            let reason = format!("/{name} of the input root is no directory, and it is to be /");
            return Err(SetUpError::Inputs(reason));
        }
    }
    let devices = below(Path::new(JOB_ROOT), "/dev");
    namespaces::bind(&devices, &root.join("dev"), Access::ReadOnlyDevices)?;
    private_tmpfs(&root.join("dev/shm"), "1777", spec.tmp_size_bytes, user)?;
    private_tmpfs(&root.join("tmp"), "1777", spec.tmp_size_bytes, user)?;
    namespaces::mount_proc(&root.join("proc"))?;
    let names = root.join("etc/resolv.conf");
    let is_plain = |path: &Path, is: fn(&fs::Metadata) -> bool| {
        fs::symlink_metadata(path).is_ok_and(|found| is(&found))
    };
    let has_names = is_plain(&root.join("etc"), fs::Metadata::is_dir)
        && is_plain(&names, fs::Metadata::is_file);
    if spec.network && has_names {
        namespaces::bind(Path::new(RESOLV_CONF), &names, Access::ReadOnly)?;
    }
    Ok(())
}

/// Makes the directories that are to be there when the commands start. To be called as the job's user, in
/// its root.
pub(super) fn make_directories(root: &InputRoot) -> Result<(), SetUpError> {
    let base = Path::new(root.at.path());
    for directory in &root.directories {
        if let Err(error) = fs::create_dir_all(base.join(directory)) {
            let shown = directory.display();
            return Err(match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EIO | Errno::ENOSPC | Errno::EDQUOT | Errno::ENOMEM | Errno::ENFILE => {
                    let step = format!("make the directory {shown} of an output");
                    SandboxError::Step { step, source: error }.into()
                }
                errno => {
                    let reason = errno.desc().to_lowercase();
                    SetUpError::Inputs(format!("cannot make the directory {shown}: {reason}"))
                }
            });
        }
    }
    Ok(())
}

/// Mounts an overlay with changes in `changes`, a directory that does not exist yet, and sees whether what
/// it keeps there can be read.
///
/// # Errors
/// What keeps jobs of this host from having input roots.
pub(super) fn try_out(changes: &Path) -> Result<(), SandboxError> {
    let trial = changes.join(TRIAL);
    let tried = try_in(&trial);
    match fs::remove_dir_all(&trial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && tried.is_ok() => {
            Err(error).at(|| format!("remove {}", trial.display()))
        }
        _ => tried,
    }
}

fn try_in(trial: &Path) -> Result<(), SandboxError> {
    let [tree, upper] =
        [INPUT_ROOT.into(), trial.join(CHANGES_DIR)].map(|it: PathBuf| it.join("tmp"));
    for name in [CHANGES_DIR, WORK_DIR] {
        let path = trial.join(name);
        fs::create_dir_all(&path).at(|| format!("make {}", path.display()))?;
    }
    mount_overlay(&[Path::new(MOUNT_POINTS)], trial, Path::new(INPUT_ROOT))?;
    let replaced = fs::remove_dir(&tree).and_then(|()| fs::create_dir(&tree));
    namespaces::detach(Path::new(INPUT_ROOT))?;
    replaced.at(|| "replace a directory in an overlay".to_owned())?;
    let opaque = fs::File::open(&upper).and_then(distbuild_cas::is_opaque);
    match opaque.at(|| format!("look at {}", upper.display()))? {
        true => Ok(()),
        false => Err(io::Error::other("it is not marked")).at(|| "read an overlay".to_owned()),
    }
}

/// Mounts an overlay of these layers, the uppermost first, below the one in `changes`.
fn mount_overlay(lower: &[&Path], changes: &Path, at: &Path) -> Result<(), SandboxError> {
    let step = || format!("mount an overlay with its changes in {}", changes.display());
    let mut options = b"lowerdir=".to_vec();
    for (position, path) in lower.iter().enumerate() {
        if position > 0 {
            options.push(b':');
        }
        escape(path, &mut options);
    }
    for (name, directory) in [(&b",upperdir="[..], CHANGES_DIR), (b",workdir=", WORK_DIR)] {
        options.extend_from_slice(name);
        escape(&changes.join(directory), &mut options);
    }
    options.push(b',');
    options.extend_from_slice(OPTIONS);
    if options.len() > MAX_OPTION_BYTES {
        return Err(io::Error::from(io::ErrorKind::InvalidFilename)).at(step);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let options = std::ffi::OsString::from_vec(options);
    nix::mount::mount(Some("overlay"), at, Some("overlay"), flags, Some(options.as_os_str()))
        .at(step)
}

/// A path as the options of an overlay have it, in which comma and colon mean something.
fn escape(path: &Path, options: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        if b"\\,:".contains(byte) {
            options.push(b'\\');
        }
        options.push(*byte);
    }
}
