//! What a job can see, and what it cannot do.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use distbuild_worker::sandbox::JobEnd;

use crate::Test;
use crate::daemon::{As, Daemon, JOB, exec, sh};

pub(crate) const TESTS: &[Test] = &[
    ("only_outputs_home_and_tmp_are_writable", only_outputs_home_and_tmp_are_writable),
    ("inputs_are_read_only_and_readable", inputs_are_read_only_and_readable),
    ("the_network_is_off_but_for_loopback", the_network_is_off_but_for_loopback),
    ("the_network_can_be_shared", the_network_can_be_shared),
    ("a_job_sees_nothing_of_what_others_did_in_a_network", a_job_sees_nothing_of_other_networks),
    ("quiet_jobs_of_root_use_one_network_after_the_other", quiet_jobs_use_one_network),
    ("the_host_name_is_fixed", the_host_name_is_fixed),
    ("tmp_and_home_are_private_and_limited", tmp_and_home_are_private_and_limited),
    ("the_state_directory_is_hidden", the_state_directory_is_hidden),
    ("the_root_holds_nothing_else", the_root_holds_nothing_else),
    ("a_job_has_no_privileges", a_job_has_no_privileges),
    ("a_job_sees_its_own_processes_only", a_job_sees_its_own_processes_only),
    ("init_cannot_be_traced_or_killed", init_cannot_be_traced_or_killed),
    ("no_descriptor_leaks_into_a_command", no_descriptor_leaks_into_a_command),
    ("devices_work", devices_work),
    ("a_compiler_works", a_compiler_works),
    ("a_mount_from_elsewhere_is_refused", a_mount_from_elsewhere_is_refused),
    ("a_bad_configuration_is_told", a_bad_configuration_is_told),
];

fn only_outputs_home_and_tmp_are_writable(kind: As) {
    let daemon = Daemon::start(kind);
    let script = "for d in / /usr /usr/bin /etc /dev /distbuild /distbuild/src /distbuild/dep /var /run \
                  /proc /etc/alternatives; do touch $d/x 2>/dev/null && echo $d; done; \
                  for f in /etc/passwd /etc/hosts /usr/bin/env /distbuild/src/in; do \
                  (echo >> $f) 2>/dev/null && echo $f; done; \
                  for d in /distbuild/out /distbuild/home /tmp /dev/shm /var/tmp; do \
                  touch $d/x || echo not $d; done; umask";
    let job = daemon.job(vec![sh(script)]);
    fs::write(job.dir("src").join("in"), "").unwrap();
    let outcome = job.run();
    assert_eq!((outcome.out().as_str(), outcome.err().as_str()), ("0022\n", ""));
    assert!(job.dir("out").join("x").exists());
}

fn inputs_are_read_only_and_readable(kind: As) {
    let daemon = Daemon::start(kind);
    let script = "cat /distbuild/src/in /distbuild/dep/0/out.txt; \
                  rm -f /distbuild/src/in; chmod 777 /distbuild/src; \
                  mv /distbuild/dep/0 /distbuild/out/; echo >> /distbuild/src/in; true";
    let job = daemon.job(vec![sh(script)]);
    fs::write(job.dir("src").join("in"), "source\n").unwrap();
    fs::create_dir(job.dir("dep").join("0")).unwrap();
    fs::write(job.dir("dep").join("0/out.txt"), "dependency\n").unwrap();
    let outcome = job.run();
    assert_eq!(outcome.out(), "source\ndependency\n");
    assert!(outcome.err().matches("Read-only file system").count() >= 3, "{}", outcome.err());
    assert_eq!(fs::read_to_string(job.dir("src").join("in")).unwrap(), "source\n");
}

const INTERFACES: &str = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '";

