//! What commands are given and how their ends are told.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use distbuild_worker::sandbox::{Command, JobEnd};

use crate::Test;
use crate::daemon::{As, Daemon, cat, environ, exec, sh};

pub(crate) const TESTS: &[Test] = &[
    ("echo_prints_ok", echo_prints_ok),
    ("an_exit_code_is_reported_with_its_command", an_exit_code_is_reported_with_its_command),
    ("a_signal_is_reported_as_a_signal", a_signal_is_reported_as_a_signal),
    ("streams_are_separate_and_in_order", streams_are_separate_and_in_order),
    ("bytes_that_are_no_text_survive", bytes_that_are_no_text_survive),
    ("the_environment_is_exactly_what_was_given", the_environment_is_exactly_what_was_given),
    ("streams_can_be_opened_by_path", streams_can_be_opened_by_path),
    ("a_program_is_looked_up_in_the_commands_path", a_program_is_looked_up_in_the_commands_path),
    ("a_relative_program_starts_at_the_directory", a_relative_program_starts_at_the_directory),
    ("a_missing_program_is_127_with_a_message", a_missing_program_is_127_with_a_message),
    ("what_cannot_be_executed_is_126", what_cannot_be_executed_is_126),
    ("cat_writes_and_truncates_in_place", cat_writes_and_truncates_in_place),
    ("cat_does_not_leave_the_output_directory", cat_does_not_leave_the_output_directory),
    ("a_large_text_arrives_whole", a_large_text_arrives_whole),
    ("signals_are_as_in_a_fresh_process", signals_are_as_in_a_fresh_process),
];

fn echo_prints_ok(kind: As) {
    let outcome = Daemon::start(kind).job(vec![exec(&["echo", "OK"])]).run();
    assert_eq!(outcome.ended.end, JobEnd::Exited { command: 0, code: 0 }, "{outcome:?}");
    assert_eq!((outcome.out().as_str(), outcome.err().as_str()), ("OK\n", ""));
    assert!(outcome.ended.usage.max_rss_bytes > 0);
    assert!(outcome.ended.times.setup_us > 0 && outcome.ended.times.run_us > 0);
}

fn an_exit_code_is_reported_with_its_command(kind: As) {
    let daemon = Daemon::start(kind);
    let outcome = daemon.job(vec![sh("true"), sh("exit 7"), sh("echo never")]).run();
    assert_eq!(outcome.ended.end, JobEnd::Exited { command: 1, code: 7 });
    assert_eq!(outcome.out(), "");
    let outcome = daemon.job(vec![]).run();
    assert_eq!(outcome.ended.end, JobEnd::Exited { command: 0, code: 0 });
}

fn a_signal_is_reported_as_a_signal(kind: As) {
    let daemon = Daemon::start(kind);
    for signal in [libc::SIGSEGV, libc::SIGKILL, libc::SIGRTMIN() + 3] {
        let outcome = daemon.job(vec![sh("true"), sh(&format!("kill -{signal} $$"))]).run();
        assert_eq!(outcome.ended.end, JobEnd::Signaled { command: 1, signal });
    }
}

fn streams_are_separate_and_in_order(kind: As) {
    let commands = vec![sh("echo a; echo b >&2"), sh("printf c; printf d >&2")];
    let outcome = Daemon::start(kind).job(commands).run();
    assert_eq!((outcome.out().as_str(), outcome.err().as_str()), ("a\nc", "b\nd"));
}

fn bytes_that_are_no_text_survive(kind: As) {
    let odd: Vec<u8> = (1..=255).filter(|byte| *byte != b'\\' && *byte != b'%').collect();
    let argv = vec![b"printf".to_vec(), odd.clone()];
    let working_directory = b"/".to_vec();
    let command = Command::Exec { argv, environ: environ(), working_directory };
    let outcome = Daemon::start(kind).job(vec![command]).run();
    assert_eq!(outcome.stdout, odd);
}

fn the_environment_is_exactly_what_was_given(kind: As) {
    let environ: Vec<Vec<u8>> =
        [&b"Z=last first"[..], b"PATH=/usr/bin:/bin", b"A=\xff=", b"EMPTY="].map(Vec::from).into();
    let working_directory = b"/".to_vec();
    let command = Command::Exec { argv: vec![b"env".to_vec()], environ, working_directory };
    let outcome = Daemon::start(kind).job(vec![command]).run();
    assert_eq!(
        outcome.stdout, b"Z=last first\nPATH=/usr/bin:/bin\nA=\xff=\nEMPTY=\n",
        "{outcome:?}"
    );
}

fn streams_can_be_opened_by_path(kind: As) {
    let script = "echo one > /dev/stderr; echo two > /dev/stdout; cat /dev/stdin; cat < /dev/null";
    let outcome = Daemon::start(kind).sh(script);
    assert_eq!((outcome.out().as_str(), outcome.err().as_str()), ("two\n", "one\n"), "{outcome:?}");
}

fn a_program_is_looked_up_in_the_commands_path(kind: As) {
    let daemon = Daemon::start(kind);
    let tool = |path: &str| Command::Exec {
        argv: vec![b"tool".to_vec()],
        environ: vec![format!("PATH={path}").into_bytes()],
        working_directory: b"/distbuild/src/second".to_vec(),
    };
    let run = |path: &str| {
        let job = daemon.job(vec![tool(path)]);
        for name in ["first", "second"] {
            let directory = job.dir("src").join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("tool"), format!("#!/bin/sh\necho {name}\n")).unwrap();
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(directory.join("tool"), mode).unwrap();
        }
        job.run().succeeded()
    };
    assert_eq!(run("/nowhere:/distbuild/src/first:/distbuild/src/second"), "first\n");
    // An empty component is the working directory.
    assert_eq!(run("/nowhere::/distbuild/src/first"), "second\n");
}

