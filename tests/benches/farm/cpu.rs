//! Time on processors: of daemons with everything they started, and of commands that were waited for.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Seconds that a process and its descendants have used, those that have ended and were waited for
/// included. The kernel counts in ticks of 10 ms.
pub(crate) fn of_tree(root: Pid) -> f64 {
    let processes: Vec<Stat> = std::fs::read_dir("/proc").unwrap().filter_map(Stat::read).collect();
    let mut tree = vec![root.as_raw()];
    let mut ticks = 0;
    while let Some(pid) = tree.pop() {
        ticks += processes.iter().find(|stat| stat.pid == pid).map_or(0, |stat| stat.ticks);
        tree.extend(processes.iter().filter(|stat| stat.parent == pid).map(|stat| stat.pid));
    }
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    ticks as f64 / per_second as f64
}

/// Seconds that commands of this process have used that were waited for.
pub(crate) fn of_commands() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}

struct Stat {
    pid: i32,
    parent: i32,
    ticks: u64,
}

impl Stat {
    /// Of an entry of `/proc`; none if that is no process, or one that has just ended.
    fn read(entry: std::io::Result<std::fs::DirEntry>) -> Option<Self> {
        let entry = entry.unwrap();
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let text = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in brackets may hold anything; from the state on, fields are numbered from 3.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let parent = fields[4 - 3].parse().ok()?;
        // utime, stime, and both of the children that were waited for.
        let ticks = fields[14 - 3..=17 - 3].iter().filter_map(|field| field.parse::<u64>().ok());
        Some(Self { pid, parent, ticks: ticks.sum() })
    }
}