fn the_network_is_off_but_for_loopback(kind: As) {
    let daemon = Daemon::start(kind);
    let printed = daemon.sh(&format!("{INTERFACES}; cat /sys/x 2>/dev/null")).out();
    assert_eq!(printed, "lo\n");
    // A real connection over loopback; nothing else has a route.
    let script = "import socket\n\
                  s = socket.create_server(('127.0.0.1', 0))\n\
                  c = socket.create_connection(s.getsockname())\n\
                  c.sendall(b'x'); print(s.accept()[0].recv(1))\n\
                  try: socket.create_connection(('192.0.2.1', 9), 1)\n\
                  except OSError as e: print(e.strerror)";
    let job = daemon.job(vec![exec(&["python3", "-c", script])]);
    assert_eq!(job.run().succeeded(), "b'x'\nNetwork is unreachable\n");
}

fn the_network_can_be_shared(kind: As) {
    let daemon = Daemon::start(kind);
    let mut job = daemon.job(vec![sh(&format!("{INTERFACES}; cat /etc/resolv.conf"))]);
    job.spec.network = true;
    let here = std::process::Command::new("sh").args(["-c", INTERFACES]).output().unwrap().stdout;
    let resolv_conf = fs::read("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(job.run().succeeded().into_bytes(), [here, resolv_conf].concat());
}

/// Leaves a connection in TIME_WAIT, a counted error, a flow label and an abstract name in use.
const NOISE: &str = "import socket, struct\n\
    s = socket.create_server(('127.0.0.1', 4711)); c = socket.create_connection(s.getsockname())\n\
    a = s.accept()[0]; a.close(); c.recv(1); c.close(); s.close()\n\
    try: socket.create_connection(('192.0.2.1', 9), 1)\n\
    except OSError: pass\n\
    u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
    label = socket.inet_pton(socket.AF_INET6, '::1') + struct.pack('!I', 7)\n\
    u.setsockopt(socket.IPPROTO_IPV6, 32, label + struct.pack('BBHHHI', 0, 255, 1, 0, 6, 0))\n\
    x = socket.socket(socket.AF_UNIX); x.bind('\\0name'); x.listen()\n\
    print(open('/proc/net/tcp').read().count('\\n') > 1)";

fn a_job_sees_nothing_of_other_networks(kind: As) {
    let daemon = Daemon::start(kind);
    let look = "cd /proc/net; cat dev snmp netstat snmp6 ip6_flowlabel tcp tcp6 udp udp6 unix; \
                head -n1 sockstat";
    let first = daemon.sh(look).succeeded();
    for _ in 0..3 {
        // Each leaves its network as it found it, to the next.
        assert!(daemon.sh(look).succeeded() == first);
        let noisy = daemon.job(vec![exec(&["python3", "-c", NOISE])]).run();
        assert_eq!(noisy.succeeded(), "True\n");
        assert!(daemon.sh(look).succeeded() == first);
    }
}

fn quiet_jobs_use_one_network(kind: As) {
    let daemon = Daemon::start(kind);
    let network = || daemon.sh("readlink /proc/self/ns/net").succeeded();
    // The first may have come before there was one.
    let _ = network();
    let one = network();
    assert_eq!(network() == one, kind == As::Root);
    let noisy = daemon.job(vec![exec(&["python3", "-c", NOISE])]);
    assert_eq!(noisy.run().succeeded(), "True\n");
    assert_ne!(network(), one);
    // Of two jobs at once each has its own.
    let mut other = daemon.job(vec![sh("readlink /proc/self/ns/net; sleep 1000")]).start();
    assert_ne!(other.line(), network());
    // A job with the host's network takes none of them.
    let mut sharing = daemon.job(vec![sh("readlink /proc/self/ns/net")]);
    sharing.spec.network = true;
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(sharing.run().succeeded().trim(), host.to_str().unwrap());
}

fn the_host_name_is_fixed(kind: As) {
    let outcome = Daemon::start(kind).sh("uname -n; id -un; cat /etc/hosts | wc -l");
    assert_eq!(outcome.succeeded(), "distbuild\ndistbuild\n2\n");
}

fn tmp_and_home_are_private_and_limited(kind: As) {
    let daemon = Daemon::start(kind);
    let script = "ls -A /tmp /distbuild/home /dev/shm | grep -v : | grep . ; \
                  echo x > /tmp/mine; echo x > ~/mine; \
                  head -c 3000000 /dev/zero > /tmp/big 2>/dev/null || echo tmp full; \
                  head -c 5000000 /dev/zero > ~/big 2>/dev/null || echo home full; \
                  rm ~/big; head -c 1000000 /dev/zero > ~/fits && echo fits";
    for _ in 0..2 {
        let mut job = daemon.job(vec![sh(script)]);
        job.spec.tmp_size_bytes = 2 << 20;
        job.spec.home_size_bytes = 4 << 20;
        let script = job.run().succeeded();
        assert!(script == "tmp full\nhome full\nfits\n", "{script}");
    }
}

fn the_state_directory_is_hidden(kind: As) {
    // In a directory that jobs are shown there is also what they must not see.
    let shown = tempfile::tempdir_in("/usr/local").unwrap();
    fs::set_permissions(shown.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["tools", "state", "actions"] {
        fs::create_dir(shown.path().join(name)).unwrap();
        fs::write(shown.path().join(name).join("file"), name).unwrap();
    }
    fs::write(shown.path().join("key"), "secret").unwrap();
    let daemon = Daemon::start_with(kind, |config, _| {
        config.hidden.extend(["state", "key"].map(|name| shown.path().join(name)));
        config.sources.push(shown.path().join("actions"));
    });
    let script =
        "cd $0 && cat tools/file; cat key; ls state; cat state/file; ls actions; ls $1; true";
    let (shown, state) = (shown.path().to_str().unwrap(), daemon.state.path().to_str().unwrap());
    let outcome = daemon.job(vec![exec(&["sh", "-c", script, shown, state])]).run();
    assert_eq!(outcome.out(), "tools", "{outcome:?}");
    let errors = outcome.err();
    assert_eq!(errors.matches("Permission denied").count(), 4, "{errors}");
    assert_eq!(errors.matches("No such file or directory").count(), 1, "{errors}");
}

fn the_root_holds_nothing_else(kind: As) {
    let printed = Daemon::start(kind)
        .sh("ls -A /; ls -A /distbuild; cut -d' ' -f5 /proc/self/mountinfo")
        .succeeded();
    for name in [".host", ".job", "root", "home", "work", "old_root"] {
        let lists = printed.lines().take_while(|line| *line != "dep").any(|line| line == name);
        assert!(!lists, "{name} is visible:\n{printed}");
    }
    assert!(printed.contains("/distbuild/out\n"), "{printed}");
    assert!(!printed.contains("actions"), "a mount of the stage is left:\n{printed}");
}

fn a_job_has_no_privileges(kind: As) {
    let script = "grep -E '^(Cap|NoNewPrivs|Uid|Gid|Groups)' /proc/self/status; \
                  ulimit -c; ulimit -n; cat /proc/sys/kernel/ostype > /dev/null";
    let daemon = Daemon::start(kind);
    let mut job = daemon.job(vec![sh(script)]);
    job.spec.max_open_files = 200;
    let printed = job.run().succeeded();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(printed.contains(&format!("{set}:\t0000000000000000\n")), "{printed}");
    }
    assert!(printed.contains("NoNewPrivs:\t1\n"), "{printed}");
    assert!(printed.ends_with("\n0\n200\n"), "{printed}");
    if kind == As::Root {
        let (uid, gid) = (JOB.uid, JOB.gid);
        assert!(printed.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{printed}");
        assert!(printed.contains(&format!("Gid:\t{gid}\t{gid}\t{gid}\t{gid}\n")), "{printed}");
        assert!(printed.contains("Groups:\t \n"), "{printed}");
    }
    for forbidden in
        ["mount -t tmpfs none /tmp", "hostname x", "umount /distbuild/src", "chroot / true"]
    {
        let outcome = daemon.sh(forbidden);
        assert!(!matches!(outcome.ended.end, JobEnd::Exited { code: 0, .. }), "{forbidden} worked");
    }
}

fn a_job_sees_its_own_processes_only(kind: As) {
    let script = "echo /proc/[0-9]*; stat -c %u /proc/1/comm > /dev/null; cat /proc/self/stat | cut -d' ' -f6";
    let printed = Daemon::start(kind).sh(script).succeeded();
    // Init, the shell; the session is init's.
    assert_eq!(printed, "/proc/1 /proc/2\n1\n");
}

fn init_cannot_be_traced_or_killed(kind: As) {
    let script = "kill -9 1; kill -TERM 1; kill -INT 1; \
                  for f in mem environ maps fd/0 root; do \
                  head -c 1 /proc/1/$f > /dev/null 2>&1 && echo $f; ls /proc/1/$f/ >/dev/null 2>&1 && echo $f; done; \
                  echo alive";
    assert_eq!(Daemon::start(kind).sh(script).succeeded(), "alive\n");
}

fn no_descriptor_leaks_into_a_command(kind: As) {
    let daemon = Daemon::start(kind);
    let mut other = daemon.job(vec![sh("echo up; sleep 1000")]).start();
    assert_eq!(other.line(), "up\n");
    // 3 is ls's own.
    assert_eq!(daemon.sh("ls /proc/self/fd").succeeded(), "0\n1\n2\n3\n");
}

fn devices_work(kind: As) {
    let script = "head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; head -c 4 /dev/random | wc -c; \
                  echo x > /dev/null; echo x > /dev/full; ls /dev; (: < /dev/tty) 2>/dev/null && echo tty; true";
    let outcome = Daemon::start(kind).sh(script);
    let expected = "4\n4\n4\nfd\nfull\nnull\nrandom\nshm\nstderr\nstdin\nstdout\nurandom\nzero\n";
    assert_eq!(outcome.out(), expected, "{outcome:?}");
    assert!(outcome.err().contains("I/O error"), "{outcome:?}");
}

fn a_compiler_works(kind: As) {
    let daemon = Daemon::start(kind);
    let script = "printf 'int main(void){return 0;}' > /tmp/a.c && cc -o /distbuild/out/a /tmp/a.c && \
                  /distbuild/out/a && echo compiled";
    assert_eq!(daemon.sh(script).succeeded(), "compiled\n");
}

fn a_mount_from_elsewhere_is_refused(kind: As) {
    let daemon = Daemon::start(kind);
    for (from, to) in [
        ("/etc", "/distbuild/src"),
        ("/tmp", "/distbuild/src"),
        ("/.job", "/distbuild/../etc"),
        ("/.job", "/etc"),
        ("/.job", "/distbuild/elsewhere"),
    ] {
        let mut job = daemon.job(vec![sh("true")]);
        job.spec.mounts[0].from = from.into();
        job.spec.mounts[0].to = to.into();
        let outcome = job.run();
        // The state directory of these tests lies in /tmp: of that the stage has the path to it
        // only.
        let refused = matches!(&outcome.ended.end, JobEnd::SetupFailed(_));
        assert!(refused || from == "/tmp", "{from} at {to}: {outcome:?}");
    }
    let mut job = daemon.job(vec![sh("cd /distbuild/src && ls -A | wc -l && ls -A $(ls -A)")]);
    job.spec.mounts[0].from = "/tmp".into();
    assert_eq!(job.run().succeeded(), "1\nactions\n");
}

fn a_bad_configuration_is_told(kind: As) {
    let start = |directory: &str| {
        let directory = PathBuf::from(directory);
        let started = Daemon::try_start(kind, |config, _| config.directories.push(directory));
        started.err().expect("a refusal").to_string()
    };
    assert!(start("/").contains("cannot be shown the host's /"));
    assert!(start("/etc").contains("cannot be shown the host's /etc"));
    assert!(start("/no/such/directory").contains("/no/such/directory"));
    assert!(start("/usr/../root").contains("not an absolute path"));
    let hidden = Daemon::try_start(kind, |config, _| config.hidden.push("/usr".into()));
    assert!(hidden.err().expect("a refusal").to_string().contains("which is hidden"));
}
