//! What a command left behind, in the API's words: an output tree becomes the outputs of an `ActionResult`.
//!
//! The tree mirrors the input root. Each path that the client wants is looked up in it: a file, a symbolic link
//! as it stands, or a directory, which is told as a `Tree` message, as its `Directory` messages, or both. A path
//! where nothing is is left out.

use std::collections::HashMap;
use std::sync::Arc;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::google::protobuf::UInt32Value;
use bytes::{BufMut, Bytes, BytesMut};
use distbuild_proto::{Child, Digest, Directory, FileNode, RelPath, SymlinkNode};

use super::command::{Output, OutputKind, Outputs};
use super::digest::to_api;

/// Mode of an output that may be executed, and of one that may not; nothing else of it is kept.
const MODES: [u32; 2] = [0o755, 0o644];
/// Tags of the records of a `Tree`: the root, and any other directory.
const TREE_ROOT: u8 = 1 << 3 | 2;
const TREE_CHILD: u8 = 2 << 3 | 2;

/// Directories by digest: encoded, and decoded.
pub(crate) type Directories = HashMap<Digest, (Bytes, Arc<Directory>)>;

/// The outputs of a result, and what they name.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Without exit code, stdout and stderr, and metadata.
    pub(crate) result: api::ActionResult,
    /// Contents that the worker has, each once.
    pub(crate) files: Vec<Digest>,
    /// Contents that were made here: `Tree` messages, and `Directory` messages where they are wanted.
    pub(crate) made: Vec<(Digest, Bytes)>,
}

/// Why outputs cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// The client said what it would be, and it is something else.
    #[error("output {name:?} was to be {expected}, and the command left {found} there")]
    Kind {
        /// As the client named it.
        name: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// The API's strings are Unicode.
    #[error("{0:?} below an output is not UTF-8, which the API requires of names and link targets")]
    NotUnicode(String),
    /// A part of the tree is not at hand.
    #[error("directory {0} of the output tree is missing")]
    MissingDirectory(Digest),
}

/// Tells the outputs that a client wants.
///
/// # Errors
/// A file where a directory was asked for, or the other way round; a name that is not UTF-8.
pub(crate) fn name_outputs(
    outputs: &Outputs,
    root: Option<&Digest>,
    directories: &Directories,
) -> Result<Named, OutputError> {
    let mut telling = Telling { outputs, directories, named: Named::default() };
    if let Some(root) = root {
        for output in &outputs.wanted {
            telling.tell(output, root)?;
        }
    }
    let named = &mut telling.named;
    named.files.sort_unstable();
    named.files.dedup();
    named.made.sort_unstable_by_key(|(digest, _)| *digest);
    named.made.dedup_by_key(|(digest, _)| *digest);
    Ok(telling.named)
}

struct Telling<'a> {
    outputs: &'a Outputs,
    directories: &'a Directories,
    named: Named,
}

