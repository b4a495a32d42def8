//! What this program does when it is started as a helper: serve a mount, or run a command inside the
//! namespaces of one that does.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use distbuild_fs::server::{self, FsConfig};
use distbuild_fs::{MountedFuse, Mounts, Owner, RecordLimits, namespace};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork, setgid, setgroups, setuid};

use crate::rig::PLACES;

pub(crate) const NOBODY: u32 = 65534;

/// How the helper serves; stands on its command line.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) unprivileged: bool,
    pub(crate) deadline: Duration,
    pub(crate) record_entries: usize,
    /// Whether there is a mount at the place already, whose server is dead.
    pub(crate) stale: bool,
    /// Whether there is a second mount, for passthrough.
    pub(crate) passthrough: bool,
    /// Whether the kernel does not allow that.
    pub(crate) powerless: bool,
}

impl Default for Options {
    fn default() -> Self {
        let deadline = Duration::from_secs(60);
        Self {
            unprivileged: false,
            deadline,
            record_entries: 100_000,
            stale: false,
            passthrough: false,
            powerless: false,
        }
    }
}

impl Options {
    pub(crate) fn arguments(&self) -> [String; 6] {
        [
            self.unprivileged.to_string(),
            self.deadline.as_millis().to_string(),
            self.record_entries.to_string(),
            self.stale.to_string(),
            self.passthrough.to_string(),
            self.powerless.to_string(),
        ]
    }

    fn parse(arguments: &[String]) -> Self {
        Self {
            unprivileged: arguments[0].parse().unwrap(),
            deadline: Duration::from_millis(arguments[1].parse().unwrap()),
            record_entries: arguments[2].parse().unwrap(),
            stale: arguments[3].parse().unwrap(),
            passthrough: arguments[4].parse().unwrap(),
            powerless: arguments[5].parse().unwrap(),
        }
    }
}

pub(crate) fn run_if_asked(arguments: &[String]) -> Option<ExitCode> {
    match arguments.first().map(String::as_str) {
        Some("serve") => {
            serve(Path::new(&arguments[1]), Options::parse(&arguments[2..]));
            Some(ExitCode::SUCCESS)
        }
        Some("inside") => {
            let error = inside(&arguments[1], &arguments[2..]);
            panic!("cannot run inside: {error}");
        }
        _ => None,
    }
}

/// Serves a mount for the agent at the other end of stdin. The places are in one folder: see
/// [`crate::rig::PLACES`].
fn serve(folder: &Path, options: Options) {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    if options.unprivileged {
        become_nobody();
    }
    let [usual, passthrough, store] = PLACES.map(|place| folder.join(place));
    namespace::enter().unwrap();
    if options.stale {
        leave_a_stale_mount(&usual);
    }
    let usual = distbuild_fs::mount::mount(&usual).unwrap();
    drop_a_copy_in_a_child(&usual);
    let passthrough =
        options.passthrough.then(|| distbuild_fs::mount::mount(&passthrough).unwrap());
    if options.powerless {
        give_up_administration();
    }
    let limits = RecordLimits { entries: options.record_entries, ..RecordLimits::default() };
    let config = FsConfig {
        want_deadline: options.deadline,
        record_limits: limits,
        owner: Owner { uid: 0, gid: 0 },
        ..FsConfig::new(store)
    };
    server::run(control, Mounts { usual, passthrough }, config).unwrap();
}

/// As the spawner does, which is forked after the mount: the mount must outlive its copy.
#[expect(unsafe_code, reason = "fork")]
fn drop_a_copy_in_a_child(mounted: &MountedFuse) {
    // SAFETY: this process has a single thread, so the child may do what it likes.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            // SAFETY: the child never returns to the owner of the original.
            drop(unsafe { std::ptr::read(mounted) });
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
}

/// As a server that is killed does: nobody unmounts.
#[expect(unsafe_code, reason = "fork")]
fn leave_a_stale_mount(mount_point: &Path) {
    // SAFETY: this process has a single thread, so the child may do what it likes.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let _never_dropped = distbuild_fs::mount::mount(mount_point).unwrap();
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
}

/// As root is in many containers. What is mounted can still be unmounted by the end of the namespace.
#[expect(unsafe_code, reason = "nix knows no capabilities")]
fn give_up_administration() {
    const CAP_SYS_ADMIN: u32 = 21;
    // `struct __user_cap_header_struct` and three sets of two words, of linux/capability.h.
    let mut header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    // SAFETY: both are as long as this version of the interface says.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets), 0);
        sets[0] &= !(1 << CAP_SYS_ADMIN);
        assert_eq!(libc::syscall(libc::SYS_capset, &raw mut header, &raw const sets), 0);
    }
}

/// An ordinary user on a usual system, where everybody may open the device.
fn become_nobody() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let everybody = Mode::from_bits_truncate(0o666);
    mknod("/mnt/fuse", SFlag::S_IFCHR, everybody, makedev(10, 229)).unwrap();
    fs::set_permissions("/mnt/fuse", std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    mount(Some("/mnt/fuse"), "/dev/fuse", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    setgroups(&[]).unwrap();
    setgid(Gid::from_raw(NOBODY)).unwrap();
    setuid(Uid::from_raw(NOBODY)).unwrap();
    // A change of user takes a process' own /proc files away from it.
    prctl::set_dumpable(true).unwrap();
}

/// Becomes a command in the user and mount namespace of a process.
fn inside(pid: &str, command: &[String]) -> io::Error {
    let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let (user, mounts) = (open("user"), open("mnt"));
    let own = File::open("/proc/self/ns/user").unwrap();
    // Nobody can enter the namespace that he is in.
    if user.metadata().unwrap().ino() != own.metadata().unwrap().ino() {
        setns(user, CloneFlags::CLONE_NEWUSER).unwrap();
        // The kernel refuses requests of users whom the mount's namespace does not know.
        setgid(Gid::from_raw(0)).unwrap();
        setuid(Uid::from_raw(0)).unwrap();
    }
    setns(mounts, CloneFlags::CLONE_NEWNS).unwrap();
    Command::new(&command[0]).args(&command[1..]).exec()
}
