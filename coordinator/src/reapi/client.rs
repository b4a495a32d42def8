//! Who calls: the API's `RequestMetadata`, a header of every call.

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use prost::Message;
use tonic::metadata::MetadataMap;

use super::instance::Instance;

/// The header, and the name that it had before the API's second version, which Pants still uses.
const HEADERS: [&str; 2] = [
    "build.bazel.remote.execution.v2.requestmetadata-bin",
    "google.devtools.remoteexecution.v1test.requestmetadata-bin",
];
/// The longest name that an execution is shown by, in characters.
const MAX_NAME_CHARS: usize = 200;

/// What a caller says about itself; all of it may be missing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    invocation: String,
    mnemonic: String,
    target: String,
}

impl Client {
    /// Reads the headers of a call. One that is malformed says nothing.
    pub(crate) fn of(headers: &MetadataMap) -> Self {
        let bytes = HEADERS.iter().find_map(|name| headers.get_bin(*name)?.to_bytes().ok());
        let metadata = bytes.and_then(|bytes| api::RequestMetadata::decode(bytes).ok());
        let Some(metadata) = metadata else { return Self::default() };
        Self {
            invocation: metadata.tool_invocation_id,
            mnemonic: metadata.action_mnemonic,
            target: metadata.target_id,
        }
    }

    /// Who shares the workers fairly with others: an invocation of a tool.
    pub(crate) fn user(&self, instance: &Instance) -> String {
        format!("{instance}#{}", self.invocation)
    }

    /// What an execution is called for people: its mnemonic and target, or what it makes or runs.
    pub(crate) fn name_of(&self, command: &api::Command) -> String {
        let said = format!("{} {}", self.mnemonic, self.target);
        let made = command.output_paths.first().or(command.arguments.first());
        let name = match said.trim() {
            "" => made.map_or("", String::as_str),
            said => said,
        };
        name.chars().take(MAX_NAME_CHARS).collect()
    }
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    #[test]
    fn both_headers_are_understood_and_a_malformed_one_says_nothing() {
        let metadata = api::RequestMetadata {
            tool_invocation_id: "i".to_owned(),
            action_mnemonic: "CppCompile".to_owned(),
            target_id: "//a:b".to_owned(),
            ..Default::default()
        };
        for name in HEADERS {
            let mut headers = MetadataMap::new();
            headers.insert_bin(name, MetadataValue::from_bytes(&metadata.encode_to_vec()));
            let client = Client::of(&headers);
            assert_eq!(client.user(&Instance::parse("main").unwrap()), "main#i");
            assert_eq!(client.name_of(&api::Command::default()), "CppCompile //a:b");
            headers.insert_bin(name, MetadataValue::from_bytes(b"\xff"));
            assert_eq!(Client::of(&headers).invocation, "");
        }
    }

    #[test]
    fn without_metadata_an_execution_is_called_after_what_it_makes_or_runs() {
        let client = Client::default();
        let mut command = api::Command { arguments: vec!["cc".to_owned()], ..Default::default() };
        assert_eq!(client.name_of(&command), "cc");
        command.output_paths = vec!["a.o".to_owned()];
        assert_eq!(client.name_of(&command), "a.o");
    }
}
