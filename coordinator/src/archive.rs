//! `Archive`: what a coordinator wrote down, for who only reads, whether it runs or not.
//!
//! It reads the state database of [`crate::state`], never writes to it, and holds no transaction between
//! calls, so a coordinator that writes meanwhile is neither stopped nor slowed down. Calls block.

use std::path::Path;
use std::time::Duration;

use distbuild_proto::wire;
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use crate::state::{
    OpenError, SCHEMA_VERSION, StateError, explained, finished_build, named_result, version,
};

/// How long a call waits for a checkpoint of who writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A state database, read only. Shared by threads, which take turns.
#[derive(Debug)]
pub struct Archive {
    connection: Mutex<Connection>,
}

impl Archive {
    /// Where the database lies in the state directory of a coordinator.
    pub const FILE: &'static str = "state.db";
    /// Where the coordinator's own blobs lie, likewise.
    pub const STORE: &'static str = "coordinator-store";

    /// Opens the database in a coordinator's state directory.
    ///
    /// # Errors
    /// There is none, it cannot be read, or another version of distbuild wrote it.
    pub fn open(state: &Path) -> Result<Self, StateError> {
        let path = state.join(Self::FILE);
        let connection = connect(&path).map_err(|error| error.at(&path))?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// The newest result under the public id of a job.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn result(&self, job_id: &[u8]) -> Result<Option<wire::NamedResult>, StateError> {
        let connection = self.connection.lock();
        let mut statement = connection.prepare_cached(
            "SELECT n.job_id, n.name, n.input_root, a.result FROM named_result n
             JOIN action_result a ON a.key = n.action WHERE n.job_id = ?1",
        )?;
        Ok(statement.query_row([job_id], named_result).optional()?)
    }

    /// The public ids of the jobs that have results, newest first, 20 bytes each.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn job_ids(&self, limit: u32) -> Result<Vec<Vec<u8>>, StateError> {
        self.column("SELECT job_id FROM named_result ORDER BY finished_ms DESC LIMIT ?1", limit)
    }

    /// The name that a job had when it last got a result.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn job_name(&self, job_id: &[u8]) -> Result<Option<String>, StateError> {
        let connection = self.connection.lock();
        let mut statement =
            connection.prepare_cached("SELECT name FROM named_result WHERE job_id = ?1")?;
        Ok(statement.query_row([job_id], |row| row.get(0)).optional()?)
    }

    /// A build that runs or has run, as it was when that was last written down.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn build(&self, build_id: &str) -> Result<Option<wire::FinishedBuild>, StateError> {
        let connection = self.connection.lock();
        let mut statement =
            connection.prepare_cached("SELECT summary, job_ids FROM build WHERE id = ?1")?;
        Ok(statement.query_row([build_id], finished_build).optional()?)
    }

    /// How it was decided whether a job ran in a build; in the newest that had it if `build_id` is empty.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn explanation(
        &self,
        job: &str,
        build_id: &str,
    ) -> Result<Option<wire::Explanation>, StateError> {
        Ok(explained::find(&self.connection.lock(), job, build_id)?)
    }

    /// The ids of the builds, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn build_ids(&self, limit: u32) -> Result<Vec<String>, StateError> {
        self.column("SELECT id FROM build ORDER BY started_ms DESC LIMIT ?1", limit)
    }

    fn column<T: rusqlite::types::FromSql>(
        &self,
        query: &str,
        limit: u32,
    ) -> Result<Vec<T>, StateError> {
        let connection = self.connection.lock();
        let mut statement = connection.prepare_cached(query)?;
        let rows = statement.query_map([limit], |row: &Row<'_>| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    match version(&connection)? {
        SCHEMA_VERSION => Ok(connection),
        found => Err(OpenError::Version(found)),
    }
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;

    use super::*;
    use crate::state::{JobLink, Recorded, State};

    fn link(key: u8) -> JobLink {
        JobLink {
            job_key: None,
            action_key: [key; 32],
            job_id: [key; 20],
            name: format!("job {key}"),
            input_root: DigestFunction::Blake3.digest(b"inputs"),
        }
    }

    fn recorded(key: u8) -> Recorded {
        let result = wire::JobResult { worker: format!("w{key}"), ..Default::default() };
        Recorded { action_key: [key; 32], result, holders: vec!["a".to_owned()] }
    }

    fn build(id: &str, started_ms: u64) -> wire::BuildSummary {
        wire::BuildSummary { build_id: id.to_owned(), started_ms, ..Default::default() }
    }

    #[tokio::test]
    async fn an_archive_sees_what_a_running_coordinator_records_after_it_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join(Archive::FILE)).unwrap();
        let archive = Archive::open(dir.path()).unwrap();
        assert!(archive.result(&[1; 20]).unwrap().is_none());
        state.record(Some(recorded(1)), vec![link(1)], 5).await.unwrap();
        state.record(Some(recorded(2)), vec![link(2)], 6).await.unwrap();
        state.record_build(build("old", 1), [[1; 20], [3; 20]].concat().into()).await.unwrap();
        state.record_build(build("new", 2), Default::default()).await.unwrap();
        let found = archive.result(&[1; 20]).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.result.unwrap().worker.as_str()), ("job 1", "w1"));
        assert_eq!(archive.job_ids(10).unwrap(), [[2; 20], [1; 20]]);
        assert_eq!(archive.job_ids(1).unwrap(), [[2; 20]]);
        assert_eq!(archive.job_name(&[2; 20]).unwrap().as_deref(), Some("job 2"));
        assert_eq!(archive.build_ids(10).unwrap(), ["new", "old"]);
        assert_eq!(archive.build("old").unwrap().unwrap().job_ids.len(), 2);
        assert!(archive.build("none").unwrap().is_none());
    }

    #[tokio::test]
    async fn an_archive_needs_no_running_coordinator_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join(Archive::FILE)).unwrap();
        state.record(Some(recorded(1)), vec![link(1)], 5).await.unwrap();
        drop(state);
        let archive = Archive::open(dir.path()).unwrap();
        assert_eq!(archive.job_ids(10).unwrap().len(), 1);
        let written = archive.connection.lock().execute("DELETE FROM named_result", []);
        assert!(written.is_err());
    }

    #[test]
    fn a_directory_without_a_database_is_refused_and_gets_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Archive::open(dir.path()).is_err());
        assert!(!dir.path().join(Archive::FILE).exists());
    }
}