impl Telling<'_> {
    fn tell(&mut self, output: &Output, root: &Digest) -> Result<(), OutputError> {
        let Some(found) = find(self.directories, root, &output.path)? else { return Ok(()) };
        match found {
            Found::File(node) => {
                refuse(output, OutputKind::Directory, "a directory", "a file")?;
                self.file(output, &node);
            }
            Found::Directory(digest) => {
                refuse(output, OutputKind::File, "a file", "a directory")?;
                self.directory(output, digest)?;
            }
            Found::Symlink(node) => self.symlink(output, &node)?,
        }
        Ok(())
    }

    fn file(&mut self, output: &Output, node: &FileNode) {
        self.named.files.push(node.digest);
        let mode = MODES[usize::from(!node.executable)];
        let node_properties = self.outputs.unix_mode.then(|| api::NodeProperties {
            unix_mode: Some(UInt32Value { value: mode }),
            ..Default::default()
        });
        self.named.result.output_files.push(api::OutputFile {
            path: output.name.clone(),
            digest: Some(to_api(&node.digest)),
            is_executable: node.executable,
            node_properties,
            ..Default::default()
        });
    }

    fn symlink(&mut self, output: &Output, node: &SymlinkNode) -> Result<(), OutputError> {
        let link = api::OutputSymlink {
            path: output.name.clone(),
            target: unicode(&node.target)?.to_owned(),
            node_properties: None,
        };
        let result = &mut self.named.result;
        #[expect(deprecated, reason = "who sends the older fields reads the older fields")]
        match output.kind {
            OutputKind::Any => {}
            OutputKind::File => result.output_file_symlinks.push(link.clone()),
            OutputKind::Directory => result.output_directory_symlinks.push(link.clone()),
        }
        result.output_symlinks.push(link);
        Ok(())
    }

    fn directory(&mut self, output: &Output, root: Digest) -> Result<(), OutputError> {
        let order = parents_first(self.directories, root)?;
        for digest in &order {
            let (_, directory) = entry(self.directories, digest)?;
            for name in directory.names() {
                unicode(name.as_bytes())?;
            }
            for link in directory.symlinks() {
                unicode(&link.target)?;
            }
            self.named.files.extend(directory.files().iter().map(|node| node.digest));
        }
        let mut told = api::OutputDirectory { path: output.name.clone(), ..Default::default() };
        if self.outputs.trees {
            let tree = encode_tree(self.directories, &order)?;
            let digest = root.function().digest(&tree);
            told.tree_digest = Some(to_api(&digest));
            told.is_topologically_sorted = true;
            self.named.made.push((digest, tree));
        }
        if self.outputs.directories {
            told.root_directory_digest = Some(to_api(&root));
            for digest in order {
                self.named.made.push((digest, entry(self.directories, &digest)?.0.clone()));
            }
        }
        self.named.result.output_directories.push(told);
        Ok(())
    }
}

fn refuse(
    output: &Output,
    kind: OutputKind,
    expected: &'static str,
    found: &'static str,
) -> Result<(), OutputError> {
    if output.kind == kind {
        return Err(OutputError::Kind { name: output.name.clone(), expected, found });
    }
    Ok(())
}

fn unicode(bytes: &[u8]) -> Result<&str, OutputError> {
    std::str::from_utf8(bytes)
        .map_err(|_| OutputError::NotUnicode(String::from_utf8_lossy(bytes).into_owned()))
}

fn entry<'a>(
    directories: &'a Directories,
    digest: &Digest,
) -> Result<&'a (Bytes, Arc<Directory>), OutputError> {
    directories.get(digest).ok_or(OutputError::MissingDirectory(*digest))
}

enum Found {
    File(FileNode),
    Directory(Digest),
    Symlink(SymlinkNode),
}

/// What is at a path; links on the way are not followed.
fn find(
    directories: &Directories,
    root: &Digest,
    path: &RelPath,
) -> Result<Option<Found>, OutputError> {
    let mut found = Found::Directory(*root);
    for component in path.components() {
        let Found::Directory(digest) = found else { return Ok(None) };
        found = match entry(directories, &digest)?.1.get(component) {
            None => return Ok(None),
            Some(Child::File(node)) => Found::File(node.clone()),
            Some(Child::Directory(node)) => Found::Directory(node.digest),
            Some(Child::Symlink(node)) => Found::Symlink(node.clone()),
        };
    }
    Ok(Some(found))
}

/// The distinct directories that a root reaches, each before all that it holds, always in the same order.
fn parents_first(directories: &Directories, root: Digest) -> Result<Vec<Digest>, OutputError> {
    let mut order = Vec::new();
    let mut seen = std::collections::HashSet::from([root]);
    // Each with the number of its children that are done.
    let mut path = vec![(root, 0)];
    while let Some((digest, next)) = path.last_mut() {
        let children = entry(directories, digest)?.1.directories();
        match children.get(*next) {
            Some(child) => {
                *next += 1;
                if seen.insert(child.digest) {
                    path.push((child.digest, 0));
                }
            }
            None => {
                order.push(*digest);
                path.pop();
            }
        }
    }
    order.reverse();
    Ok(order)
}

