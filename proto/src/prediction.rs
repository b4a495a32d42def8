//! What commands will probably look at, foreseen from what they looked at last.

use bytes::Bytes;

use crate::observed::{AccessRecord, Observed};
use crate::path::{PathError, RelPath};
use crate::wire;

/// Bytes of all paths of a prediction, written out.
const MAX_PATH_BYTES: usize = 64 << 20;

/// The names that a command is likely to look at, in the order of their bytes; what they are is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prediction {
    /// Files whose contents it reads.
    pub files: Vec<RelPath>,
    /// Directories that it looks into.
    pub directories: Vec<RelPath>,
}

impl Prediction {
    /// That it does the same again.
    pub fn of(record: &AccessRecord) -> Self {
        let mut prediction = Self { files: Vec::new(), directories: record.listed() };
        for (path, observed) in record.looked_up() {
            match observed {
                Observed::File { .. } => prediction.files.push(path),
                Observed::Directory(_) => prediction.directories.push(path),
                Observed::Symlink { .. } | Observed::Absent => {}
            }
        }
        prediction.files.sort_unstable();
        prediction.directories.sort_unstable();
        prediction.directories.dedup();
        prediction
    }

    /// The message.
    pub fn to_wire(&self) -> wire::Prediction {
        let list = |paths: &[RelPath]| {
            let mut shortener = Shortener::default();
            let mut list = wire::PathList::default();
            for path in paths {
                let (shared, rest) = shortener.shorten(path);
                list.shared.push(shared);
                list.rest.push(rest);
            }
            Some(list)
        };
        wire::Prediction { files: list(&self.files), directories: list(&self.directories) }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// Paths that are none, or out of order.
    pub fn from_wire(prediction: &wire::Prediction) -> Result<Self, PredictionError> {
        let mut room = MAX_PATH_BYTES;
        let mut list = |list: &Option<wire::PathList>| -> Result<Vec<RelPath>, PredictionError> {
            let Some(list) = list else { return Ok(Vec::new()) };
            let mut lengthener = Lengthener::default();
            let paths = list.shared.iter().zip(&list.rest);
            paths.map(|(shared, rest)| lengthener.lengthen(*shared, rest, &mut room)).collect()
        };
        let files = list(&prediction.files)?;
        Ok(Self { files, directories: list(&prediction.directories)? })
    }
}

/// Leaves out what a path shares with the one before.
#[derive(Default)]
struct Shortener<'a> {
    before: &'a [u8],
}

impl<'a> Shortener<'a> {
    fn shorten(&mut self, path: &'a RelPath) -> (u32, Bytes) {
        let path = path.as_bytes();
        let shared = self.before.iter().zip(path).take_while(|(a, b)| a == b).count();
        self.before = path;
        // No path is longer than 4 GiB.
        let counted = u32::try_from(shared).unwrap_or_default();
        (counted, Bytes::copy_from_slice(&path[counted as usize..]))
    }
}

/// Puts it back, and sees to it that the paths rise.
#[derive(Default)]
struct Lengthener {
    before: Option<RelPath>,
}

impl Lengthener {
    fn lengthen(
        &mut self,
        shared: u32,
        rest: &[u8],
        room: &mut usize,
    ) -> Result<RelPath, PredictionError> {
        let before = self.before.as_ref().map_or(&[][..], RelPath::as_bytes);
        let shared = before.get(..shared as usize).ok_or(PredictionError::Unsorted)?;
        let len = shared.len() + rest.len();
        *room = room.checked_sub(len).ok_or(PredictionError::TooLong(MAX_PATH_BYTES))?;
        let path = RelPath::new(&[shared, rest].concat())?;
        if self.before.as_ref().is_some_and(|before| *before >= path) {
            return Err(PredictionError::Unsorted);
        }
        self.before = Some(path.clone());
        Ok(path)
    }
}

/// Why a message is no prediction.
#[derive(Debug, thiserror::Error)]
pub enum PredictionError {
    /// Paths that do not rise, or begin as one that is shorter.
    #[error("the paths of a prediction are out of order")]
    Unsorted,
    /// More than any record foresees.
    #[error("the paths of a prediction are longer than {0} bytes together")]
    TooLong(usize),
    /// A path that is none.
    #[error(transparent)]
    Path(#[from] PathError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::DigestFunction;
    use crate::observed::ObservedDirectory;
    use crate::path::Name;

    fn path(path: &str) -> RelPath {
        RelPath::new(path.as_bytes()).unwrap()
    }

    fn directory(names: Vec<(&str, Observed)>) -> ObservedDirectory {
        let mut directory = ObservedDirectory::unseen(DigestFunction::Blake3.digest(b"directory"));
        directory.names = names
            .into_iter()
            .map(|(name, seen)| (Name::new(name.as_bytes()).unwrap(), seen))
            .collect();
        directory
    }

    #[test]
    fn a_prediction_names_what_was_there_and_survives_the_wire() {
        let file =
            || Observed::File { digest: DigestFunction::Blake3.digest(b"file"), executable: false };
        let include = directory(vec![("b.h", file()), ("none.h", Observed::Absent)]);
        let root = directory(vec![
            ("src.c", file()),
            ("src", Observed::Directory(include)),
            ("link", Observed::Symlink { target: Bytes::from_static(b"x") }),
        ]);
        let prediction = Prediction::of(&AccessRecord::new(root, true));
        // In the order of their bytes, which is not that of the tree.
        assert_eq!(prediction.files, [path("src.c"), path("src/b.h")]);
        assert_eq!(prediction.directories, [path("src")]);
        assert_eq!(Prediction::from_wire(&prediction.to_wire()).unwrap(), prediction);
        let nothing = Prediction::from_wire(&wire::Prediction::default()).unwrap();
        assert_eq!(nothing, Prediction::default());
    }

    #[test]
    fn paths_that_share_what_is_not_there_are_refused() {
        let list = wire::PathList { shared: vec![0, 5], rest: vec!["src".into(), "a".into()] };
        let prediction = wire::Prediction { files: Some(list), directories: None };
        let refused = Prediction::from_wire(&prediction);
        assert!(matches!(refused, Err(PredictionError::Unsorted)));
    }
}
