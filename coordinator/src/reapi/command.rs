//! The API's `Action` and `Command` as one action of the core: what runs, where it may run, which outputs count.
//!
//! All paths become relative to the input root here: what a command says relative to its working directory is joined
//! and normalised, and may use `..` as long as it stays inside the root. How the client named an output is kept, since
//! the result names it so.

use std::collections::BTreeMap;
use std::time::Duration;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bytes::Bytes;
use distbuild_proto::action::{
    Action, ActionError, ActionParts, ExecStep, FIXED_ENVIRONMENT, Layout, ROOT_DIR, Step,
};
use distbuild_proto::digest::to_hex;
use distbuild_proto::graph::{Platform, Resources};
use distbuild_proto::{Digest, RelPath};

use crate::pools::Properties;

/// Variables that a command gets when it names none of this name: without them few programs run.
const DEFAULT_VARIABLES: [&str; 3] = ["HOME", "PATH", "TMPDIR"];
/// The property that asks for the network: `on` or `off`, which is the default.
const NETWORK: &str = "network";

/// An action of the API, ready to run.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) action: Action,
    /// What a worker must offer.
    pub(crate) selector: Properties,
    pub(crate) outputs: Outputs,
}

/// Which outputs a client wants, and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outputs {
    /// In the order of the command, each path once.
    pub(crate) wanted: Vec<Output>,
    /// Whether directories are wanted as `Tree` messages.
    pub(crate) trees: bool,
    /// Whether directories are wanted as `Directory` messages.
    pub(crate) directories: bool,
    /// Whether files shall say their mode.
    pub(crate) unix_mode: bool,
}

/// One path that the client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// As the client names it, relative to the working directory.
    pub(crate) name: String,
    /// Relative to the input root.
    pub(crate) path: RelPath,
    pub(crate) kind: OutputKind,
}

/// What may be at the path of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputKind {
    /// Whatever the command left there.
    Any,
    /// From the older `output_files`: a directory is an error.
    File,
    /// From the older `output_directories`: a file is an error.
    Directory,
}

/// Why an action cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// No program and no arguments.
    #[error("the command has no arguments; the first one names the program")]
    NoArguments,
    /// A path that is none, or leaves the input root.
    #[error("{what} {path:?} is not a relative path that stays inside the input root")]
    Path {
        /// Which path.
        what: &'static str,
        /// As it came.
        path: String,
    },
    /// Two variables of one name.
    #[error("the environment variable {0:?} stands twice")]
    DuplicateVariable(String),
    /// No name, or one that the system cannot take.
    #[error("{0:?} is no name of an environment variable")]
    VariableName(String),
    /// A time limit that is no duration.
    #[error("the timeout of the action is negative or malformed")]
    Timeout,
    /// A time limit over the maximum.
    #[error("the timeout of {asked_s} s is over {most_s} s, the most that this coordinator allows")]
    TimeoutTooLong {
        /// In seconds.
        asked_s: u64,
        /// In seconds.
        most_s: u64,
    },
    /// An output property that is not known.
    #[error("unknown output node property {0:?}; known are \"mtime\" and \"unix_mode\"")]
    NodeProperty(String),
    /// A platform property that this coordinator itself reads.
    #[error("platform property {name:?} has the value {value:?}; it may be {allowed}")]
    PropertyValue {
        /// Its name.
        name: &'static str,
        /// As it came.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// No worker has two values of one property.
    #[error("platform property {0:?} is asked for with two values, which no worker offers")]
    Unsatisfiable(String),
    /// Everything else that no action can hold.
    #[error(transparent)]
    Action(#[from] ActionError),
}

impl From<CommandError> for tonic::Status {
    fn from(error: CommandError) -> Self {
        match &error {
            CommandError::Unsatisfiable(_) => Self::failed_precondition(error.to_string()),
            _ => Self::invalid_argument(error.to_string()),
        }
    }
}

/// Checks an action with its command and makes them one.
///
/// # Errors
/// What no worker could run.
pub(crate) fn lower(
    action: &api::Action,
    command: &api::Command,
    input_root: Digest,
    max_timeout: Duration,
) -> Result<Lowered, CommandError> {
    if command.arguments.is_empty() {
        return Err(CommandError::NoArguments);
    }
    let working_directory = normalized(&RelPath::root(), &command.working_directory)
        .ok_or_else(|| path_error("the working directory", &command.working_directory))?;
    let outputs = outputs(command, &working_directory)?;
    let argv = command.arguments.iter().map(|word| Bytes::copy_from_slice(word.as_bytes()));
    let step =
        ExecStep::new(argv.collect(), environment(command)?, below_root(&working_directory))?;
    let Requirements { selector, network } = requirements(platform(action, command))?;
    let mut output_paths: Vec<RelPath> =
        outputs.wanted.iter().map(|output| output.path.clone()).collect();
    output_paths.sort_unstable();
    output_paths.dedup();
    let action = Action::new(ActionParts {
        layout: Layout::Root,
        steps: vec![Step::Exec(step)],
        input_root,
        output_paths,
        platform: Platform::new(
            selector.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        ),
        timeout: timeout(action, max_timeout)?,
        resources: Resources::default(),
        network,
        toolchain: String::new(),
        salt: to_hex(&action.salt),
        declared_id: None,
    })?;
    Ok(Lowered { action, selector, outputs })
}

/// The platform of the action, or else that of its command, as older clients send it.
fn platform<'a>(action: &'a api::Action, command: &'a api::Command) -> Option<&'a api::Platform> {
    #[expect(deprecated, reason = "clients of API 2.1 and older set only this one")]
    action.platform.as_ref().or(command.platform.as_ref())
}

struct Requirements {
    selector: Properties,
    network: bool,
}

/// What an action asks of a worker. A few names of the API's lexicon stand for properties that workers have;
/// every other one is matched as it stands.
fn requirements(platform: Option<&api::Platform>) -> Result<Requirements, CommandError> {
    let mut selector = Properties::new();
    let mut network = false;
    for api::platform::Property { name, value } in platform.iter().flat_map(|it| &it.properties) {
        let (name, value) = match name.as_str() {
            NETWORK => {
                network = switch(NETWORK, value)?;
                continue;
            }
            "OSFamily" => ("os", value.to_lowercase()),
            "ISA" => ("arch", architecture(value)),
            name => (name, value.clone()),
        };
        if let Some(other) = selector.insert(name.to_owned(), value.clone())
            && other != value
        {
            return Err(CommandError::Unsatisfiable(name.to_owned()));
        }
    }
    Ok(Requirements { selector, network })
}

fn switch(name: &'static str, value: &str) -> Result<bool, CommandError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => {
            let value = value.to_owned();
            Err(CommandError::PropertyValue { name, value, allowed: "\"on\" or \"off\"" })
        }
    }
}

