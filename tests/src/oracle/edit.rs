//! Random edits of a source tree, as people make them and as nobody would.
//!
//! Edits stay until they are undone, one at a time and in any order, by what stood there in the beginning. Those
//! that break most of the build are undone soon, so that there is something to compare.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::project::{EditedProject, SHADOW};
use super::random::Random;

/// Edits that stay at most.
const MAX_OUTSTANDING: usize = 10;
/// In the name of what was moved to make way for a link; it is not edited itself.
const MOVED: &str = ".moved";
/// Headers of the system that are hidden, beside those of the project.
const SYSTEM_HEADERS: [&str; 8] =
    ["stdio.h", "string.h", "stddef.h", "stdlib.h", "limits.h", "errno.h", "cstddef", "string"];

/// What an edit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Changes what a file means.
    Change,
    /// Adds a comment.
    Comment,
    /// Adds a file.
    Add,
    /// Deletes a file.
    Delete,
    /// Renames a file.
    Rename,
    /// Adds, changes or removes a header that hides another.
    Shadow,
    /// Puts a symbolic link in the place of a file or directory, or turns one to something else.
    Link,
    /// Makes a file executable, or no more.
    Mode,
    /// Puts an error into a file.
    Break,
    /// Takes an earlier edit back.
    Undo,
}

/// An edit that was made.
#[derive(Debug)]
pub struct Edit {
    /// What it does.
    pub kind: Kind,
    /// The same, for people.
    pub text: String,
}

/// What stood at a path in the beginning.
#[derive(Clone, Debug)]
struct Original {
    contents: Vec<u8>,
    mode: u32,
}

#[derive(Debug)]
struct Outstanding {
    text: String,
    /// All that it touched.
    paths: Vec<String>,
    breaks: bool,
}

/// Makes edits.
#[derive(Debug)]
pub struct Editor {
    random: Random,
    originals: BTreeMap<String, Original>,
    directories: Vec<String>,
    code: Vec<String>,
    outstanding: Vec<Outstanding>,
    made: usize,
}

impl Editor {
    /// Of a project as it is now.
    pub fn new(random: Random, project: &EditedProject) -> Self {
        let mut directories: Vec<String> =
            project.jobs().iter().flat_map(|job| job.inputs.clone()).collect();
        directories.sort();
        directories.dedup();
        let mut originals = BTreeMap::new();
        for path in files(project.path(), &directories) {
            let place = project.path().join(&path);
            let mode = fs::metadata(&place).expect("a source is there").permissions().mode();
            let contents = fs::read(&place).expect("a source can be read");
            originals.insert(path, Original { contents, mode });
        }
        let code = project.code().iter().map(|directory| format!("{directory}/")).collect();
        Self { random, originals, directories, code, outstanding: Vec::new(), made: 0 }
    }

    /// Makes one.
    pub fn edit(&mut self, root: &Path) -> Edit {
        self.made += 1;
        let broken = self.outstanding.iter().position(|edit| edit.breaks);
        let last = match broken {
            Some(broken) if !self.random.once_in(4) => Some(broken),
            _ if self.outstanding.len() >= MAX_OUTSTANDING => Some(0),
            _ if self.random.once_in(6) && !self.outstanding.is_empty() => {
                Some(self.random.below(self.outstanding.len()))
            }
            _ => None,
        };
        if let Some(at) = last {
            let undone = self.outstanding.remove(at);
            undone.paths.iter().for_each(|path| self.restore(root, path));
            return Edit { kind: Kind::Undo, text: format!("undoing: {}", undone.text) };
        }
        const KINDS: [Kind; 17] = [
            Kind::Change,
            Kind::Change,
            Kind::Change,
            Kind::Comment,
            Kind::Comment,
            Kind::Comment,
            Kind::Add,
            Kind::Add,
            Kind::Delete,
            Kind::Rename,
            Kind::Shadow,
            Kind::Shadow,
            Kind::Shadow,
            Kind::Link,
            Kind::Link,
            Kind::Mode,
            Kind::Break,
        ];
        loop {
            let kind = KINDS[self.random.below(KINDS.len())];
            if let Some((text, paths, breaks)) = self.make(root, kind) {
                self.outstanding.push(Outstanding { text: text.clone(), paths, breaks });
                return Edit { kind, text };
            }
        }
    }

