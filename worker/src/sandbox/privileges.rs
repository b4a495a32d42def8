//! Giving up privileges: what the spawner can give up once for all jobs, and what each init must.

use std::io;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::config::JobUser;
use super::error::{AtStep, SandboxError};

// From linux/securebits.h: user 0 gains nothing by exec, no ambient capabilities; both for good.
const SECBIT_NOROOT: libc::c_ulong = 1 << 0;
const SECBIT_NOROOT_LOCKED: libc::c_ulong = 1 << 1;
const SECBIT_NO_CAP_AMBIENT_RAISE: libc::c_ulong = 1 << 6;
const SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED: libc::c_ulong = 1 << 7;

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up what the spawner itself never needs, because it never executes a program, and what its
/// jobs therefore need not give up one by one: everything that an exec could bring. Also what jobs
/// must not inherit from whoever started the worker: signal settings, umask, core files, keys.
pub(super) fn restrict_for_good() -> Result<(), SandboxError> {
    reset_signals().at(|| "reset the handling of signals".to_owned())?;
    umask(Mode::from_bits_truncate(0o022));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).at(|| "forbid core files".to_owned())?;
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).at(|| "read the file limit".to_owned())?;
    setrlimit(Resource::RLIMIT_NOFILE, files, files).at(|| "raise the file limit".to_owned())?;
    leave_session_keyring().at(|| "leave the session's keyring".to_owned())?;
    drop_bounding_set().at(|| "drop the capability bounding set".to_owned())?;
    prctl_number(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong)
        .at(|| "drop the ambient capabilities".to_owned())?;
    let bits = SECBIT_NOROOT
        | SECBIT_NOROOT_LOCKED
        | SECBIT_NO_CAP_AMBIENT_RAISE
        | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    prctl_number(libc::PR_SET_SECUREBITS, bits).at(|| "set the secure bits".to_owned())?;
    prctl::set_no_new_privs().at(|| "forbid new privileges".to_owned())
}

/// Gives up user and capabilities for good; what runs from here on is the job's.
pub(super) fn become_job(user: Option<JobUser>, max_open_files: u64) -> Result<(), SandboxError> {
    limit_open_files(max_open_files).at(|| "limit open files".to_owned())?;
    if let Some(JobUser { uid, gid }) = user {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setgroups(&[]).at(|| "leave all groups".to_owned())?;
        setresgid(gid, gid, gid).at(|| format!("become group {gid}"))?;
        setresuid(uid, uid, uid).at(|| format!("become user {uid}"))?;
    }
    drop_capabilities().at(|| "drop all capabilities".to_owned())?;
    // The job's processes have the same user: they must not trace init or read its memory.
    prctl::set_dumpable(false).at(|| "forbid tracing".to_owned())?;
    // A change of user has cleared this; the spawner's death is the job's.
    prctl::set_pdeathsig(Signal::SIGKILL).at(|| "ask to die with the spawner".to_owned())
}

/// Every signal as a fresh process has it: none ignored (the Rust runtime ignores SIGPIPE, others
/// may have been ignored by whoever started the worker), none blocked.
#[expect(
    unsafe_code,
    reason = "libraries refuse to touch the signals that they keep to themselves"
)]
fn reset_signals() -> Result<(), Errno> {
    /// Larger than any architecture's `struct sigaction` of the kernel; zero is the default action.
    const DEFAULT: [u64; 8] = [0; 8];
    /// Size of the kernel's signal set.
    const SET_BYTES: usize = 8;
    let none = std::ptr::null_mut::<u64>();
    for number in 1..=64 {
        if number != libc::SIGKILL && number != libc::SIGSTOP {
            // SAFETY: the kernel reads one struct; the default disposition runs no code of ours.
            let result = unsafe {
                libc::syscall(libc::SYS_rt_sigaction, number, DEFAULT.as_ptr(), none, SET_BYTES)
            };
            Errno::result(result)?;
        }
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Leaves the keyring of the session that started the worker for a new one, where there are
/// keyrings.
#[expect(unsafe_code, reason = "a system call without wrapper")]
fn leave_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for an anonymous keyring; nothing is written.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
    match Errno::result(result) {
        // No keyrings in this kernel, or (in containers) forbidden: then there is none to leave.
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0.. {
        match prctl_number(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // One beyond the last that this kernel knows.
            Err(Errno::EINVAL) if capability > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "options of prctl that nix lacks")]
fn prctl_number(option: libc::c_int, argument: libc::c_ulong) -> Result<(), Errno> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used here take numbers only.
    Errno::result(unsafe { libc::prctl(option, argument, zero, zero, zero) }).map(drop)
}

#[expect(unsafe_code, reason = "a system call without wrapper")]
fn drop_capabilities() -> Result<(), Errno> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let none = [CapabilityData::default(); 2];
    // SAFETY: version 3 reads one header and two data structs, which outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(result).map(drop)
}

fn limit_open_files(max: u64) -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = max.min(hard);
    Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?)
}
