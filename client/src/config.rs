//! Where a flag's value comes from: the command line, else the environment, else the file.
//!
//! The environment is clap's own; the values of the file become the flags' defaults, and the command
//! line is parsed a second time. So a value is checked in the same way wherever it stands, and
//! nothing after the parser knows of files.
//!
//! A key of the file is a flag's name. At the top it holds for every command that has the flag; in a
//! table named after a command, for that command alone and before the top. A key that no flag has is
//! an error.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{BoolishValueParser, OsStr};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};
use distbuild_proto::graph::nearest;
use toml::{Table, Value};

use crate::cli::Cli;

/// Why a command line gives no command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Wrong usage, or a question for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read.
    #[error("failed to read the configuration {path:?}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is no TOML.
    #[error("the configuration {path:?} is not valid: {source}")]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    /// A key that no flag has, or a value that no flag takes.
    #[error("the configuration {path:?} is not valid: {problem}")]
    Value { path: PathBuf, problem: String },
}

/// Defaults of one command: flag to values.
type Defaults = BTreeMap<String, Vec<OsStr>>;

/// Parses a command line.
///
/// # Errors
/// What clap says (help and version included), or what is wrong with the file.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Cli, CliError> {
    let command = command();
    let first = Cli::from_arg_matches(&command.clone().try_get_matches_from(&words)?)?;
    let Some(path) = first.config else { return Ok(first) };
    let text = std::fs::read_to_string(&path)
        .map_err(|source| CliError::Read { path: path.clone(), source })?;
    let table: Table = text
        .parse()
        .map_err(|source| CliError::Toml { path: path.clone(), source: Box::new(source) })?;
    let command = with_defaults(command, table)
        .map_err(|problem| CliError::Value { path: path.clone(), problem })?;
    // The command line alone was fine, so what is wrong now came from the file.
    let invalid = |error: clap::Error| CliError::Value {
        path: path.clone(),
        problem: error.to_string().trim_start_matches("error: ").trim_end().to_owned(),
    };
    let matches = command.try_get_matches_from(&words).map_err(invalid)?;
    Ok(Cli::from_arg_matches(&matches)?)
}

/// The command line with the variables of the environment.
pub(crate) fn command() -> Command {
    Cli::command()
        .mut_args(with_environment)
        .mut_subcommands(|command| command.mut_args(with_environment))
}

fn with_environment(arg: Arg) -> Arg {
    let Some(variable) = arg.get_long().map(variable) else { return arg };
    let arg = arg.env(variable).hide_env(true);
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        arg.value_parser(BoolishValueParser::new())
    } else {
        arg
    }
}

/// The variable of a flag.
fn variable(flag: &str) -> String {
    format!("DISTBUILD_{}", flag.to_uppercase().replace('-', "_"))
}

fn with_defaults(command: Command, table: Table) -> Result<Command, String> {
    let known: Vec<(String, Vec<String>)> = command
        .get_subcommands()
        .map(|command| (command.get_name().to_owned(), flags(command)))
        .collect();
    let mut of_all = Table::new();
    let mut of_one: BTreeMap<String, Table> = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(table) => {
                let names = || known.iter().map(|(name, _)| name.as_str());
                if !names().any(|name| name == key) {
                    return Err(unknown("table", &key, names()));
                }
                of_one.insert(key, table);
            }
            value => {
                let flags = || known.iter().flat_map(|(_, flags)| flags).map(String::as_str);
                if !flags().any(|flag| flag == key) {
                    return Err(unknown("key", &key, flags()));
                }
                of_all.insert(key, value);
            }
        }
    }
    let mut command = command;
    for (name, flags) in known {
        let mut defaults = Defaults::new();
        for (key, value) in &of_all {
            if flags.contains(key) {
                defaults.insert(key.clone(), values(key, value)?);
            }
        }
        for (key, value) in of_one.get(&name).into_iter().flatten() {
            if !flags.contains(key) {
                let problem = unknown("key", key, flags.iter().map(String::as_str));
                return Err(format!("in [{name}]: {problem}"));
            }
            defaults.insert(key.clone(), values(key, value)?);
        }
        command = command.mut_subcommand(name, |command| {
            command.mut_args(|arg| {
                let values = arg.get_long().and_then(|long| defaults.remove(long));
                match values {
                    Some(values) => arg.default_values(values),
                    None => arg,
                }
            })
        });
    }
    Ok(command)
}

