//! The template root: what every job sees of the host, mounted once.
//!
//! The spawner moves into a mount namespace of its own that holds nothing but a *stage*: a small
//! tmpfs with the job root at [`JOB_ROOT`], and the directories that jobs' mounts come from at
//! their own absolute paths. The host's root is dropped. Each init copies this namespace, so the
//! fewer mounts it has the cheaper is a job, and what is not on the stage cannot get into a job by
//! mistake.
//!
//! The job root is a tmpfs that is read-only when it is done; jobs share it and mount their own
//! places above it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::config::SpawnerConfig;
use super::error::{AtStep, SandboxError};
use super::namespaces::{Access, bind, detach, mount_tmpfs, new_mount_namespace, pivot, restrict};
use super::protocol::{DEP_DIR, HOME_DIR, OUTPUT_DIR, ROOT_DIR, SOURCE_DIR};

/// The job root on the stage.
pub(super) const JOB_ROOT: &str = "/.job";
/// A copy of the host's `resolv.conf` on the stage, for jobs with a network.
pub(super) const RESOLV_CONF: &str = "/.resolv.conf";
/// On the stage: where an input root becomes the root of a job.
pub(super) const INPUT_ROOT: &str = "/.root";
/// On the stage: the directories that such a root needs for what is mounted in it, all empty.
pub(super) const MOUNT_POINTS: &str = "/.places";
/// Those directories.
pub(super) const MOUNT_POINT_NAMES: [&str; 3] = ["dev", "proc", "tmp"];
/// The host's root while the stage is built.
const HOST_ROOT: &str = "/.host";
/// Where the stage is mounted before it becomes the root; every Linux has it.
const STAGE: &str = "/tmp";

/// Places that the template makes itself; host directories cannot be put there or below.
const RESERVED: [&str; 6] = ["/dev", "/proc", "/sys", "/tmp", "/distbuild", "/etc"];
/// Largest file of `/etc` that is copied.
const MAX_ETC_FILE_BYTES: u64 = 16 << 20;

/// Device nodes: name, major and minor number.
const DEVICES: [(&str, u64, u64); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];

/// A place of the host and where the job root shows it.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    /// The canonical directory `from`.
    Bind { from: PathBuf, at: PathBuf },
    /// A symlink as the host has it.
    Link { target: PathBuf, at: PathBuf },
    /// A copy of the canonical file `from`.
    Copy { from: PathBuf, at: PathBuf },
}

/// Builds the stage and makes it the root of this process.
///
/// # Errors
/// A directory that does not exist or is reserved, or a mount that the system refuses.
pub(super) fn enter(config: &SpawnerConfig) -> Result<(), SandboxError> {
    // Symlinks are resolved while the host's root is still the root.
    let shown = resolve(config)?;
    let hidden = resolve_hidden(config, &shown)?;
    let sources = canonical(&config.sources)?;

    new_mount_namespace()?;
    let stage = Path::new(STAGE);
    mount_tmpfs(stage, "mode=755,size=64m", Access::Writable)?;
    make_dir(&below(stage, HOST_ROOT))?;
    make_dir(&below(stage, JOB_ROOT))?;
    make_dir(&below(stage, INPUT_ROOT))?;
    for name in MOUNT_POINT_NAMES {
        make_dir(&below(stage, MOUNT_POINTS).join(name))?;
    }
    pivot(stage, &below(stage, HOST_ROOT))?;

    let (job, host) = (Path::new(JOB_ROOT), Path::new(HOST_ROOT));
    mount_tmpfs(job, "mode=755,size=64m", Access::WritableDevices)?;
    skeleton(job)?;
    devices(job, host)?;
    accounts(job, config)?;
    for place in &shown {
        show(place, job, host)?;
    }
    for path in &hidden {
        hide(&below(job, path), job)?;
    }
    restrict(job, Access::ReadOnlyDevices, false)?;

    for (path, from) in config.sources.iter().zip(&sources) {
        make_dir(path)?;
        bind(&below(host, from), path, Access::Writable)?;
    }
    if config.job_user.is_none() {
        // In a user namespace the kernel mounts a new /proc only where a whole one is visible.
        make_dir(Path::new("/proc"))?;
        bind(&below(host, "/proc"), Path::new("/proc"), Access::Writable)?;
    }
    copy_resolv_conf(host)?;
    detach(host)?;
    restrict(Path::new("/"), Access::ReadOnly, false)
}

