//! How two builds of one tree differ, in words.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Finished;

/// What a job came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// `executed`, `cached`, `cut_off`; or why it has no outputs: `failed`, `skipped`, …
    pub how: String,
    /// The key of the action that was run, now or earlier; empty if it has no outputs.
    pub action: String,
    /// The digest of its outputs.
    pub output_root: String,
    /// What has to be equal however it was come by: end, exit code, signal, what was printed.
    told: Vec<(&'static str, Value)>,
}

/// What the jobs of a build came to, by their names.
pub type Ends = BTreeMap<String, End>;

impl End {
    /// Whether it has outputs.
    pub fn succeeded(&self) -> bool {
        matches!(self.how.as_str(), "executed" | "cached" | "cut_off")
    }

    /// Whether its commands were run in this build.
    pub fn ran(&self) -> bool {
        matches!(self.how.as_str(), "executed" | "failed" | "timed_out")
    }
}

/// How the jobs of a build ended.
pub fn ends(build: &Finished) -> Ends {
    let finished = build.events.iter().filter(|event| event["type"] == "job_finished");
    let end = |event: &Value| {
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let how = if event["how"].is_null() { text("result") } else { text("how") };
        const TOLD: [&str; 9] = [
            "result",
            "exit_code",
            "signal",
            "failed_command",
            "output_root",
            "stdout",
            "stderr",
            "stdout_blob",
            "stderr_blob",
        ];
        let told = TOLD.map(|field| (field, event[field].clone())).to_vec();
        (text("job"), End { how, action: text("action"), output_root: text("output_root"), told })
    };
    finished.map(end).collect()
}

/// What is not the same in both builds.
pub fn differences(ours: &Ends, theirs: &Ends, our_out: &Path, their_out: &Path) -> Vec<String> {
    let mut found = Vec::new();
    if !ours.keys().eq(theirs.keys()) {
        found.push("the builds have other jobs".to_owned());
    }
    for (name, end) in ours {
        let Some(other) = theirs.get(name) else { continue };
        for ((field, ours), (_, theirs)) in end.told.iter().zip(&other.told) {
            if ours != theirs {
                found.push(format!(
                    "{name} ({}): {field} is {ours}, from scratch {theirs}",
                    end.how
                ));
            }
        }
        if end.succeeded() && other.succeeded() {
            let [ours, theirs] = [our_out, their_out].map(|out| out.join(name.replace('/', "%2F")));
            if let Some(text) = trees(&ours, &theirs) {
                found.push(format!("{name} ({}): {text}", end.how));
            }
        }
    }
    found
}

/// The first difference of two trees of files: names, kinds, contents, executable bits.
fn trees(ours: &Path, theirs: &Path) -> Option<String> {
    let (names, others) = (names(ours), names(theirs));
    if names != others {
        return Some(format!("{} holds {names:?}, from scratch {others:?}", ours.display()));
    }
    names.iter().find_map(|name| {
        let (ours, theirs) = (ours.join(name), theirs.join(name));
        let of = |path: &Path| fs::symlink_metadata(path).expect("an output is there");
        let (one, other) = (of(&ours), of(&theirs));
        if one.is_dir() && other.is_dir() {
            return trees(&ours, &theirs);
        }
        let contents = |path: &Path, is_link: bool| match is_link {
            true => fs::read_link(path).map(|target| target.into_os_string().into_encoded_bytes()),
            false => fs::read(path),
        };
        let is_same = one.file_type() == other.file_type()
            && one.permissions().mode() == other.permissions().mode()
            && contents(&ours, one.is_symlink()).expect("an output can be read")
                == contents(&theirs, other.is_symlink()).expect("an output can be read");
        (!is_same).then(|| format!("{} differs", ours.display()))
    })
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("outputs are there");
    let mut names: Vec<PathBuf> =
        entries.map(|entry| entry.expect("a name").file_name().into()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_differ_by_a_byte_a_name_a_mode_or_a_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let make = |name: &str| {
            let root = directory.path().join(name);
            fs::create_dir_all(root.join("sub")).expect("a directory");
            fs::write(root.join("sub/file"), "contents").expect("a file");
            std::os::unix::fs::symlink("file", root.join("sub/link")).expect("a link");
            root
        };
        let (one, other) = (make("one"), make("other"));
        assert_eq!(trees(&one, &other), None);
        fs::write(other.join("sub/file"), "contentz").expect("a file");
        assert!(trees(&one, &other).is_some());
        fs::write(other.join("sub/file"), "contents").expect("a file");
        fs::set_permissions(other.join("sub/file"), fs::Permissions::from_mode(0o755))
            .expect("a mode");
        assert!(trees(&one, &other).is_some());
        let other = make("third");
        fs::write(other.join("more"), "").expect("a file");
        assert!(trees(&one, &other).is_some());
        let other = make("fourth");
        fs::remove_file(other.join("sub/link")).expect("a link");
        std::os::unix::fs::symlink("other", other.join("sub/link")).expect("a link");
        assert!(trees(&one, &other).is_some());
    }
}
