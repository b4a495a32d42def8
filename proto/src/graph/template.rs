//! Templates: strings of a command with variables in them, parsed once.
//!
//! A token is `{{NAME}}` or `{{NAME:argument}}`, where NAME is a capital followed by capitals, digits
//! and `_`, and the argument is everything up to the next `}}` and holds no `{{`. Any other braces
//! are text and pass through byte for byte. Of `{{{OUTPUT_DIR}}}` the innermost pairs are the token.
//!
//! | token | renders as |
//! |---|---|
//! | `{{OUTPUT_DIR}}` | [`OUTPUT_DIR`] |
//! | `{{SOURCE_DIR}}` | [`SOURCE_DIR`] |
//! | `{{DEP:x}}` | `/distbuild/dep/<n>`, `n` the position in `deps` of the job with id or name `x` |
//! | `{{LITERAL:text}}` | `{{text}}`, not looked at again |
//!
//! Every other token is an error; nothing ever renders as an empty string by mistake.

use super::text::Text;

/// Where a job sees its source files.
pub const SOURCE_DIR: &str = "/distbuild/src";
/// Where a job writes its outputs.
pub const OUTPUT_DIR: &str = "/distbuild/out";
/// Below it a job sees the outputs of its dependencies, one directory each, named by position.
pub const DEP_DIR: &str = "/distbuild/dep";
/// The variables that templates know, as they are written.
pub(super) const VARIABLES: [&str; 4] =
    ["{{OUTPUT_DIR}}", "{{SOURCE_DIR}}", "{{DEP:…}}", "{{LITERAL:…}}"];

/// A string with variables. It keeps its source, so that a graph can be sent on as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    source: Text,
    tokens: Box<[Token]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Token {
    start: u32,
    end: u32,
    variable: Variable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Variable {
    OutputDir,
    SourceDir,
    Dep(u32),
    Literal,
}

/// Why a string is no template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TemplateError {
    /// No variable has this name, or it takes no argument, or it lacks one. Holds the whole token.
    UnknownVariable(Text),
    /// The job does not list this dependency. Holds the argument.
    UnlistedDep(Text),
    /// The string is longer than [`Template::MAX_BYTES`].
    TooLong,
}

impl Template {
    /// Longest source in bytes.
    pub const MAX_BYTES: usize = 1 << 30;

    /// Parses a string; `dep` gives the position in `deps` of the job that an argument names.
    ///
    /// # Errors
    /// Every token that is no variable and every dependency that `dep` does not know.
    pub fn parse(
        source: Text,
        mut dep: impl FnMut(&[u8]) -> Option<u32>,
    ) -> Result<Self, Vec<TemplateError>> {
        if source.as_bytes().len() > Self::MAX_BYTES {
            return Err(vec![TemplateError::TooLong]);
        }
        // Counted first, since a graph holds millions of these and none may waste memory.
        let mut tokens = Vec::with_capacity(Tokens::new(source.as_bytes()).count());
        let mut errors = Vec::new();
        for found in Tokens::new(source.as_bytes()) {
            match found.variable(&mut dep) {
                Ok(variable) => tokens.push(Token {
                    start: found.start as u32,
                    end: found.end as u32,
                    variable,
                }),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Self { source, tokens: tokens.into() }) } else { Err(errors) }
    }

    /// The string as it was written.
    pub fn source(&self) -> &Text {
        &self.source
    }

    /// Whether the string starts with `{{OUTPUT_DIR}}`.
    pub fn starts_at_output(&self) -> bool {
        self.tokens
            .first()
            .is_some_and(|token| token.start == 0 && token.variable == Variable::OutputDir)
    }

    /// The string with its variables replaced.
    pub fn render(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.source.as_bytes().len());
        self.render_into(&mut out);
        out
    }

    /// Appends the string with its variables replaced.
    pub fn render_into(&self, out: &mut Vec<u8>) {
        let source = self.source.as_bytes();
        let mut at = 0;
        for token in &self.tokens {
            let (start, end) = (token.start as usize, token.end as usize);
            out.extend_from_slice(&source[at..start]);
            match token.variable {
                Variable::OutputDir => out.extend_from_slice(OUTPUT_DIR.as_bytes()),
                Variable::SourceDir => out.extend_from_slice(SOURCE_DIR.as_bytes()),
                Variable::Dep(position) => {
                    out.extend_from_slice(format!("{DEP_DIR}/{position}").as_bytes());
                }
                Variable::Literal => {
                    out.extend_from_slice(b"{{");
                    out.extend_from_slice(&source[start + b"{{LITERAL:".len()..end]);
                }
            }
            at = end;
        }
        out.extend_from_slice(&source[at..]);
    }
}

/// A token as it stands in a source, known or not.
struct Found<'a> {
    start: usize,
    end: usize,
    whole: &'a [u8],
    name: &'a [u8],
    argument: Option<&'a [u8]>,
}

impl Found<'_> {
    fn variable(
        &self,
        dep: &mut impl FnMut(&[u8]) -> Option<u32>,
    ) -> Result<Variable, TemplateError> {
        match (self.name, self.argument) {
            (b"OUTPUT_DIR", None) => Ok(Variable::OutputDir),
            (b"SOURCE_DIR", None) => Ok(Variable::SourceDir),
            (b"LITERAL", Some(_)) => Ok(Variable::Literal),
            (b"DEP", Some(argument)) => dep(argument)
                .map(Variable::Dep)
                .ok_or_else(|| TemplateError::UnlistedDep(argument.into())),
            _ => Err(TemplateError::UnknownVariable(self.whole.into())),
        }
    }
}