/// An absolute path moved below another root.
pub(super) fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_dir(path: &Path) -> Result<(), SandboxError> {
    fs::create_dir_all(path).at(|| format!("create {}", path.display()))
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), SandboxError> {
    fs::write(path, text).at(|| format!("write {}", path.display()))
}

fn canonical(paths: &[PathBuf]) -> Result<Vec<PathBuf>, SandboxError> {
    paths.iter().map(|path| canonicalize(path)).collect()
}

fn canonicalize(path: &Path) -> Result<PathBuf, SandboxError> {
    let plain = path.is_absolute()
        && path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    if !plain {
        let reason = format!("{} is not an absolute path without \"..\"", path.display());
        return Err(SandboxError::Config(reason));
    }
    path.canonicalize().at(|| format!("find {}", path.display()))
}

/// Decides for each configured place how the job root shows it.
fn resolve(config: &SpawnerConfig) -> Result<Vec<Shown>, SandboxError> {
    let real: Vec<&PathBuf> =
        config.directories.iter().filter(|path| path.is_dir() && !path.is_symlink()).collect();
    let mut shown = Vec::new();
    for at in &config.directories {
        if at == Path::new("/") || RESERVED.iter().any(|reserved| at.starts_with(reserved)) {
            let reason = format!("jobs cannot be shown the host's {}", at.display());
            return Err(SandboxError::Config(reason));
        }
        canonicalize(at)?;
        let covered = real.iter().any(|other| *other != at && at.starts_with(other));
        if !covered {
            shown.push(resolve_one(at, &real)?);
        }
    }
    for entry in &config.etc {
        let at = Path::new("/etc").join(entry);
        if at.exists() {
            shown.push(resolve_one(&at, &real)?);
        }
    }
    Ok(shown)
}

fn resolve_one(at: &Path, real: &[&PathBuf]) -> Result<Shown, SandboxError> {
    let from = canonicalize(at)?;
    let at = at.to_path_buf();
    if at.is_symlink() && real.iter().any(|other| from.starts_with(other)) {
        let target = fs::read_link(&at).at(|| format!("read the symlink {}", at.display()))?;
        return Ok(Shown::Link { target, at });
    }
    Ok(if from.is_dir() { Shown::Bind { from, at } } else { Shown::Copy { from, at } })
}

/// Where in the job root something must be covered, because it lies in a directory that is shown.
fn resolve_hidden(config: &SpawnerConfig, shown: &[Shown]) -> Result<Vec<PathBuf>, SandboxError> {
    let mut covers = Vec::new();
    for path in canonical(&config.hidden)?.into_iter().chain(canonical(&config.sources)?) {
        for place in shown {
            let Shown::Bind { from, at } = place else { continue };
            if from.starts_with(&path) {
                let (from, path) = (from.display(), path.display());
                let reason = format!("{from} is to be shown but lies in {path}, which is hidden");
                return Err(SandboxError::Config(reason));
            }
            if let Ok(rest) = path.strip_prefix(from) {
                covers.push(at.join(rest));
            }
        }
    }
    // Outermost first; what lies in something covered is gone already.
    covers.sort_unstable();
    covers.dedup_by(|inner, outer| inner.starts_with(outer));
    Ok(covers)
}

