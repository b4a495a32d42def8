//! Where things are on the user's machine: graph, sources, outputs, caches. All paths are absolute.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use crate::exit::Failure;

/// The places of one graph.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The graph file.
    pub(crate) graph: PathBuf,
    /// The source root.
    pub(crate) source: PathBuf,
    /// The directory that holds one directory of outputs a job.
    pub(crate) out: PathBuf,
    /// What builds keep from one to the next.
    pub(crate) cache: Cache,
    /// Where a build's summary goes, if anywhere.
    pub(crate) summary: Option<PathBuf>,
    /// Where a build's events go, if anywhere.
    pub(crate) events: Option<PathBuf>,
    /// Where it is written what jobs did not look at, if anywhere.
    pub(crate) report: Option<PathBuf>,
}

impl Places {
    /// The places that the command line names, or the documented ones beside the graph file.
    ///
    /// # Errors
    /// There is no home to keep a cache in, or no working directory.
    pub(crate) fn new(
        graph: &Path,
        source: Option<PathBuf>,
        out: Option<PathBuf>,
        state: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let graph = absolute(graph)?;
        let beside = graph.parent().unwrap_or(Path::new("/")).to_owned();
        let source = source.map_or(Ok(beside.clone()), |source| absolute(&source))?;
        let out = out.map_or(Ok(beside.join("distbuild-out")), |out| absolute(&out))?;
        let cache = Cache::new(state)?;
        Ok(Self { graph, source, out, cache, summary: None, events: None, report: None })
    }

    /// The same places for a build that is to be written about.
    ///
    /// # Errors
    /// A path is empty, or there is no working directory.
    pub(crate) fn with_reports(
        self,
        summary: Option<PathBuf>,
        events: Option<PathBuf>,
        report: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let of = |path: Option<PathBuf>| path.map(|path| absolute(&path)).transpose();
        Ok(Self { summary: of(summary)?, events: of(events)?, report: of(report)?, ..self })
    }

    /// Finds before a build what would keep it from being written about after it.
    ///
    /// # Errors
    /// A file that cannot be written to.
    pub(crate) fn check_reports(&self) -> Result<(), Failure> {
        for (what, path, replaced) in [
            ("summary", &self.summary, true),
            ("events", &self.events, false),
            ("report", &self.report, true),
        ] {
            let Some(path) = path else { continue };
            check_writable(path, replaced).map_err(|error| {
                let path = path.display();
                Failure::usage(format!("failed to write the {what} to {path}: {error}"))
            })?;
        }
        Ok(())
    }

    /// Refuses an output directory whose contents are not for a build to replace.
    ///
    /// # Errors
    /// It is or holds the source root or the graph file, or it is something else than a directory.
    pub(crate) fn check_out(&self) -> Result<(), Failure> {
        let shown = self.out.display();
        if std::fs::metadata(&self.out).is_ok_and(|found| !found.is_dir()) {
            return Err(Failure::usage(format!("the output directory {shown} is not a directory")));
        }
        let out = real(&self.out);
        let beside = self.graph.parent().map(real);
        if real(&self.source).starts_with(&out) {
            let source = self.source.display();
            return Err(Failure::usage(format!(
                "the output directory {shown} is or holds the source root {source}; \
                 directories in it are replaced, so it has to be another one"
            )));
        }
        if real(&self.graph).starts_with(&out) || beside.is_some_and(|it| it.starts_with(&out)) {
            return Err(Failure::usage(format!(
                "the output directory {shown} holds the graph file {}; \
                 directories in it are replaced, so it has to be another one",
                self.graph.display()
            )));
        }
        Ok(())
    }

    /// What can never be an input.
    pub(crate) fn excluded(&self) -> Vec<PathBuf> {
        let always = [&self.out, &self.cache.0, &self.graph];
        let told = [&self.summary, &self.events, &self.report].into_iter().flatten();
        always.into_iter().chain(told).cloned().collect()
    }

    /// The name of the graph file, for people.
    pub(crate) fn title(&self) -> String {
        let name = self.graph.file_name().unwrap_or(self.graph.as_os_str());
        name.to_string_lossy().into_owned()
    }
}

/// The cache directory.
#[derive(Clone, Debug)]
pub(crate) struct Cache(PathBuf);