/// The kernel's name of an instruction set, which workers use.
fn architecture(isa: &str) -> String {
    match isa.to_lowercase().as_str() {
        "x86-64" | "x86_64" | "amd64" => "x86_64".to_owned(),
        "arm-a64" | "arm64" | "aarch64" => "aarch64".to_owned(),
        other => other.to_owned(),
    }
}

fn environment(command: &api::Command) -> Result<Vec<Bytes>, CommandError> {
    let mut variables = BTreeMap::new();
    for api::command::EnvironmentVariable { name, value } in &command.environment_variables {
        if name.is_empty() || name.contains('=') {
            return Err(CommandError::VariableName(name.clone()));
        }
        if variables.insert(name.as_str(), value.as_str()).is_some() {
            return Err(CommandError::DuplicateVariable(name.clone()));
        }
    }
    for (name, value) in FIXED_ENVIRONMENT.iter().filter_map(|entry| entry.split_once('=')) {
        if DEFAULT_VARIABLES.contains(&name) {
            variables.entry(name).or_insert(value);
        }
    }
    Ok(variables.iter().map(|(name, value)| Bytes::from(format!("{name}={value}"))).collect())
}

fn outputs(command: &api::Command, base: &RelPath) -> Result<Outputs, CommandError> {
    use api::command::OutputDirectoryFormat as Format;
    let mut unix_mode = false;
    for property in &command.output_node_properties {
        match property.as_str() {
            "unix_mode" => unix_mode = true,
            // Outputs keep no time of their own.
            "mtime" => {}
            other => return Err(CommandError::NodeProperty(other.to_owned())),
        }
    }
    let (trees, directories) = match command.output_directory_format() {
        Format::TreeOnly => (true, false),
        Format::DirectoryOnly => (false, true),
        Format::TreeAndDirectory => (true, true),
    };
    let mut wanted: Vec<Output> = Vec::new();
    for (name, kind) in named_outputs(command) {
        let path = normalized(base, name).ok_or_else(|| path_error("output", name))?;
        wanted.push(Output { name: name.to_owned(), path, kind });
    }
    let mut seen = std::collections::HashSet::new();
    wanted.retain(|output| seen.insert(output.name.clone()));
    Ok(Outputs { wanted, trees, directories, unix_mode })
}

/// The outputs as the client names them. The newer field stands for itself; without it the older ones count.
fn named_outputs(command: &api::Command) -> impl Iterator<Item = (&str, OutputKind)> {
    let any = command.output_paths.iter().map(|path| (path.as_str(), OutputKind::Any));
    #[expect(deprecated, reason = "Pants and Bazel before version 5 send only these")]
    let (files, directories) = (&command.output_files, &command.output_directories);
    let files = files.iter().map(|path| (path.as_str(), OutputKind::File));
    let directories = directories.iter().map(|path| (path.as_str(), OutputKind::Directory));
    let legacy = command.output_paths.is_empty();
    any.chain(files.chain(directories).filter(move |_| legacy))
}