fn show(place: &Shown, job: &Path, host: &Path) -> Result<(), SandboxError> {
    let (Shown::Bind { at, .. } | Shown::Link { at, .. } | Shown::Copy { at, .. }) = place;
    let to = below(job, at);
    if let Some(parent) = to.parent() {
        make_dir(parent)?;
    }
    match place {
        Shown::Bind { from, .. } => {
            make_dir(&to)?;
            bind(&below(host, from), &to, Access::ReadOnly)
        }
        Shown::Link { target, .. } => {
            symlink(target, &to).at(|| format!("create the symlink {}", to.display()))
        }
        Shown::Copy { from, .. } => {
            copy(&below(host, from), &to).at(|| format!("copy {}", from.display()))
        }
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut contents = Vec::new();
    let source = File::open(from)?;
    if !source.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    source.take(MAX_ETC_FILE_BYTES + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > MAX_ETC_FILE_BYTES {
        return Err(io::Error::other(format!("larger than {MAX_ETC_FILE_BYTES} bytes")));
    }
    fs::write(to, contents)
}

/// Covers a file or directory by an empty one that nobody can open.
fn hide(at: &Path, job: &Path) -> Result<(), SandboxError> {
    let metadata = at.symlink_metadata().at(|| format!("find {}", at.display()))?;
    if metadata.is_dir() {
        mount_tmpfs(at, "mode=000,size=4k,nr_inodes=1", Access::ReadOnly)
    } else {
        bind(&below(job, "/dev/null"), at, Access::ReadOnly)
    }
}

/// Everything that does not depend on the host.
fn skeleton(job: &Path) -> Result<(), SandboxError> {
    for path in [SOURCE_DIR, DEP_DIR, OUTPUT_DIR, HOME_DIR, ROOT_DIR] {
        make_dir(&below(job, path))?;
    }
    for path in ["/dev/shm", "/etc", "/proc", "/run", "/tmp", "/var"] {
        make_dir(&below(job, path))?;
    }
    for (at, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/var/tmp", "/tmp"),
    ] {
        symlink(target, below(job, at)).at(|| format!("create the symlink {at}"))?;
    }
    Ok(())
}

/// Makes the device nodes; in a user namespace, where nobody can, the host's are bound.
fn devices(job: &Path, host: &Path) -> Result<(), SandboxError> {
    for (name, major, minor) in DEVICES {
        let at = job.join("dev").join(name);
        let mode = Mode::from_bits_truncate(0o666);
        match mknod(&at, SFlag::S_IFCHR, mode, makedev(major, minor)) {
            Ok(()) => fs::set_permissions(&at, Permissions::from_mode(0o666))
                .at(|| format!("set the mode of /dev/{name}"))?,
            Err(Errno::EPERM) => bind_device(&host.join("dev").join(name), &at)?,
            Err(errno) => return Err(errno).at(|| format!("make the device node /dev/{name}")),
        }
    }
    Ok(())
}

fn bind_device(from: &Path, to: &Path) -> Result<(), SandboxError> {
    let metadata = from.metadata().at(|| format!("find {}", from.display()))?;
    if !metadata.file_type().is_char_device() {
        let reason = format!("{} is not a device", from.display());
        return Err(SandboxError::Config(reason));
    }
    write(to, "")?;
    bind(from, to, Access::WritableDevices)
}

/// The users, groups, hosts and name services that a job knows.
fn accounts(job: &Path, config: &SpawnerConfig) -> Result<(), SandboxError> {
    let (uid, gid) = config.job_user.map_or((0, 0), |user| (user.uid, user.gid));
    let mut passwd = format!("distbuild:x:{uid}:{gid}:distbuild:{HOME_DIR}:/bin/sh\n");
    let mut group = format!("distbuild:x:{gid}:\n");
    for (name, id) in [("root", 0), ("nobody", 65534)] {
        if id != uid {
            passwd.push_str(&format!("{name}:x:{id}:{id}:{name}:/:/usr/sbin/nologin\n"));
        }
        if id != gid {
            group.push_str(&format!("{name}:x:{id}:\n"));
        }
    }
    let etc = job.join("etc");
    write(&etc.join("passwd"), passwd)?;
    write(&etc.join("group"), group)?;
    write(&etc.join("hosts"), "127.0.0.1 localhost distbuild\n::1 localhost distbuild\n")?;
    write(&etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
    // Covered by the host's for jobs with a network.
    write(&etc.join("resolv.conf"), "")
}

fn copy_resolv_conf(host: &Path) -> Result<(), SandboxError> {
    // Often a symlink into /run that is absolute, and so has lost its meaning here.
    let mut from = host.join("etc/resolv.conf");
    for _ in 0..8 {
        match fs::read_link(&from) {
            Ok(target) if target.is_absolute() => from = below(host, target),
            Ok(target) => from = from.parent().unwrap_or(host).join(target),
            Err(_) => break,
        }
    }
    let text = match fs::read(&from) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).at(|| "read the host's resolv.conf".to_owned()),
    };
    write(Path::new(RESOLV_CONF), text)
}