/// Finds the tokens of a source from left to right, in time linear in its length.
struct Tokens<'a> {
    source: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    fn new(source: &'a [u8]) -> Self {
        Self { source, at: 0 }
    }

    /// Where the next `{{`, followed by a capital, stands.
    fn next_opening(&mut self) -> Option<usize> {
        while let Some(offset) = self.source[self.at..].iter().position(|byte| *byte == b'{') {
            let start = self.at + offset;
            self.at = start + 1;
            if self.source.get(start + 1) == Some(&b'{')
                && self.source.get(start + 2).is_some_and(u8::is_ascii_uppercase)
            {
                return Some(start);
            }
        }
        None
    }

    /// The token whose `{{` stands at `start`, if it is one; else goes on behind what was looked at.
    fn token_at(&mut self, start: usize) -> Option<Found<'a>> {
        let source = self.source;
        let is_name =
            |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
        let name_start = start + 2;
        let name_end =
            name_start + source[name_start..].iter().take_while(|byte| is_name(byte)).count();
        let name = &source[name_start..name_end];
        let (argument, close) = match source.get(name_end) {
            Some(b':') => {
                let argument = name_end + 1;
                let pair =
                    source[argument..].windows(2).position(|pair| pair == b"{{" || pair == b"}}");
                let Some(close) = pair.map(|offset| argument + offset) else {
                    self.at = source.len();
                    return None;
                };
                if source[close] == b'{' {
                    self.at = close;
                    return None;
                }
                (Some(&source[argument..close]), close)
            }
            _ if source[name_end..].starts_with(b"}}") => (None, name_end),
            _ => {
                self.at = name_end;
                return None;
            }
        };
        let end = close + 2;
        self.at = end;
        Some(Found { start, end, whole: &source[start..end], name, argument })
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        loop {
            let start = self.next_opening()?;
            if let Some(found) = self.token_at(start) {
                return Some(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(source: &str) -> Result<Template, Vec<TemplateError>> {
        Template::parse(Text::from(source), |name| (name == b"lib").then_some(3))
    }

    fn render(source: &str) -> String {
        String::from_utf8(parse(source).unwrap().render()).unwrap()
    }

    #[test]
    fn variables_render_as_the_fixed_paths() {
        assert_eq!(render("-o{{OUTPUT_DIR}}/a.o"), "-o/distbuild/out/a.o");
        assert_eq!(render("{{SOURCE_DIR}}{{DEP:lib}}"), "/distbuild/src/distbuild/dep/3");
    }

    #[test]
    fn of_many_braces_the_innermost_pairs_count() {
        assert_eq!(render("{{{OUTPUT_DIR}}}"), "{/distbuild/out}");
        assert_eq!(render("{{{{OUTPUT_DIR}}}}"), "{{/distbuild/out}}");
        assert_eq!(render("{{A:{{DEP:lib}}"), "{{A:/distbuild/dep/3");
    }

    #[test]
    fn what_only_looks_like_a_template_passes_through() {
        for text in [
            "${x}",
            "{{{",
            "{{1,2}}",
            "{{}}",
            "{{ OUTPUT_DIR }}",
            "{{output_dir}}",
            "{{OUTPUT-DIR}}",
            "{{_A}}",
            "{{OUTPUT_DIR}",
            "{{DEP:",
            "{{DEP:x}",
            "{{DEP:\n{{",
            "}}",
            "",
        ] {
            assert_eq!(render(text), text);
        }
    }

    #[test]
    fn a_literal_renders_its_argument_in_braces_and_no_further() {
        assert_eq!(render("{{LITERAL:OUTPUT_DIR}}"), "{{OUTPUT_DIR}}");
        assert_eq!(render("{{LITERAL:DEP:x}}"), "{{DEP:x}}");
        assert_eq!(render("{{LITERAL:LITERAL:X}}"), "{{LITERAL:X}}");
        assert_eq!(render("{{LITERAL:}}"), "{{}}");
    }

    #[test]
    fn every_unknown_token_is_an_error() {
        let unknown = |token: &str| TemplateError::UnknownVariable(Text::from(token));
        assert_eq!(parse("{{OUTPUT}}").unwrap_err(), [unknown("{{OUTPUT}}")]);
        assert_eq!(
            parse("{{X}} {{DEP}} {{OUTPUT_DIR:a}} {{DEP:bil}}").unwrap_err(),
            [
                unknown("{{X}}"),
                unknown("{{DEP}}"),
                unknown("{{OUTPUT_DIR:a}}"),
                TemplateError::UnlistedDep(Text::from("bil")),
            ]
        );
    }

    /// The grammar once more, as slowly and plainly as possible.
    fn holds_a_token(text: &str) -> bool {
        (0..text.len()).any(|start| {
            let Some(rest) = text.get(start..).and_then(|rest| rest.strip_prefix("{{")) else {
                return false;
            };
            let Some((inner, _)) = rest.split_once("}}") else {
                return false;
            };
            let (name, argument) = inner.split_once(':').unwrap_or((inner, ""));
            name.starts_with(|c: char| c.is_ascii_uppercase())
                && name.chars().all(|c| matches!(c, 'A'..='Z' | '0'..='9' | '_'))
                && !argument.contains("{{")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn text_without_a_token_is_unchanged(text in "[{}A-C_:a0 \n]{0,24}") {
            if holds_a_token(&text) {
                prop_assert!(parse(&text).is_err());
            } else {
                prop_assert_eq!(render(&text), text);
            }
        }

        #[test]
        fn any_text_survives_around_a_variable(before in "[^{}]{0,8}", after in "[^{}]{0,8}") {
            let rendered = render(&format!("{before}{{{{OUTPUT_DIR}}}}{after}"));
            prop_assert_eq!(rendered, format!("{before}/distbuild/out{after}"));
        }
    }
}
