//! Input roots of any size, as a client makes them.

use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use prost::Message as _;

use super::client::digest;

const FILES_A_DIRECTORY: usize = 100;

/// An input root with generated files, a hundred in each directory.
#[derive(Clone, Debug)]
pub struct InputTree {
    files: usize,
    file_bytes: usize,
    root: reapi::Directory,
    /// The directories below the root.
    directories: Vec<Vec<u8>>,
}

impl InputTree {
    /// So many files, each of so many bytes; no two are equal as long as 16 bytes can tell them apart.
    pub fn new(files: usize, file_bytes: usize) -> Self {
        let mut root = reapi::Directory::default();
        let mut directories = Vec::new();
        for first in (0..files).step_by(FILES_A_DIRECTORY) {
            let numbers = first..files.min(first + FILES_A_DIRECTORY);
            let nodes = numbers.map(|number| reapi::FileNode {
                name: file_name(number),
                digest: Some(digest(&contents(number, file_bytes))),
                ..Default::default()
            });
            let directory = reapi::Directory { files: nodes.collect(), ..Default::default() };
            let directory = directory.encode_to_vec();
            root.directories.push(reapi::DirectoryNode {
                name: directory_name(first),
                digest: Some(digest(&directory)),
            });
            directories.push(directory);
        }
        Self { files, file_bytes, root, directories }
    }

    /// Everything below the root: contents of files, then directories.
    pub fn blobs(&self) -> impl Iterator<Item = Vec<u8>> {
        let files = (0..self.files).map(|number| contents(number, self.file_bytes));
        files.chain(self.directories.iter().cloned())
    }

    /// The root, as it is or, with a mark, with an empty file that makes it another one.
    pub fn root(&self, mark: Option<&str>) -> Vec<u8> {
        let mut root = self.root.clone();
        if let Some(mark) = mark {
            let digest = Some(digest(b""));
            root.files.push(reapi::FileNode { name: mark.into(), digest, ..Default::default() });
        }
        root.encode_to_vec()
    }

    /// Paths of so many of its files, spread over all of it.
    pub fn some(&self, count: usize) -> Vec<String> {
        let count = count.min(self.files);
        let number = |nth: usize| nth * self.files / count.max(1);
        (0..count).map(number).map(path).collect()
    }
}

fn path(number: usize) -> String {
    format!("{}/{}", directory_name(number), file_name(number))
}

/// Names have a fixed width, so that their order is the numbers'.
fn directory_name(number: usize) -> String {
    format!("d{:06}", number / FILES_A_DIRECTORY)
}

fn file_name(number: usize) -> String {
    format!("f{number:08}")
}

fn contents(number: usize, bytes: usize) -> Vec<u8> {
    let mut contents = format!("{number:015}\n").into_bytes();
    contents.resize(bytes, b'.');
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_its_files_in_directories_of_a_hundred() {
        let tree = InputTree::new(250, 32);
        assert_eq!(tree.blobs().count(), 250 + 3);
        let root = reapi::Directory::decode(tree.root(None).as_slice()).unwrap();
        let names: Vec<_> = root.directories.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["d000000", "d000001", "d000002"]);
        assert_eq!(root.directories[2].digest, Some(digest(&tree.directories[2])));
        let last = reapi::Directory::decode(tree.directories[2].as_slice()).unwrap();
        assert_eq!(last.files.len(), 50);
        assert_eq!(last.files[49].digest, Some(digest(&contents(249, 32))));
    }

    #[test]
    fn files_to_read_are_spread_and_exist() {
        let tree = InputTree::new(300, 16);
        assert_eq!(
            tree.some(3),
            ["d000000/f00000000", "d000001/f00000100", "d000002/f00000200"].map(String::from)
        );
        assert_eq!(InputTree::new(2, 16).some(20).len(), 2);
        assert!(InputTree::new(0, 16).some(20).is_empty());
    }

    #[test]
    fn a_mark_makes_another_root_of_the_same_tree() {
        let tree = InputTree::new(3, 16);
        let (plain, marked) = (tree.root(None), tree.root(Some("mark")));
        assert_ne!(plain, marked);
        let decode = |root: &[u8]| reapi::Directory::decode(root).unwrap();
        assert_eq!(decode(&plain).directories, decode(&marked).directories);
    }
}