/// A `Tree` message as the API wants it to be written: the root, then each other directory once, parents first.
fn encode_tree(directories: &Directories, order: &[Digest]) -> Result<Bytes, OutputError> {
    let mut tree = BytesMut::new();
    for (position, digest) in order.iter().enumerate() {
        let (blob, _) = entry(directories, digest)?;
        tree.put_u8(if position == 0 { TREE_ROOT } else { TREE_CHILD });
        prost::encoding::encode_varint(blob.len() as u64, &mut tree);
        tree.put_slice(blob);
    }
    Ok(tree.freeze())
}

#[cfg(test)]
mod tests {
    use distbuild_proto::{DigestFunction, DirectoryNode, Name};
    use prost::Message;

    use super::*;

    const FUNCTION: DigestFunction = DigestFunction::Sha256;

    /// Directories that are made bottom up.
    #[derive(Default)]
    struct Made(Directories);

    impl Made {
        fn add(
            &mut self,
            files: &[&str],
            directories: &[(&str, Digest)],
            links: &[&str],
        ) -> Digest {
            let name = |name: &str| Name::new(name.as_bytes()).unwrap();
            let file = |text: &&str| FileNode {
                name: name(text),
                digest: FUNCTION.digest(text.as_bytes()),
                executable: *text == "tool",
            };
            let directory = |(text, digest): &(&str, Digest)| DirectoryNode {
                name: name(text),
                digest: *digest,
            };
            let link = |text: &&str| SymlinkNode {
                name: name(text),
                target: Bytes::from_static(b"../nowhere"),
            };
            let directory = Directory::new(
                files.iter().map(file).collect(),
                directories.iter().map(directory).collect(),
                links.iter().map(link).collect(),
            );
            let directory = directory.unwrap();
            let (digest, blob) = directory.encode_with_digest(FUNCTION);
            self.0.insert(digest, (blob, Arc::new(directory)));
            digest
        }
    }

    fn wanted(paths: &[(&str, OutputKind)]) -> Outputs {
        let output = |(path, kind): &(&str, OutputKind)| Output {
            name: (*path).to_owned(),
            path: RelPath::new(path.as_bytes()).unwrap(),
            kind: *kind,
        };
        let wanted = paths.iter().map(output).collect();
        Outputs { wanted, trees: true, directories: false, unix_mode: false }
    }

    #[test]
    fn files_and_links_are_told_where_they_are_and_what_is_not_there_is_left_out() {
        let mut made = Made::default();
        let inner = made.add(&["tool"], &[], &["link"]);
        let root = made.add(&["a"], &[("d", inner)], &[]);
        let any = OutputKind::Any;
        let mut outputs = wanted(&[
            ("a", any),
            ("a/b", any),
            ("d/link", any),
            ("d/link/x", any),
            ("d/tool", any),
            ("no", any),
        ]);
        outputs.unix_mode = true;
        let Named { result, files, made } = name_outputs(&outputs, Some(&root), &made.0).unwrap();
        let file = |file: &api::OutputFile| {
            let mode = file.node_properties.as_ref().unwrap().unix_mode.unwrap().value;
            (file.path.clone(), file.is_executable, mode)
        };
        assert_eq!(
            result.output_files.iter().map(file).collect::<Vec<_>>(),
            [("a".to_owned(), false, 0o644), ("d/tool".to_owned(), true, 0o755)]
        );
        let [link] = &result.output_symlinks[..] else { panic!("{result:?}") };
        assert_eq!((link.path.as_str(), link.target.as_str()), ("d/link", "../nowhere"));
        assert!(files.len() == 2 && made.is_empty());
    }

