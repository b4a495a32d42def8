//! Where a glob can still match: which directories a walk must enter, and which it can pass by.
//!
//! Only [`InputPattern::matches`] decides what matches. A guide may let a walk into a directory for
//! nothing, never keep it from one that holds a match.

use distbuild_proto::graph::InputPattern;
use distbuild_proto::{Name, RelPath};

/// What the components of a glob demand, from its literal base downwards.
#[derive(Debug)]
pub(super) struct Guide {
    /// One component each; none where any name will do.
    steps: Vec<Option<InputPattern>>,
    /// Whether matches may lie deeper than there are steps.
    unbounded: bool,
}

impl Guide {
    pub(super) fn new(glob: &InputPattern) -> Self {
        let below_base = glob.literal_base().components().count();
        let mut steps = Vec::new();
        for component in glob.to_bytes().split(|byte| *byte == b'/').skip(below_base) {
            // Braces hold slashes, `**` crosses them, and `[/]` is nothing to reason about.
            let crossing = component.windows(2).any(|pair| pair == b"**")
                || component.iter().any(|byte| matches!(byte, b'{' | b'['));
            let step = match component {
                b"*" => Ok(None),
                _ => InputPattern::parse(component).map(Some),
            };
            match step {
                Ok(step) if !crossing => steps.push(step),
                _ => return Self { steps, unbounded: true },
            }
        }
        Self { steps, unbounded: false }
    }

    /// Whether something below the directory `name` can match, which lies `depth` directories below
    /// the glob's base.
    pub(super) fn leads_into(&self, depth: usize, name: &Name) -> bool {
        let deeper = self.unbounded || depth + 1 < self.steps.len();
        let fits = match self.steps.get(depth) {
            Some(Some(step)) => RelPath::new(name.as_bytes()).is_ok_and(|path| step.matches(&path)),
            Some(None) | None => true,
        };
        deeper && fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(glob: &str, depth: usize, name: &str) -> bool {
        let glob = InputPattern::parse(glob.as_bytes()).unwrap();
        Guide::new(&glob).leads_into(depth, &Name::new(name.as_bytes()).unwrap())
    }

    #[test]
    fn a_walk_enters_only_what_the_next_component_matches() {
        assert!(leads("a/*/inc*/*.h", 0, "x"));
        assert!(leads("a/*/inc*/*.h", 1, "include"));
        assert!(!leads("a/*/inc*/*.h", 1, "src"));
        assert!(!leads("a/*/inc*/*.h", 2, "deeper"));
        assert!(!leads("src/*.c", 0, "sub"));
        assert!(leads("*/x", 0, "sub"));
        assert!(leads("?/lib/x", 1, "lib"));
        assert!(!leads("?/lib/x", 1, "bin"));
    }

    #[test]
    fn where_components_cannot_be_told_apart_every_directory_is_entered() {
        assert!(leads("**/x", 0, "a"));
        assert!(leads("a/**", 7, "z"));
        assert!(leads("{a,b/c}/*.h", 0, "z"));
        assert!(leads("x/[a]b[c-d]/y", 0, "z"));
        assert!(!leads("x*/**/y", 0, "z"));
        assert!(leads("x*/**/y", 5, "z"));
    }
}
