//! The mount itself: what a dead server leaves behind, and what can be put above it.

use std::fs;
use std::process::{Command, Stdio};

use crate::Case;
use crate::rig::Rig;
use crate::testd::Options;
use crate::trees::{directory, file};

pub(crate) const CASES: &[Case] = &[
    ("a_stale_mount_is_taken_away", stale_mounts),
    ("an_overlay_can_be_put_above_a_view", overlays),
    ("a_mount_is_read_only_and_without_devices_and_setuid", mount_options),
];

/// The options of everything that is mounted at the rig's place.
fn mounts(rig: &Rig) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", rig.pid())).unwrap();
    let at = rig.inner_path("").to_str().unwrap().trim_end_matches('/').to_owned();
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields[4] == at).map(|fields| fields[5].to_owned()).collect()
}

fn stale_mounts() {
    let rig = Rig::start(Options { stale: true, ..Options::default() });
    rig.add_view(1, &directory([("f", file("data"))]));
    assert_eq!(fs::read(rig.path("action/1/f")).unwrap(), b"data");
    assert_eq!(mounts(&rig).len(), 1);
}

fn mount_options() {
    let rig = Rig::start(Options::default());
    let options = mounts(&rig);
    let options: Vec<_> = options[0].split(',').collect();
    for option in ["ro", "nosuid", "nodev", "noatime"] {
        assert!(options.contains(&option), "{options:?}");
    }
}

fn overlays() {
    let rig = Rig::start(Options::default());
    rig.add_view(1, &directory([("f", file("below")), ("g", file("below"))]));
    let script = "set -e\n\
        mount -t tmpfs tmpfs /mnt\n\
        mkdir /mnt/upper /mnt/work /mnt/merged\n\
        mount -t overlay -o lowerdir=$0,upperdir=/mnt/upper,workdir=/mnt/work none /mnt/merged\n\
        echo above > /mnt/merged/f\n\
        cat /mnt/merged/f /mnt/merged/g $0/f\n\
        umount /mnt/merged /mnt\n";
    let mut shell: Command = rig.inside();
    shell.args(["sh", "-c", script]).arg(rig.inner_path("action/1")).stdin(Stdio::null());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"above\nbelowbelow");
}