fn flags(command: &Command) -> Vec<String> {
    let longs = command.get_arguments().filter_map(Arg::get_long);
    longs
        .filter(|long| !matches!(*long, "help" | "version" | "config"))
        .map(str::to_owned)
        .collect()
}

fn unknown<'a>(what: &str, key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let hint = nearest(key, known).map(|near| format!("; did you mean {near:?}?"));
    format!("unknown {what} {key:?}{}", hint.unwrap_or_default())
}

fn values(key: &str, value: &Value) -> Result<Vec<OsStr>, String> {
    match value {
        Value::Array(items) => items.iter().map(|item| scalar(key, item)).collect(),
        value => Ok(vec![scalar(key, value)?]),
    }
}

fn scalar(key: &str, value: &Value) -> Result<OsStr, String> {
    match value {
        Value::String(text) => Ok(OsStr::from(text)),
        Value::Integer(number) => Ok(OsStr::from(number.to_string())),
        Value::Float(number) => Ok(OsStr::from(number.to_string())),
        Value::Boolean(flag) => Ok(OsStr::from(flag.to_string())),
        other => Err(format!("{key} cannot be a {}", other.type_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command as Subcommand, CoordinatorArgs, Cores, WorkerArgs};

    fn parse_with(file: &str, words: &[&str]) -> Result<Cli, CliError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("distbuild.toml");
        std::fs::write(&path, file).unwrap();
        let words = words.iter().map(OsString::from).chain(["--config".into(), path.into()]);
        parse(std::iter::once("distbuild".into()).chain(words).collect())
    }

    fn worker(file: &str, words: &[&str]) -> WorkerArgs {
        match parse_with(file, words).unwrap().command {
            Subcommand::Worker(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn a_file_gives_values_and_the_command_line_overrules_it() {
        let file = "coordinator = \"farm:1\"\n[worker]\ncores = 1.5\nproperty = [\"a=b\", \"c=d\"]\ninsecure = true\n";
        let args = worker(file, &["worker"]);
        assert_eq!(args.coordinator.unwrap().to_string(), "farm:1");
        assert_eq!(args.cores, Some(Cores(1500)));
        assert_eq!(args.property.len(), 2);
        assert!(args.plaintext.insecure && !args.plaintext.insecure_network);
        let args = worker(file, &["worker", "--cores", "3", "--property", "x=y"]);
        assert_eq!(args.cores, Some(Cores(3000)));
        assert_eq!(args.property.len(), 1);
    }

    #[test]
    fn a_table_of_a_command_counts_before_the_top() {
        let file = "listen = \"127.0.0.1:1\"\n[coordinator]\nlisten = \"127.0.0.1:2\"\n";
        let cli = parse_with(file, &["coordinator"]).unwrap();
        let Subcommand::Coordinator(CoordinatorArgs { listen, .. }) = cli.command else {
            panic!("another command");
        };
        assert_eq!(listen.to_string(), "127.0.0.1:2");
    }

    #[test]
    fn unknown_keys_and_wrong_values_name_the_file() {
        let problem = |file| parse_with(file, &["worker"]).unwrap_err().to_string();
        assert!(problem("corse = 2").contains("did you mean \"cores\"?"));
        assert!(problem("[worker]\nlisten = \"x:1\"").contains("in [worker]"));
        assert!(problem("[wroker]").contains("did you mean \"worker\"?"));
        let wrong = problem("cores = \"many\"");
        assert!(wrong.contains("distbuild.toml") && wrong.contains("many"), "{wrong}");
        assert!(problem("cores = 1979-05-27").contains("cannot be a datetime"));
    }

    #[test]
    fn every_flag_has_its_variable() {
        for command in command().get_subcommands() {
            for arg in command.get_arguments() {
                if let Some(long) = arg.get_long().filter(|long| *long != "help") {
                    let expected = variable(long);
                    assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(expected.as_str()));
                }
            }
        }
        assert_eq!(variable("keep-going"), "DISTBUILD_KEEP_GOING");
    }
}
