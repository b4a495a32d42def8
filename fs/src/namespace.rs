//! A mount namespace of one's own, with or without root.
//!
//! What is mounted in it is seen by nobody else and vanishes with its last process, so nothing is
//! left behind by a kill. The calling process must be single-threaded: the kernel lets no other into a
//! user namespace.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// With which rights a namespace was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// As root: only a mount namespace; read-ahead can be set.
    Root,
    /// As an ordinary user: a user namespace as well, in which this user is root and nobody else
    /// exists.
    User,
}

/// Enters a new mount namespace, and as an ordinary user a new user namespace with it. Mounts made
/// from now on stay inside.
///
/// # Errors
/// The system allows no namespaces; the error names the setting that forbids them.
pub fn enter() -> Result<Privilege, NamespaceError> {
    let (uid, gid) = (geteuid(), getegid());
    let privilege = if uid.is_root() {
        unshare(CloneFlags::CLONE_NEWNS).map_err(NamespaceError::Mount)?;
        Privilege::Root
    } else {
        let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
        unshare(flags)
            .map_err(|errno| NamespaceError::User { errno, cause: forbidding_setting() })?;
        // A group map may only be written by who has given up setgroups.
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
        write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
        Privilege::User
    };
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(NamespaceError::Private)?;
    Ok(privilege)
}

fn write(path: &'static str, text: &str) -> Result<(), NamespaceError> {
    fs::write(path, text).map_err(|source| NamespaceError::Map { path, source })
}

/// Which setting of the kernel or distribution forbids user namespaces, if one is known to.
fn forbidding_setting() -> Option<&'static str> {
    let is = |path: &str, value: &str| {
        fs::read_to_string(Path::new(path)).is_ok_and(|text| text.trim() == value)
    };
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return Some("set sysctl user.max_user_namespaces above 0");
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return Some("set sysctl kernel.unprivileged_userns_clone to 1");
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        return Some("set sysctl kernel.apparmor_restrict_unprivileged_userns to 0");
    }
    None
}

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Root may not make a mount namespace: typical of containers.
    #[error("failed to enter a new mount namespace")]
    Mount(#[source] Errno),
    /// An ordinary user may not make a user namespace.
    #[error(
        "failed to enter a new user namespace{}",
        cause.map(|cause| format!(" ({cause})")).unwrap_or_default()
    )]
    User {
        /// What the kernel said; `EINVAL` if the process has several threads.
        #[source]
        errno: Errno,
        /// What an administrator can do.
        cause: Option<&'static str>,
    },
    /// The user's own number could not be mapped.
    #[error("failed to write {path}")]
    Map {
        /// The file of the map.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Mounts would spread to other namespaces.
    #[error("failed to make all mounts private")]
    Private(#[source] Errno),
}
