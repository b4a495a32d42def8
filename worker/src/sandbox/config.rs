//! What the spawner is told at its start: which parts of the host jobs may see, and as whom they
//! run.
//!
//! It serialises, so that whoever starts the spawner's process can hand it over as it likes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Host directories that hold toolchains; those that exist are shown to jobs by default.
const TOOLCHAIN_DIRECTORIES: [&str; 8] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt"];

/// Entries of the host's `/etc` that toolchains need and that hold no secret. No `localtime`: a
/// job's time zone does not depend on its host. Not `ssl` whole: private keys live below it.
const ETC_ENTRIES: [&str; 10] = [
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "os-release",
    "pki/ca-trust/extracted",
    "ssl/certs",
    "ssl/openssl.cnf",
];

/// The spawner's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnerConfig {
    /// Host directories that jobs see read-only, at the same absolute paths. A symlink that leads
    /// into another of them stays a symlink; any other is followed. All must exist.
    pub directories: Vec<PathBuf>,
    /// Entries of the host's `/etc` that jobs see, relative to it; those that do not exist are left
    /// out. Directories follow the host, files are copied when the spawner starts.
    pub etc: Vec<PathBuf>,
    /// Files and directories that jobs must not see although they lie in one of `directories`: the
    /// worker's state, keys. All must exist. They appear empty. `sources` are always hidden so.
    pub hidden: Vec<PathBuf>,
    /// Directories from which jobs' mounts are taken: the mount of the file system, and where
    /// output directories are made. Nothing else of the host can be bound into a job.
    pub sources: Vec<PathBuf>,
    /// A directory below one of `sources` where jobs' [`changes`](super::InputRoot::changes) will be:
    /// whether that works is tried at the start. `None`: it is not tried, and [`Spawner`](super::Spawner) says so.
    pub changes: Option<PathBuf>,
    /// As whom jobs run when the spawner is root. `None`: the spawner lives in a user namespace
    /// that maps one user only, and jobs keep that user without its capabilities.
    pub job_user: Option<JobUser>,
    /// Most jobs at once; more are refused.
    pub max_jobs: usize,
}

/// A user and a group of the host that own nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobUser {
    /// User id, not 0.
    pub uid: u32,
    /// Group id, not 0.
    pub gid: u32,
}

impl SpawnerConfig {
    /// Jobs see the host's usual toolchain directories, and can be given what lies in `sources`.
    pub fn new(sources: Vec<PathBuf>, job_user: Option<JobUser>) -> Self {
        let directories = TOOLCHAIN_DIRECTORIES.map(PathBuf::from);
        Self {
            directories: directories.into_iter().filter(|path| path.exists()).collect(),
            etc: ETC_ENTRIES.map(PathBuf::from).into(),
            hidden: Vec::new(),
            sources,
            changes: None,
            job_user,
            max_jobs: 1024,
        }
    }

    /// All places of the host that jobs see: what the toolchain's
    /// [fingerprint](super::fingerprint) is taken over.
    pub fn visible(&self) -> Vec<PathBuf> {
        let etc = self.etc.iter().map(|entry| Path::new("/etc").join(entry));
        self.directories.iter().cloned().chain(etc.filter(|path| path.exists())).collect()
    }
}
