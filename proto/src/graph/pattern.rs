//! `InputPattern`: what a job names as an input, a path or a glob below the source root.
//!
//! A **path** without meta-characters names a file, a symlink, or a directory with its whole subtree;
//! `.` is the source root itself. A **glob** names what it matches and nothing else: a directory that
//! it matches is there, but what lies in it only as far as that matches too (`dir/**` is a subtree).
//!
//! | glob | matches |
//! |---|---|
//! | `*`, `?` | any bytes but `/`; one byte but `/` |
//! | `**/`, `/**/`, `/**` | any number of components (`/**`: at least one) |
//! | `[a-z]`, `[!a-z]` | one ASCII character of the class, or not of it |
//! | `{a,b}` | either, which may be empty |
//!
//! A meta-character stands for itself in brackets: `[*]`, `[?]`, `[[]`, `[{]`; so `a[*]` is a path.
//! A backslash is an ordinary character. Case counts, and dot files are matched like any other.
//! Repeated and trailing slashes and `.` components mean nothing. Whether an input exists is not known
//! here.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use super::text::Text;
use crate::path::RelPath;

/// A path or a glob below the source root; cheap to clone.
#[derive(Clone)]
pub struct InputPattern(Arc<Inner>);

enum Inner {
    Path(RelPath),
    Glob(Box<Parsed>),
}

struct Parsed {
    source: Text,
    /// What stands before the first component with a meta-character.
    base: RelPath,
    /// Compiled when it is first asked.
    set: OnceLock<GlobSet>,
}

/// Why bytes are no input pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatternError {
    /// No bytes at all.
    #[error("is empty; the source root itself is \".\"")]
    Empty,
    /// Starts with `/`.
    #[error("leaves the source root: it is absolute")]
    Absolute,
    /// Has a component `..`.
    #[error("leaves the source root: it holds \"..\"")]
    Parent,
    /// Holds a NUL.
    #[error("holds a NUL")]
    Nul,
    /// Longer than [`InputPattern::MAX_BYTES`], or one of its names longer than 255 bytes.
    #[error("is too long: a path has at most 4096 bytes, a name 255")]
    TooLong,
    /// Has meta-characters, but is no glob.
    #[error("is not a glob: {0}")]
    Glob(String),
}

impl InputPattern {
    /// Longest pattern in bytes (`PATH_MAX` of Linux).
    pub const MAX_BYTES: usize = 4096;
    /// Deepest nesting of `{a,b}`.
    const MAX_NESTING: usize = 8;