    /// What was done, the paths that it touched, and whether most of the build may fail for it; none if there is
    /// nothing to do it to.
    fn make(&mut self, root: &Path, kind: Kind) -> Option<(String, Vec<String>, bool)> {
        let number = self.made;
        let (files, code) = self.candidates(root);
        let half = self.random.once_in(2);
        let path = self.random.pick(if half { &files } else { &code })?.clone();
        let is_code = code.contains(&path);
        let place = root.join(&path);
        Some(match kind {
            Kind::Change => {
                append(&place, &meaning(&path, number));
                (format!("a change in {path}"), vec![path], false)
            }
            Kind::Comment => {
                append(&place, &comment(&path, number));
                (format!("a comment in {path}"), vec![path], false)
            }
            Kind::Break => {
                let path = self.random.pick(&code)?.clone();
                append(&root.join(&path), "\n#error oracle\n");
                (format!("an error in {path}"), vec![path], true)
            }
            Kind::Mode => {
                let mode = fs::metadata(&place).ok()?.permissions().mode() & 0o777;
                let other = if mode & 0o100 == 0 { 0o755 } else { 0o644 };
                set_mode(&place, other);
                (format!("mode {other:o} of {path}"), vec![path], false)
            }
            Kind::Delete => {
                fs::remove_file(&place).ok()?;
                (format!("{path} deleted"), vec![path], is_code)
            }
            Kind::Rename => {
                let other = format!("{path}.renamed{number}");
                fs::rename(&place, root.join(&other)).ok()?;
                (format!("{path} renamed"), vec![path, other], is_code)
            }
            Kind::Add => {
                let (above, name) = path.rsplit_once('/')?;
                let new = match self.random.once_in(2) {
                    // Perhaps somebody has looked for a header of this name here.
                    true => {
                        let header = self.random.pick(&self.headers())?.clone();
                        format!("{above}/{}", header.rsplit('/').next()?)
                    }
                    false => format!("{above}/new{number}-{name}"),
                };
                if fs::symlink_metadata(root.join(&new)).is_ok() {
                    return None;
                }
                fs::write(root.join(&new), comment(&new, number)).ok()?;
                (format!("{new} added"), vec![new.clone()], is_header(&new))
            }
            Kind::Shadow => self.shadow(root, number)?,
            Kind::Link => self.link(root, &path, number)?,
            Kind::Undo => return None,
        })
    }

    fn shadow(&mut self, root: &Path, number: usize) -> Option<(String, Vec<String>, bool)> {
        let headers = self.headers();
        let name = match self.random.once_in(2) {
            true => (*self.random.pick(&SYSTEM_HEADERS)?).to_owned(),
            false => self.random.pick(&headers)?.rsplit('/').next()?.to_owned(),
        };
        // A directory that is searched first: of all compiles, or of the sources in it.
        let above = if self.random.once_in(4) { "host" } else { SHADOW };
        let path = format!("{above}/{name}");
        let place = root.join(&path);
        if fs::symlink_metadata(&place).is_ok() {
            if above == "host" {
                return None;
            }
            fs::remove_file(&place).ok()?;
            return Some((format!("{path} removed"), vec![path], false));
        }
        let definition = match self.random.once_in(2) {
            true => format!("#define ORACLE_{number} 1\n"),
            false => String::new(),
        };
        fs::write(&place, format!("/* {number} */\n#include_next <{name}>\n{definition}")).ok()?;
        Some((format!("{path} hides another"), vec![path], false))
    }