/// None: the action names no limit. A limit of zero is none, since nothing can be meant by it.
fn timeout(action: &api::Action, most: Duration) -> Result<Option<Duration>, CommandError> {
    let Some(asked) = &action.timeout else { return Ok(None) };
    let seconds = u64::try_from(asked.seconds).map_err(|_| CommandError::Timeout)?;
    let nanos = u32::try_from(asked.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    let asked = Duration::new(seconds, nanos.ok_or(CommandError::Timeout)?);
    if asked > most {
        let (asked_s, most_s) = (asked.as_secs(), most.as_secs());
        return Err(CommandError::TimeoutTooLong { asked_s, most_s });
    }
    Ok((!asked.is_zero()).then_some(asked))
}

fn path_error(what: &'static str, path: &str) -> CommandError {
    CommandError::Path { what, path: path.to_owned() }
}

/// A path of the input root as the steps see it.
fn below_root(path: &RelPath) -> Bytes {
    if path.is_root() {
        return Bytes::from_static(ROOT_DIR.as_bytes());
    }
    [ROOT_DIR.as_bytes(), b"/", path.as_bytes()].concat().into()
}

/// `base` joined with `path`, without `.` and `..`; none if it is absolute, leaves the root, or holds what no
/// name may.
fn normalized(base: &RelPath, path: &str) -> Option<RelPath> {
    if path.starts_with('/') {
        return None;
    }
    let mut components: Vec<&[u8]> = base.components().collect();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            name => components.push(name.as_bytes()),
        }
    }
    RelPath::new(&components.join(&b'/')).ok()
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn command(arguments: &[&str]) -> api::Command {
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        api::Command { arguments, ..Default::default() }
    }

    fn lowered(action: &api::Action, command: &api::Command) -> Result<Lowered, CommandError> {
        lower(action, command, DigestFunction::Sha256.digest(b"root"), DAY)
    }

    fn run(command: &api::Command) -> Lowered {
        lowered(&api::Action::default(), command).unwrap()
    }

    fn platform(properties: &[(&str, &str)]) -> Option<api::Platform> {
        let property = |(name, value): &(&str, &str)| api::platform::Property {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        };
        Some(api::Platform { properties: properties.iter().map(property).collect() })
    }

    fn step(lowered: &Lowered) -> &ExecStep {
        match &lowered.action.steps[..] {
            [Step::Exec(step)] => step,
            other => panic!("{other:?}"),
        }
    }

    fn strings(paths: &[RelPath]) -> Vec<String> {
        paths.iter().map(RelPath::to_string).collect()
    }

    #[test]
    fn paths_are_joined_with_the_working_directory_and_stay_inside_the_root() {
        let base = RelPath::new(b"out/Default").unwrap();
        let path = |path| normalized(&base, path).map(|path| path.to_string());
        assert_eq!(path("obj/a.o").as_deref(), Some("out/Default/obj/a.o"));
        assert_eq!(path("../../src/a.cc").as_deref(), Some("src/a.cc"));
        assert_eq!(path("./b/../c//d/").as_deref(), Some("out/Default/c/d"));
        assert_eq!(path("../..").as_deref(), Some(""));
        assert_eq!(path("").as_deref(), Some("out/Default"));
        for outside in ["../../..", "/etc/passwd", "a/../../../../b", "a\0b"] {
            assert_eq!(path(outside), None, "{outside:?}");
        }
    }

    #[test]
    fn the_command_runs_below_the_root_with_its_own_environment_and_the_defaults() {
        let variable = |name: &str, value: &str| api::command::EnvironmentVariable {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let run = run(&api::Command {
            working_directory: "out/Default".to_owned(),
            environment_variables: vec![variable("Z", "1"), variable("HOME", "/h")],
            ..command(&["cc", "-c"])
        });
        assert_eq!(step(&run).working_directory(), "/distbuild/root/out/Default");
        assert_eq!(step(&run).argv(), ["cc", "-c"]);
        let environ: Vec<_> = step(&run).environ().iter().map(|it| it.as_ref()).collect();
        let path = FIXED_ENVIRONMENT.iter().find(|entry| entry.starts_with("PATH=")).unwrap();
        assert_eq!(environ, [&b"HOME=/h"[..], path.as_bytes(), b"TMPDIR=/tmp", b"Z=1"]);
    }

    #[test]
    fn a_variable_that_stands_twice_or_has_no_name_is_refused() {
        for names in [&["A", "A"][..], &[""], &["A=B"]] {
            let variable = |name: &&str| api::command::EnvironmentVariable {
                name: (*name).to_owned(),
                value: String::new(),
            };
            let environment_variables = names.iter().map(variable).collect();
            let command = api::Command { environment_variables, ..command(&["true"]) };
            assert!(lowered(&api::Action::default(), &command).is_err(), "{names:?}");
        }
    }

    #[test]
    #[expect(deprecated, reason = "the older fields are what is tested")]
    fn output_paths_stand_for_themselves_and_without_them_the_older_fields_count() {
        let older = api::Command {
            working_directory: "w".to_owned(),
            output_files: vec!["b".to_owned()],
            output_directories: vec!["a".to_owned(), String::new()],
            ..command(&["true"])
        };
        let run_older = run(&older);
        assert_eq!(strings(&run_older.action.output_paths), ["w", "w/a", "w/b"]);
        let kinds: Vec<_> = run_older
            .outputs
            .wanted
            .iter()
            .map(|output| (output.name.as_str(), output.kind))
            .collect();
        let directory = OutputKind::Directory;
        assert_eq!(kinds, [("b", OutputKind::File), ("a", directory), ("", directory)]);
        let newer = api::Command { output_paths: vec!["../c".to_owned()], ..older };
        assert_eq!(strings(&run(&newer).action.output_paths), ["c"]);
    }

    #[test]
    #[expect(deprecated, reason = "the older field is what is tested")]
    fn the_platform_of_the_action_comes_before_that_of_the_command() {
        let command = api::Command { platform: platform(&[("gpu", "1")]), ..command(&["true"]) };
        assert_eq!(run(&command).selector, [("gpu".to_owned(), "1".to_owned())].into());
        let action = api::Action {
            platform: platform(&[("OSFamily", "Linux"), ("ISA", "x86-64"), ("Pool", "big")]),
            ..Default::default()
        };
        let expected = [("os", "linux"), ("arch", "x86_64"), ("Pool", "big")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(lowered(&action, &command).unwrap().selector, expected.into());
    }

    #[test]
    fn a_property_asked_for_with_two_values_is_a_failed_precondition_that_names_it() {
        let with =
            |properties| api::Action { platform: platform(properties), ..Default::default() };
        let twice = lowered(&with(&[("os", "linux"), ("OSFamily", "linux")]), &command(&["true"]));
        assert_eq!(twice.unwrap().selector.len(), 1);
        let error = lowered(&with(&[("label", "a"), ("label", "b")]), &command(&["true"]));
        let status = tonic::Status::from(error.unwrap_err());
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains("\"label\""), "{status}");
    }

    #[test]
    fn the_network_is_there_only_for_who_asks() {
        let with =
            |value| api::Action { platform: platform(&[("network", value)]), ..Default::default() };
        assert!(!run(&command(&["true"])).action.network);
        let on = lowered(&with("on"), &command(&["true"])).unwrap();
        assert!(on.action.network && on.selector.is_empty());
        assert!(lowered(&with("maybe"), &command(&["true"])).is_err());
    }

    #[test]
    fn a_timeout_over_the_maximum_or_below_zero_is_refused() {
        let with = |seconds, nanos| {
            let timeout = Some(bazel_remote_apis::google::protobuf::Duration { seconds, nanos });
            lowered(&api::Action { timeout, ..Default::default() }, &command(&["true"]))
        };
        assert_eq!(with(1, 500).unwrap().action.timeout, Some(Duration::new(1, 500)));
        assert_eq!(with(0, 0).unwrap().action.timeout, None);
        assert!(with(DAY.as_secs() as i64, 0).is_ok());
        for (seconds, nanos) in [(DAY.as_secs() as i64, 1), (-1, 0), (1, -1), (1, i32::MAX)] {
            let status = tonic::Status::from(with(seconds, nanos).unwrap_err());
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{seconds} s {nanos} ns");
        }
    }

    #[test]
    fn an_unknown_node_property_is_refused() {
        let with = |property: &str| api::Command {
            output_node_properties: vec![property.to_owned()],
            ..command(&["true"])
        };
        assert!(run(&with("unix_mode")).outputs.unix_mode);
        assert!(!run(&with("mtime")).outputs.unix_mode);
        assert!(lowered(&api::Action::default(), &with("owner")).is_err());
    }

    #[test]
    fn a_command_without_arguments_is_refused() {
        let error = lowered(&api::Action::default(), &command(&[])).unwrap_err();
        assert!(matches!(error, CommandError::NoArguments));
        assert!(lowered(&api::Action::default(), &command(&[""])).is_err());
    }

    #[test]
    fn the_salt_changes_the_digest_and_nothing_else() {
        let salted = api::Action { salt: b"s\xff".to_vec(), ..Default::default() };
        let (one, other) =
            (run(&command(&["true"])), lowered(&salted, &command(&["true"])).unwrap());
        assert_ne!(one.action.digest(), other.action.digest());
        assert_eq!(one.action.steps, other.action.steps);
    }
}