    /// Parses a pattern.
    ///
    /// # Errors
    /// Whatever cannot name an input below the source root, or is no valid glob.
    pub fn parse(source: &[u8]) -> Result<Self, PatternError> {
        match source {
            [] => return Err(PatternError::Empty),
            [b'/', ..] => return Err(PatternError::Absolute),
            _ if source.contains(&0) => return Err(PatternError::Nul),
            _ if source.len() > Self::MAX_BYTES => return Err(PatternError::TooLong),
            _ => {}
        }
        // Nearly all inputs; the rest is for what is written in another way.
        if !source.iter().any(is_meta)
            && let Ok(path) = RelPath::new(source)
        {
            return Ok(Self(Arc::new(Inner::Path(path))));
        }
        let mut components = Vec::new();
        for component in source.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(PatternError::Parent),
                _ => components.push(component),
            }
        }
        let plain: Vec<_> = components.iter().map_while(|component| plain(component)).collect();
        let base = relative(&plain)?;
        if plain.len() == components.len() {
            return Ok(Self(Arc::new(Inner::Path(base))));
        }
        let source = Text::from(components.join(&b'/').as_slice());
        Self::check_glob(source.as_bytes())?;
        let parsed = Parsed { source, base, set: OnceLock::new() };
        Ok(Self(Arc::new(Inner::Glob(Box::new(parsed)))))
    }

    /// Checks what would keep a glob from being compiled later.
    fn check_glob(source: &[u8]) -> Result<(), PatternError> {
        let text = std::str::from_utf8(source)
            .map_err(|_| PatternError::Glob("it is not UTF-8".to_owned()))?;
        let (mut depth, mut class) = (0_usize, false);
        for character in text.chars() {
            match character {
                '[' => class = true,
                ']' => class = false,
                _ if class && !character.is_ascii() => {
                    return Err(PatternError::Glob("a class holds ASCII characters only".into()));
                }
                '{' if !class => depth += 1,
                '}' if !class => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > Self::MAX_NESTING {
                return Err(PatternError::Glob(format!(
                    "braces nest more than {} deep",
                    Self::MAX_NESTING
                )));
            }
        }
        build(text).map(|_| ()).map_err(|error| PatternError::Glob(error.kind().to_string()))
    }

    /// The pattern as [`parse`](Self::parse) takes it: in its shortest form, meta-characters of a path
    /// in brackets.
    pub fn to_bytes(&self) -> Bytes {
        let path = match &*self.0 {
            Inner::Glob(glob) => return glob.source.to_bytes(),
            Inner::Path(path) if path.is_root() => return Bytes::from_static(b"."),
            Inner::Path(path) => path.as_bytes(),
        };
        let mut escaped = Vec::with_capacity(path.len());
        for byte in path {
            if is_meta(byte) {
                escaped.extend_from_slice(&[b'[', *byte, b']']);
            } else {
                escaped.push(*byte);
            }
        }
        escaped.into()
    }

    /// Whether it is a path and not a glob.
    pub fn is_literal(&self) -> bool {
        matches!(&*self.0, Inner::Path(_))
    }

    /// Where to start looking: the path itself, or the longest directory that all matches of the glob
    /// lie below.
    pub fn literal_base(&self) -> &RelPath {
        match &*self.0 {
            Inner::Path(path) => path,
            Inner::Glob(glob) => &glob.base,
        }
    }

    /// Whether a file, symlink or directory is named: for a path, itself and all below it.
    pub fn matches(&self, path: &RelPath) -> bool {
        let base = match &*self.0 {
            Inner::Glob(glob) => return glob.set().is_match(path.as_path()),
            Inner::Path(base) => base.as_bytes(),
        };
        match path.as_bytes().strip_prefix(base) {
            Some([] | [b'/', ..]) => true,
            Some(_) => base.is_empty(),
            None => false,
        }
    }

    /// The glob, to be put into a set with others; none for a path.
    pub fn glob(&self) -> Option<Glob> {
        match &*self.0 {
            Inner::Path(_) => None,
            Inner::Glob(glob) => glob.build(),
        }
    }
}

impl Parsed {
    fn build(&self) -> Option<Glob> {
        build(std::str::from_utf8(self.source.as_bytes()).ok()?).ok()
    }

    /// The compiled glob; `parse` has refused what does not compile, so the empty set is not met.
    fn set(&self) -> &GlobSet {
        self.set.get_or_init(|| {
            let mut set = GlobSetBuilder::new();
            if let Some(glob) = self.build() {
                set.add(glob);
            }
            set.build().unwrap_or_else(|_| GlobSet::empty())
        })
    }
}

fn is_meta(byte: &u8) -> bool {
    matches!(byte, b'*' | b'?' | b'[' | b'{')
}

fn build(text: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(false)
        .empty_alternates(true)
        .build()
}

/// The name that a component stands for, with `[*]` unpacked, unless it holds a meta-character.
fn plain(component: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(component.len());
    let mut rest = component;
    loop {
        rest = match rest {
            [] => return Some(name),
            [b'[', byte, b']', tail @ ..] if byte.is_ascii() && !matches!(byte, b'!' | b'^') => {
                name.push(*byte);
                tail
            }
            [byte, ..] if is_meta(byte) => return None,
            [byte, tail @ ..] => {
                name.push(*byte);
                tail
            }
        };
    }
}

fn relative(components: &[Vec<u8>]) -> Result<RelPath, PatternError> {
    if components.iter().any(|name| matches!(name.as_slice(), b"." | b"..")) {
        return Err(PatternError::Parent);
    }
    RelPath::new(&components.join(&b'/')).map_err(|_| PatternError::TooLong)
}

impl PartialEq for InputPattern {
    fn eq(&self, other: &Self) -> bool {
        match (&*self.0, &*other.0) {
            (Inner::Path(one), Inner::Path(other)) => one == other,
            (Inner::Glob(one), Inner::Glob(other)) => one.source == other.source,
            _ => false,
        }
    }
}

impl Eq for InputPattern {}

impl fmt::Display for InputPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