    fn link(
        &mut self,
        root: &Path,
        path: &str,
        number: usize,
    ) -> Option<(String, Vec<String>, bool)> {
        let moved = |path: &str| format!("{path}{MOVED}{number}");
        if self.random.once_in(3) {
            let (above, _) = path.rsplit_once('/')?;
            // A directory that jobs declare stays one.
            if self.directories.iter().any(|declared| declared == above) {
                return None;
            }
            let other = moved(above);
            fs::rename(root.join(above), root.join(&other)).ok()?;
            let target = other.rsplit('/').next()?;
            std::os::unix::fs::symlink(target, root.join(above)).ok()?;
            return Some((format!("{above} is a link"), vec![above.to_owned(), other], false));
        }
        let (other, place) = (moved(path), root.join(path));
        fs::rename(&place, root.join(&other)).ok()?;
        let (target, text) = match self.random.once_in(3) {
            true => {
                let copy = format!("{path}{MOVED}{number}b");
                fs::copy(root.join(&other), root.join(&copy)).ok()?;
                append(&root.join(&copy), &comment(path, number));
                (copy, "a link to a copy with a comment")
            }
            false => (other.clone(), "a link"),
        };
        std::os::unix::fs::symlink(target.rsplit('/').next()?, &place).ok()?;
        Some((format!("{path} is {text}"), vec![path.to_owned(), other, target], false))
    }

    /// Files that may be edited, and of these the code.
    fn candidates(&self, root: &Path) -> (Vec<String>, Vec<String>) {
        let mut all = files(root, &self.directories);
        all.retain(|path| !path.contains(MOVED) && *path != format!("{SHADOW}/README"));
        let compiled = |path: &&String| self.code.iter().any(|above| path.starts_with(above));
        let mut code: Vec<_> =
            all.iter().filter(|path| is_code(path)).filter(compiled).cloned().collect();
        if code.is_empty() {
            code.clone_from(&all);
        }
        (all, code)
    }

    fn headers(&self) -> Vec<String> {
        self.originals.keys().filter(|path| is_header(path)).cloned().collect()
    }

    /// Puts back what stood at a path and below it in the beginning.
    fn restore(&self, root: &Path, path: &str) {
        let place = root.join(path);
        match fs::symlink_metadata(&place) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&place).expect("it can be removed"),
            Ok(_) => fs::remove_file(&place).expect("it can be removed"),
            Err(_) => {}
        }
        let below = format!("{path}/");
        for (path, original) in &self.originals {
            if path == path_of(&place, root) || path.starts_with(&below) {
                let place = root.join(path);
                let above = place.parent().expect("a file has a parent");
                fs::create_dir_all(above).expect("a directory can be made");
                fs::write(&place, &original.contents).expect("a source can be written");
                set_mode(&place, original.mode);
            }
        }
    }
}

fn path_of<'a>(place: &'a Path, root: &Path) -> &'a str {
    place.strip_prefix(root).ok().and_then(Path::to_str).unwrap_or_default()
}

fn is_header(path: &str) -> bool {
    path.ends_with(".h")
}

fn is_code(path: &str) -> bool {
    [".c", ".h", ".cc", ".h.in"].iter().any(|end| path.ends_with(end))
}

fn comment(path: &str, number: usize) -> String {
    match path {
        _ if is_code(path) || path.ends_with(".S") => format!("\n/* {number} */\n"),
        _ if path.ends_with(".lua") => format!("\n-- {number}\n"),
        _ => format!("\n# {number}\n"),
    }
}

/// Text that changes what a file means, as far as it can be said.
fn meaning(path: &str, number: usize) -> String {
    match path {
        _ if is_header(path) || path.ends_with(".h.in") => {
            format!("\n#define ORACLE_CHANGE_{number} {number}\n")
        }
        _ if is_code(path) => format!("\nint oracle_change_{number} = {number};\n"),
        _ if path.ends_with(".lua") => format!("\nprint({number})\n"),
        _ => comment(path, number),
    }
}

fn append(place: &Path, text: &str) {
    let mut contents = fs::read(place).expect("a source can be read");
    contents.extend_from_slice(text.as_bytes());
    fs::write(place, contents).expect("a source can be written");
}

fn set_mode(place: &Path, mode: u32) {
    fs::set_permissions(place, fs::Permissions::from_mode(mode)).expect("a mode can be set");
}

/// The regular files in these directories, sorted. Links are not followed.
fn files(root: &Path, directories: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = directories.to_vec();
    while let Some(directory) = left.pop() {
        let entries = fs::read_dir(root.join(&directory)).expect("a directory of sources");
        for entry in entries {
            let entry = entry.expect("a name");
            let path = format!("{directory}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                left.push(path);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