    #[test]
    #[expect(deprecated, reason = "the older fields are what is tested")]
    fn who_sends_the_older_fields_gets_the_older_fields() {
        let mut made = Made::default();
        let root = made.add(&[], &[], &["l", "m"]);
        let outputs = wanted(&[("l", OutputKind::File), ("m", OutputKind::Directory)]);
        let result = name_outputs(&outputs, Some(&root), &made.0).unwrap().result;
        assert_eq!(result.output_file_symlinks[0].path, "l");
        assert_eq!(result.output_directory_symlinks[0].path, "m");
        assert_eq!(result.output_symlinks.len(), 2);
    }

    #[test]
    fn a_directory_where_a_file_was_asked_for_is_an_error() {
        let mut made = Made::default();
        let inner = made.add(&[], &[], &[]);
        let root = made.add(&["f"], &[("d", inner)], &[]);
        for wrong in [("d", OutputKind::File), ("f", OutputKind::Directory)] {
            let error = name_outputs(&wanted(&[wrong]), Some(&root), &made.0).unwrap_err();
            assert!(matches!(error, OutputError::Kind { .. }), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn a_tree_holds_each_directory_once_and_parents_before_children() {
        let mut made = Made::default();
        let leaf = made.add(&["x"], &[], &[]);
        let middle = made.add(&[], &[("leaf", leaf)], &[]);
        // The leaf is a child of the root and, deeper, a grandchild: it has to come after the middle.
        let root = made.add(&[], &[("a", leaf), ("b", middle), ("c", leaf)], &[]);
        let outputs = wanted(&[("", OutputKind::Any)]);
        let named = name_outputs(&outputs, Some(&root), &made.0).unwrap();
        let told = &named.result.output_directories[0];
        assert!(told.is_topologically_sorted && told.root_directory_digest.is_none());
        let [(digest, blob)] = &named.made[..] else { panic!("{:?}", named.made) };
        assert_eq!(told.tree_digest, Some(to_api(digest)));
        let tree = api::Tree::decode(&blob[..]).unwrap();
        assert_eq!(tree.encode_to_vec(), blob[..], "it is the message that a library would write");
        let digest = |directory: &api::Directory| FUNCTION.digest(&directory.encode_to_vec());
        assert_eq!(digest(tree.root.as_ref().unwrap()), root);
        assert_eq!(tree.children.iter().map(digest).collect::<Vec<_>>(), [middle, leaf]);
        assert_eq!(named.files, [FUNCTION.digest(b"x")]);
    }

    #[test]
    fn directories_are_told_in_the_form_that_the_client_wants() {
        let mut made = Made::default();
        let leaf = made.add(&["x"], &[], &[]);
        let root = made.add(&[], &[("d", leaf)], &[]);
        let mut outputs = wanted(&[("d", OutputKind::Any)]);
        (outputs.trees, outputs.directories) = (false, true);
        let named = name_outputs(&outputs, Some(&root), &made.0).unwrap();
        let told = &named.result.output_directories[0];
        assert_eq!(told.root_directory_digest, Some(to_api(&leaf)));
        assert!(told.tree_digest.is_none() && !told.is_topologically_sorted);
        assert_eq!(named.made.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), [leaf]);
        outputs.trees = true;
        let named = name_outputs(&outputs, Some(&root), &made.0).unwrap();
        assert!(named.result.output_directories[0].tree_digest.is_some());
        assert_eq!(named.made.len(), 2);
    }

    #[test]
    fn a_name_that_the_api_cannot_say_is_an_error() {
        let mut made = Made::default();
        let link = SymlinkNode { name: Name::new(b"l\xff").unwrap(), target: Bytes::from("t") };
        let directory = Directory::new(vec![], vec![], vec![link]).unwrap();
        let (digest, blob) = directory.encode_with_digest(FUNCTION);
        made.0.insert(digest, (blob, Arc::new(directory)));
        let root = made.add(&[], &[("d", digest)], &[]);
        let error = name_outputs(&wanted(&[("d", OutputKind::Any)]), Some(&root), &made.0);
        assert!(matches!(error.unwrap_err(), OutputError::NotUnicode(_)));
    }
}