impl fmt::Debug for InputPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.to_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(source: &str) -> InputPattern {
        InputPattern::parse(source.as_bytes()).unwrap()
    }

    fn matches(source: &str, path: &str) -> bool {
        pattern(source).matches(&RelPath::new(path.as_bytes()).unwrap())
    }

    #[test]
    fn a_path_means_itself_and_all_below_it() {
        assert!(pattern("src/a").is_literal());
        assert!(matches("src/a", "src/a"));
        assert!(matches("src/a", "src/a/b/c"));
        assert!(!matches("src/a", "src/ab"));
        assert!(!matches("src/a", "src"));
        assert!(matches(".", "anything/at/all"));
        assert!(matches(".", ""));
    }

    #[test]
    fn a_star_stays_within_a_component_and_two_cross_them() {
        assert!(matches("src/*.c", "src/a.c"));
        assert!(!matches("src/*.c", "src/x/a.c"));
        assert!(matches("src/**/*.c", "src/a.c"));
        assert!(matches("src/**/*.c", "src/x/y/a.c"));
        assert!(matches("src/**", "src/x/y"));
        assert!(!matches("src/**", "src"));
        assert!(matches("**", "a/b"));
        assert!(!matches("src/*", "src/x/y"));
    }

    #[test]
    fn classes_alternatives_and_question_marks_match_as_in_globset() {
        assert!(matches("a?.[ch]", "ab.c"));
        assert!(!matches("a?b", "a/b"));
        assert!(!matches("[!a]", "a"));
        assert!(matches("{src,include/x}/*.{h,hpp}", "include/x/a.hpp"));
        assert!(matches("a{,.bak}", "a"));
    }

    #[test]
    fn dot_files_are_included_and_case_counts() {
        assert!(matches("*", ".hidden"));
        assert!(matches("**", ".git/config"));
        assert!(!matches("*.C", "a.c"));
        assert!(!matches("README", "readme"));
    }

    #[test]
    fn a_meta_character_in_brackets_is_itself() {
        let star = pattern("a[*]b");
        assert!(star.is_literal());
        assert_eq!(star.literal_base().as_bytes(), b"a*b");
        assert!(matches("a[*]b", "a*b/below"));
        assert!(!matches("a[*]b", "axb"));
        assert!(matches("[[]x]", "[x]"));
        assert!(matches("[{]*", "{x"));
        assert_eq!(star.to_bytes(), "a[*]b");
        assert_eq!(pattern("./a//[[]/").to_bytes(), "a/[[]");
        assert!(matches("back\\slash", "back\\slash"));
    }

    #[test]
    fn the_base_ends_before_the_first_meta_character() {
        for (source, base) in [
            ("src/lib/*.c", "src/lib"),
            ("src/**", "src"),
            ("*.c", ""),
            ("a[*]/b?", "a*"),
            ("a/{b/c,d}", "a"),
            ("./src//x/", "src/x"),
            (".", ""),
        ] {
            assert_eq!(pattern(source).literal_base().as_bytes(), base.as_bytes(), "{source}");
        }
    }

    #[test]
    fn a_path_may_hold_bytes_that_are_not_utf8() {
        let path = InputPattern::parse(b"src/\xff").unwrap();
        assert!(path.matches(&RelPath::new(b"src/\xff").unwrap()));
        assert!(pattern("src/?").matches(&RelPath::new(b"src/\xff").unwrap()));
    }

    #[test]
    fn what_cannot_lie_below_the_source_root_is_refused() {
        let error = |source: &[u8]| InputPattern::parse(source).unwrap_err();
        assert_eq!(error(b""), PatternError::Empty);
        assert_eq!(error(b"/etc"), PatternError::Absolute);
        assert_eq!(error(b"a/../b"), PatternError::Parent);
        assert_eq!(error(b"a/[.][.]/b"), PatternError::Parent);
        assert_eq!(error(b"a\0"), PatternError::Nul);
        assert_eq!(error(&[b'x'; 256]), PatternError::TooLong);
        for bad in [&b"a["[..], b"{a", b"*}", b"\xff*", "[é]".as_bytes(), b"[z-a]"] {
            assert!(matches!(error(bad), PatternError::Glob(_)), "{}", bad.escape_ascii());
        }
        assert!(matches!(error(&b"{".repeat(100)), PatternError::Glob(_)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_glob_that_parses_compiles(source in r"[a\[\]{},!^*?/.\-é]{1,16}") {
            if let Ok(pattern) = InputPattern::parse(source.as_bytes())
                && let Some(glob) = pattern.glob()
            {
                prop_assert!(GlobSetBuilder::new().add(glob).build().is_ok());
            }
        }
    }
}
