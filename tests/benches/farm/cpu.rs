//! Time on processors: of daemons with everything they started, and of commands that were waited for.

use distbuild_tests::Farm;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::time::clock_getcpuclockid;
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::samples::Samples;

/// Seconds that a process and its descendants have used, those that have ended and were waited for
/// included. The kernel counts in ticks of 10 ms.
pub(crate) fn of_tree(root: Pid) -> f64 {
    let processes = Stat::read_all();
    let mut tree = vec![root.as_raw()];
    let mut ticks = 0;
    while let Some(pid) = tree.pop() {
        let known = processes.iter().find(|stat| stat.pid == pid);
        ticks += known.map_or(0, |stat| stat.own_ticks + stat.waited_ticks);
        tree.extend(processes.iter().filter(|stat| stat.parent == pid).map(|stat| stat.pid));
    }
    seconds(ticks)
}

/// Seconds that one process has used with all its threads, without what it started.
pub(crate) fn of_process(process: Pid) -> f64 {
    let clock = clock_getcpuclockid(process).unwrap();
    clock.now().unwrap().num_nanoseconds() as f64 / 1e9
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as f64
}

/// Seconds that commands of this process have used that were waited for.
pub(crate) fn of_commands() -> f64 {
    let Commands { user, system } = commands();
    user + system
}

/// Seconds, apart.
pub(crate) struct Commands {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

/// What commands of this process have used that were waited for.
pub(crate) fn commands() -> Commands {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    Commands { user: seconds(usage.user_time()), system: seconds(usage.system_time()) }
}

/// Seconds that this process has used with all its threads.
pub(crate) fn of_this_process() -> f64 {
    of_process(Pid::this())
}

/// Processor time a job, of each process that has a part in it.
pub(crate) struct Spent {
    of_client: fn() -> f64,
    coordinator: Pid,
    worker: Pid,
    jobs: usize,
    samples: [Samples; 3],
}

impl Spent {
    /// On a farm of one worker, by so many jobs of a client whose time is known.
    pub(crate) fn of(farm: &Farm, of_client: fn() -> f64, jobs: usize) -> Self {
        let worker = farm.workers[0].as_ref().unwrap().pid();
        let coordinator = farm.coordinator.pid();
        Self { of_client, coordinator, worker, jobs, samples: Default::default() }
    }

    /// Takes a sample while all these jobs run.
    pub(crate) fn during(&mut self, work: impl FnOnce() -> f64) -> f64 {
        let before = self.now();
        let result = work();
        let spent = self.now().into_iter().zip(before).map(|(after, before)| after - before);
        for (samples, seconds) in self.samples.iter_mut().zip(spent) {
            samples.push(seconds / self.jobs as f64);
        }
        result
    }

    fn now(&self) -> [f64; 3] {
        [(self.of_client)(), of_tree(self.coordinator), of_tree(self.worker)]
    }

    /// Seconds a job.
    pub(crate) fn by_process(&self) -> impl Iterator<Item = (&'static str, &Samples)> {
        ["client", "coordinator", "worker and the jobs"].into_iter().zip(&self.samples)
    }
}

struct Stat {
    pid: i32,
    parent: i32,
    own_ticks: u64,
    /// Of children that were waited for.
    waited_ticks: u64,
}

impl Stat {
    fn read_all() -> Vec<Self> {
        std::fs::read_dir("/proc").unwrap().filter_map(Self::read).collect()
    }

    /// Of an entry of `/proc`; none if that is no process, or one that has just ended.
    fn read(entry: std::io::Result<std::fs::DirEntry>) -> Option<Self> {
        let entry = entry.unwrap();
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let text = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in brackets may hold anything; from the state on, fields are numbered from 3.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let parent = fields[4 - 3].parse().ok()?;
        // Of each kind the user's and the system's.
        let ticks = |from: usize| {
            let pair = fields[from - 3..=from - 2].iter();
            pair.filter_map(|field| field.parse::<u64>().ok()).sum()
        };
        Some(Self { pid, parent, own_ticks: ticks(14), waited_ticks: ticks(16) })
    }
}
