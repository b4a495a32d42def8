//! Checks the commands of a job.

use super::job::JobCheck;
use crate::graph::error::Fault;
use crate::graph::job::{Command, normalized};
use crate::graph::raw::RawCommand;
use crate::graph::template::{OUTPUT_DIR, Template};
use crate::graph::text::Text;
use crate::path::RelPath;

impl JobCheck<'_> {
    pub(super) fn commands(&mut self, raw: Vec<RawCommand>) -> Box<[Command]> {
        let mut commands = Vec::with_capacity(raw.len());
        for (number, command) in raw.into_iter().enumerate() {
            self.command = Some(number);
            commands.extend(self.one_command(command));
        }
        self.command = None;
        commands.into()
    }

    /// The two kinds are told apart by which fields are filled.
    fn one_command(&mut self, raw: RawCommand) -> Option<Command> {
        let argv = raw.exec.as_deref().unwrap_or_default();
        let exec = !argv.is_empty() || !raw.environ.is_empty() || raw.working_directory.is_some();
        let cat = raw.cat_template.is_some() || raw.cat_output.is_some();
        match (exec, cat) {
            (true, true) => self.fault(Fault::BothKinds),
            (false, false) if raw.exec.is_none() => self.fault(Fault::NeitherKind),
            (false, true) => return self.cat(raw),
            _ if argv.first().is_none_or(Text::is_empty) => self.fault(Fault::EmptyArgv),
            _ => return self.exec(raw),
        }
        None
    }

    fn exec(&mut self, raw: RawCommand) -> Option<Command> {
        let argv = raw.exec.unwrap_or_default();
        let count = argv.len();
        let mut words = Vec::with_capacity(count);
        for word in argv {
            if let Some(word) = self.template("an argument", word) {
                self.check_word(&word);
                words.push(word);
            }
        }
        let environ = self.environment(raw.environ);
        let working_directory = match raw.working_directory {
            Some(directory) => Some(self.template("the working directory", directory)?),
            None => None,
        };
        (words.len() == count).then(|| Command::Exec {
            argv: words.into(),
            environ,
            working_directory,
        })
    }

    /// An argument that is a path from the output directory on must stay below it.
    fn check_word(&mut self, word: &Template) {
        let source = word.source().as_bytes();
        if !word.starts_at_output() || !source.windows(3).any(|part| part == b"/..") {
            return;
        }
        let rendered = word.render();
        let is_path = rendered.strip_prefix(OUTPUT_DIR.as_bytes());
        if is_path.is_some_and(|rest| rest.starts_with(b"/")) {
            let path = normalized(&rendered);
            let inside = path.strip_prefix(OUTPUT_DIR.as_bytes());
            if !inside.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")) {
                self.fault(Fault::OutputLeaves(word.source().to_string()));
            }
        }
    }

    fn cat(&mut self, raw: RawCommand) -> Option<Command> {
        let Some(output) = raw.cat_output else {
            self.fault(Fault::CatWithoutOutput);
            return None;
        };
        let text = raw.cat_template.unwrap_or_else(|| Text::from(""));
        let text = self.text_template("cat_template", text);
        let output = self.template("cat_output", output)?;
        if !is_output_file(&output.render()) {
            self.fault(Fault::OutputLeaves(output.source().to_string()));
        }
        Some(Command::Cat { text: text?, output })
    }
}

/// Whether a rendered path names a file below the output directory.
fn is_output_file(rendered: &[u8]) -> bool {
    let last = rendered.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if !rendered.starts_with(b"/") || matches!(last, b"" | b"." | b"..") {
        return false;
    }
    let path = normalized(rendered);
    let below = path.strip_prefix(OUTPUT_DIR.as_bytes()).and_then(|path| path.strip_prefix(b"/"));
    below.is_some_and(|below| !below.is_empty() && RelPath::new(below).is_ok())
}