impl Cache {
    /// The directory that the command line names, or the documented one.
    ///
    /// # Errors
    /// There is no home to keep it in.
    pub(crate) fn new(given: Option<PathBuf>) -> Result<Self, Failure> {
        Ok(Self(match given {
            Some(given) => absolute(&given)?,
            None => below_home("XDG_CACHE_HOME", ".cache")?.join("distbuild"),
        }))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Blobs that came from other machines to be looked at.
    pub(crate) fn inspected(&self) -> PathBuf {
        self.0.join("inspected")
    }

    /// Digests of files by their state on disk.
    pub(crate) fn stat_cache(&self) -> PathBuf {
        self.0.join("files.db")
    }

    /// Digests of outputs that were found in their places.
    pub(crate) fn delivered(&self) -> PathBuf {
        self.0.join("delivered")
    }

    /// State of the embedded coordinator.
    pub(crate) fn coordinator(&self) -> PathBuf {
        self.0.join("coordinator")
    }

    /// State of the embedded worker.
    pub(crate) fn worker(&self) -> PathBuf {
        self.0.join("worker")
    }

    /// Blobs of outputs that came from other machines.
    pub(crate) fn outputs(&self) -> PathBuf {
        self.0.join("outputs")
    }
}

/// The state directory of a daemon that was given none.
///
/// # Errors
/// There is no home.
pub(crate) fn daemon_state(given: Option<PathBuf>, role: &str) -> Result<PathBuf, Failure> {
    match given {
        Some(given) => absolute(&given),
        None => Ok(below_home("XDG_STATE_HOME", ".local/state")?.join("distbuild").join(role)),
    }
}

/// The path, whatever the working directory.
///
/// # Errors
/// It is empty, or there is no working directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{path:?} is not a usable path: {error}")))
}

/// Whether a file can be written, or made; `replaced`: by renaming another one to its name.
fn check_writable(path: &Path, replaced: bool) -> std::io::Result<()> {
    let found = std::fs::metadata(path);
    if found.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    if found.is_ok() {
        eaccess(path, AccessFlags::W_OK)?;
    }
    if found.map_or(true, |found| found.is_file() && replaced) {
        let parent = path.parent().unwrap_or(Path::new("/"));
        eaccess(parent, AccessFlags::W_OK | AccessFlags::X_OK)?;
        if !parent.is_dir() {
            return Err(std::io::ErrorKind::NotADirectory.into());
        }
    }
    Ok(())
}

/// The path without symbolic links and `..`, as far as it exists.
fn real(path: &Path) -> PathBuf {
    for known in path.ancestors() {
        if let (Ok(resolved), Ok(rest)) = (known.canonicalize(), path.strip_prefix(known)) {
            return resolved.join(rest);
        }
    }
    path.to_owned()
}

/// A base directory of the XDG specification: its variable, else its place below the home.
fn below_home(variable: &str, place: &str) -> Result<PathBuf, Failure> {
    let set =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set(variable)
        .or_else(|| Some(set("HOME")?.join(place)))
        .ok_or_else(|| Failure::usage(format!("neither --state nor {variable} nor HOME is set")))
}

/// The name of a job's directory below the output directory.
pub(crate) fn output_name(job: &str) -> String {
    job.replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_in_a_job_name_is_written_as_percent_2f() {
        assert_eq!(output_name("build a/b/c"), "build a%2Fb%2Fc");
        assert_eq!(output_name("cc lapi.c"), "cc lapi.c");
        assert_eq!(output_name("100%"), "100%");
    }

    #[test]
    fn what_is_not_named_lies_beside_the_graph_file() {
        let places =
            Places::new(Path::new("/p/graph.json"), None, None, Some("/c".into())).unwrap();
        assert_eq!(places.source, Path::new("/p"));
        assert_eq!(places.out, Path::new("/p/distbuild-out"));
        assert_eq!(places.title(), "graph.json");
    }

    #[test]
    fn reports_that_cannot_be_written_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let below = |name: &str| directory.path().join(name);
        std::fs::write(below("file"), "").unwrap();
        let graph = below("graph.json");
        let check = |summary: Option<PathBuf>, events: Option<PathBuf>, report| {
            let places = Places::new(&graph, None, None, Some(below("cache"))).unwrap();
            places.with_reports(summary, events, report).unwrap().check_reports()
        };
        for bad in [below("none/report"), below("file/report"), below("")] {
            let name = bad.display().to_string();
            for refused in [
                check(Some(bad.clone()), None, None),
                check(None, Some(bad.clone()), None),
                check(None, None, Some(bad.clone())),
            ] {
                let text = refused.unwrap_err().to_string();
                assert!(text.contains(&name), "{text}");
            }
        }
        for good in [below("new"), below("file"), "/dev/null".into()] {
            check(Some(good.clone()), Some(good.clone()), Some(good)).unwrap();
        }
        assert!(!below("new").exists());
    }

    #[test]
    fn reports_are_never_inputs() {
        let places = Places::new(Path::new("/p/graph.json"), None, None, Some("/c".into()));
        let places = places.unwrap().with_reports(
            Some("/p/s".into()),
            Some("/p/e".into()),
            Some("/p/r".into()),
        );
        let excluded = places.unwrap().excluded();
        for path in ["/p/distbuild-out", "/c", "/p/graph.json", "/p/s", "/p/e", "/p/r"] {
            assert!(excluded.contains(&PathBuf::from(path)), "{path}");
        }
    }
}