fn a_relative_program_starts_at_the_directory(kind: As) {
    let daemon = Daemon::start(kind);
    let job = daemon.job(vec![Command::Exec {
        argv: vec![b"./tool".to_vec()],
        environ: environ(),
        working_directory: b"/distbuild/src/sub dir".to_vec(),
    }]);
    let tool = job.dir("src").join("sub dir/tool");
    fs::create_dir(tool.parent().unwrap()).unwrap();
    fs::write(&tool, "#!/bin/sh\npwd\n").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(job.run().succeeded(), "/distbuild/src/sub dir\n");
}

fn a_missing_program_is_127_with_a_message(kind: As) {
    let daemon = Daemon::start(kind);
    for program in ["no-such-program", "/no/such/program", "./no-such-program"] {
        let outcome = daemon.job(vec![sh("true"), exec(&[program])]).run();
        let JobEnd::Unrunnable { command: 1, code: 127, message } = &outcome.ended.end else {
            panic!("{outcome:?}")
        };
        assert_eq!(outcome.err(), format!("distbuild: {message}\n"));
        assert!(message.contains(program), "{message}");
    }
}

fn what_cannot_be_executed_is_126(kind: As) {
    let daemon = Daemon::start(kind);
    let scripts = [
        ("plain", 0o644, "echo no"),
        ("headless", 0o755, "echo no"),
        ("lost", 0o755, "#!/no/such/interpreter\n"),
    ];
    for (name, mode, text) in scripts {
        let job = daemon.job(vec![exec(&[&format!("./{name}")])]);
        let path = job.dir("src").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let outcome = job.run();
        let JobEnd::Unrunnable { code: 126, message, .. } = &outcome.ended.end else {
            panic!("{name}: {outcome:?}")
        };
        assert!(message.contains(name) && outcome.err().contains(message), "{message}");
    }
    let mut nowhere = exec(&["true"]);
    if let Command::Exec { working_directory, .. } = &mut nowhere {
        *working_directory = b"/distbuild/src/nowhere".to_vec();
    }
    let outcome = daemon.job(vec![nowhere]).run();
    assert!(outcome.err().contains("/distbuild/src/nowhere"), "{outcome:?}");
    assert!(matches!(outcome.ended.end, JobEnd::Unrunnable { code: 126, .. }));
}

fn cat_writes_and_truncates_in_place(kind: As) {
    let daemon = Daemon::start(kind);
    let job = daemon.job(vec![
        sh("echo a much longer text > $0 && ln $0 /distbuild/out/same"
            .replace("$0", NOTE)
            .as_str()),
        cat("short\n", NOTE),
        cat("new", "/distbuild/out/new"),
        sh("mkdir /distbuild/out/d && ln -s d /distbuild/out/link"),
        cat("below", "/distbuild/out/link/../link/file"),
        sh("stat -c %a:%U /distbuild/out/new"),
    ]);
    assert_eq!(job.run().succeeded(), "644:distbuild\n");
    let read = |name: &str| fs::read_to_string(job.dir("out").join(name)).unwrap();
    assert_eq!((read("note"), read("same")), ("short\n".into(), "short\n".into()));
    assert_eq!((read("new"), read("d/file")), ("new".into(), "below".into()));
}

const NOTE: &str = "/distbuild/out/note";

fn cat_does_not_leave_the_output_directory(kind: As) {
    let daemon = Daemon::start(kind);
    for (prepare, output) in [
        ("true", "/tmp/note"),
        ("true", "note"),
        ("true", "/distbuild/out"),
        ("true", "/distbuild/out/"),
        ("true", "/distbuild/outside"),
        ("true", "/distbuild/out/../home/note"),
        ("echo kept > /tmp/kept; ln -s /tmp /distbuild/out/l", "/distbuild/out/l/kept"),
        ("echo kept > /tmp/kept; ln -s /tmp/kept /distbuild/out/l", "/distbuild/out/l"),
        ("ln -s ../home /distbuild/out/l", "/distbuild/out/l/note"),
        ("ln -s /proc/self/fd /distbuild/out/l", "/distbuild/out/l/1"),
        ("mkfifo /distbuild/out/l", "/distbuild/out/l"),
        ("mkfifo /distbuild/out/l; cat /distbuild/out/l & true", "/distbuild/out/l"),
    ] {
        let job = daemon.job(vec![sh(prepare), cat("x", output)]);
        // A link that the host itself would follow.
        symlink("/etc", job.dir("out").join("etc")).unwrap();
        let outcome = job.run();
        let JobEnd::Unrunnable { command: 1, code: 1, message } = &outcome.ended.end else {
            panic!("{output} after {prepare}: {outcome:?}")
        };
        assert!(outcome.err().contains(message), "{outcome:?}");
    }
}

fn a_large_text_arrives_whole(kind: As) {
    let daemon = Daemon::start(kind);
    let text = "0123456789abcde\n".repeat(1 << 18);
    let job = daemon.job(vec![cat(&text, NOTE), sh(&format!("wc -c < {NOTE}"))]);
    assert_eq!(job.run().succeeded().trim(), text.len().to_string());
}

fn signals_are_as_in_a_fresh_process(kind: As) {
    let outcome = Daemon::start(kind).sh("grep -E 'Sig(Blk|Ign)' /proc/self/status");
    let printed = outcome.succeeded();
    let sets: Vec<u64> = printed
        .lines()
        .map(|line| u64::from_str_radix(line.split_once('\t').unwrap().1, 16).unwrap())
        .collect();
    // The C library's posix_spawn ignores the two signals that it keeps to itself, 32 and 33.
    let own = 0b11 << 31;
    assert_eq!((sets[0], sets[1] & !own), (0, 0), "{printed}");
}
