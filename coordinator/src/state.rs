//! What survives a restart: results, what their commands looked at, known worker pools, finished builds. One
//! SQLite file.
//!
//! A thread of its own owns the connection. Requests that wait together run in one transaction and
//! are answered after its commit (group commit), so an answer means: recorded. Write-ahead logging
//! makes the file safe for several processes, such as two embedded coordinators at once. A commit
//! survives the death of any process; the last ones before a power failure may be lost, and then cost
//! a rebuild, since a result is only a claim that is checked before it is used.

mod api_results;
pub(crate) mod explained;
mod listing;
mod records;
mod results;
mod running;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use distbuild_proto::{Digest, wire};
use prost::Message;
use rusqlite::Connection;
use tokio::sync::oneshot;

pub(crate) use api_results::ApiResultKey;
pub(crate) use listing::{finished_build, named_result};
pub(crate) use records::{Candidate, Looked};
pub(crate) use running::{AttemptEnd, KnownSession};

/// Requests that wait for the database thread at most; beyond it, callers wait.
const WAITING_REQUESTS: usize = 4096;
/// Requests in one transaction.
const REQUESTS_PER_COMMIT: usize = 512;
/// How long a transaction waits for another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Written to `PRAGMA user_version`; a file of another version is refused.
pub(crate) const SCHEMA_VERSION: i64 = 2;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS action_result (
    key BLOB PRIMARY KEY,          -- ActionKey
    result BLOB NOT NULL,          -- JobResult
    output_root BLOB,              -- wire Digest, to merge holders
    holders TEXT NOT NULL,         -- store ids, one a line
    finished_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS action_by_output ON action_result (output_root);
CREATE TABLE IF NOT EXISTS job_result (
    key BLOB PRIMARY KEY,          -- JobKey
    action BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS named_result (
    job_id BLOB PRIMARY KEY,       -- the public id
    name TEXT NOT NULL,
    input_root BLOB,
    action BLOB NOT NULL,
    finished_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS named_by_time ON named_result (finished_ms);
CREATE TABLE IF NOT EXISTS pool (properties TEXT PRIMARY KEY, seen_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS build (
    id TEXT PRIMARY KEY,
    summary BLOB NOT NULL,         -- BuildSummary
    job_ids BLOB NOT NULL,         -- 20 bytes each
    started_ms INTEGER NOT NULL
);
";

type Reply = Box<dyn FnOnce(bool) + Send>;
type Request = Box<dyn FnOnce(&Connection) -> Reply + Send>;

/// A handle to the database thread; clones share it. The thread ends with the last handle.
#[derive(Clone, Debug)]
pub(crate) struct State {
    requests: mpsc::SyncSender<Request>,
}

/// A result as the cache holds it.
#[derive(Clone, Debug)]
pub(crate) struct CachedResult {
    pub(crate) result: wire::JobResult,
    /// Stores that held the outputs when this was written.
    pub(crate) holders: Vec<String>,
}

/// A successful execution, to be recorded.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) action_key: [u8; 32],
    pub(crate) result: wire::JobResult,
    /// Stores that hold the outputs.
    pub(crate) holders: Vec<String>,
}

/// Ties a job to the action that it came down to.
#[derive(Clone, Debug)]
pub(crate) struct JobLink {
    /// None for a job that may not be found by its key.
    pub(crate) job_key: Option<[u8; 32]>,
    pub(crate) action_key: [u8; 32],
    pub(crate) job_id: [u8; 20],
    pub(crate) name: String,
    pub(crate) input_root: Digest,
}

impl State {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or was written by another version.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let connection = connect(path).map_err(|error| error.at(path))?;
        let (requests, receiver) = mpsc::sync_channel(WAITING_REQUESTS);
        std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || serve(&connection, &receiver))
            .map_err(StateError::Thread)?;
        Ok(Self { requests })
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StateError> {
        let (reply, answer) = oneshot::channel();
        let request: Request = Box::new(move |connection| {
            let result = work(connection);
            Box::new(move |committed| {
                let result = match result {
                    Ok(_) if !committed => Err(StateError::NotCommitted),
                    other => other.map_err(StateError::from),
                };
                let _ = reply.send(result);
            })
        });
        self.submit(request).await?;
        answer.await.map_err(|_| StateError::Stopped)?
    }

    /// Returns when everything that was asked for before is committed.
    pub(crate) async fn settle(&self) -> Result<(), StateError> {
        self.call(|_| Ok(())).await
    }

    async fn submit(&self, request: Request) -> Result<(), StateError> {
        let request = match self.requests.try_send(request) {
            Ok(()) => return Ok(()),
            Err(mpsc::TrySendError::Disconnected(_)) => return Err(StateError::Stopped),
            Err(mpsc::TrySendError::Full(request)) => request,
        };
        let requests = self.requests.clone();
        tokio::task::spawn_blocking(move || requests.send(request))
            .await
            .map_err(|_| StateError::Stopped)?
            .map_err(|_| StateError::Stopped)
    }

    /// Stores that held an output tree when it was recorded, for one that no running build relies on.
    pub(crate) async fn holders_of(&self, output_root: Digest) -> Result<Vec<String>, StateError> {
        self.call(move |connection| {
            let root = wire::Digest::from(output_root).encode_to_vec();
            let mut statement = connection.prepare_cached(
                "SELECT holders FROM action_result WHERE output_root = ?1 LIMIT 8",
            )?;
            let lists: Vec<String> =
                statement.query_map([root], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(lists.iter().flat_map(|list| list.lines()).map(str::to_owned).collect())
        })
        .await
    }

    /// Records a result and the jobs that it answers.
    pub(crate) async fn record(
        &self,
        recorded: Option<Recorded>,
        links: Vec<JobLink>,
        now_ms: u64,
    ) -> Result<(), StateError> {
        let recorded = recorded.into_iter().collect();
        self.record_all(recorded, links, Vec::new(), Vec::new(), now_ms).await
    }

    /// Records results, the jobs that they or earlier ones answer, what their commands looked at, and how attempts of
    /// running builds ended: all of it or nothing. Of a result that takes the place of another run's, no earlier record is left.
    pub(crate) async fn record_all(
        &self,
        recorded: Vec<Recorded>,
        links: Vec<JobLink>,
        looked: Vec<Looked>,
        ends: Vec<AttemptEnd>,
        now_ms: u64,
    ) -> Result<(), StateError> {
        self.call(move |connection| {
            atomically(connection, || {
                for recorded in &recorded {
                    results::record_result(connection, recorded, now_ms)?;
                    records::forget(connection, &recorded.action_key)?;
                }
                for link in &links {
                    results::record_link(connection, link, now_ms)?;
                }
                looked.iter().try_for_each(|looked| records::add(connection, looked))?;
                ends.iter().try_for_each(|end| running::record(connection, end))
            })
        })
        .await
    }

    /// What the runs of these actions looked at, encoded; those of which nothing is known are left out.
    pub(crate) async fn records_of(
        &self,
        actions: Vec<[u8; 32]>,
    ) -> Result<Vec<([u8; 32], Vec<u8>)>, StateError> {
        self.call(move |connection| {
            let mut found = Vec::new();
            for action in actions {
                let record = records::of_action(connection, &action)?;
                found.extend(record.map(|record| (action, record)));
            }
            Ok(found)
        })
        .await
    }

    /// The newest access record of each command, encoded.
    pub(crate) async fn newest_records(
        &self,
        commands: Vec<[u8; 32]>,
    ) -> Result<Vec<Option<Vec<u8>>>, StateError> {
        self.call(move |connection| {
            commands.iter().map(|command| records::newest(connection, command)).collect()
        })
        .await
    }

    /// For each command with its declared id, the runs of which the whole record is known, newest first.
    pub(crate) async fn candidates(
        &self,
        commands: Vec<([u8; 32], Option<[u8; 20]>)>,
    ) -> Result<Vec<Vec<Candidate>>, StateError> {
        self.call(move |connection| {
            commands
                .iter()
                .map(|(command, id)| records::candidates(connection, command, id.as_ref()))
                .collect()
        })
        .await
    }

    /// Writes down how it was decided whether jobs run.
    pub(crate) async fn explain(
        &self,
        explanations: Vec<wire::Explanation>,
    ) -> Result<(), StateError> {
        self.call(move |connection| explained::add(connection, &explanations)).await
    }

    /// How it was decided whether a job ran in a build, or in the newest that had it.
    pub(crate) async fn explanation(
        &self,
        job: String,
        build_id: String,
    ) -> Result<Option<wire::Explanation>, StateError> {
        self.call(move |connection| explained::find(connection, &job, &build_id)).await
    }
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "cache_size", -64 * 1024)?;
    connection.set_prepared_statement_cache_capacity(32);
    let found = version(&connection)?;
    if found != 0 && found != SCHEMA_VERSION {
        return Err(OpenError::Version(found));
    }
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(records::SCHEMA)?;
    connection.execute_batch(running::SCHEMA)?;
    connection.execute_batch(api_results::SCHEMA)?;
    connection.execute_batch(explained::SCHEMA)?;
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    Ok(connection)
}

pub(crate) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn serve(connection: &Connection, requests: &mpsc::Receiver<Request>) {
    while let Ok(first) = requests.recv() {
        let begun = connection.execute_batch("BEGIN IMMEDIATE");
        if let Err(error) = &begun {
            tracing::error!(%error, "failed to begin a transaction");
        }
        let mut replies = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            replies.push(request(connection));
            next =
                (replies.len() < REQUESTS_PER_COMMIT).then(|| requests.try_recv().ok()).flatten();
        }
        let committed = begun.is_ok()
            && connection
                .execute_batch("COMMIT")
                .inspect_err(|error| {
                    tracing::error!(%error, "failed to commit");
                    let _ = connection.execute_batch("ROLLBACK");
                })
                .is_ok();
        for reply in replies {
            reply(committed);
        }
    }
}

/// Writes that are all in the transaction or none, whatever else is in it.
fn atomically(
    connection: &Connection,
    work: impl FnOnce() -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let run = |sql| connection.prepare_cached(sql)?.execute([]);
    run("SAVEPOINT request")?;
    let done = work();
    if done.is_err() {
        run("ROLLBACK TO request")?;
    }
    run("RELEASE request")?;
    done
}

fn decode<M: Message + Default>(bytes: &[u8]) -> rusqlite::Result<M> {
    M::decode(bytes).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(error))
    })
}

/// Why a file is not opened as a state database.
#[derive(Debug)]
pub(crate) enum OpenError {
    Database(rusqlite::Error),
    Version(i64),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl OpenError {
    pub(crate) fn at(self, path: &Path) -> StateError {
        let path = path.to_owned();
        match self {
            Self::Database(source) => StateError::Open { path, source },
            Self::Version(found) => StateError::Version { path, found },
        }
    }
}

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be opened.
    #[error("failed to open the state database {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// SQLite failed.
    #[error("the state database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// A file of another version of distbuild.
    #[error(
        "the state database {} has version {found}, this program writes version {SCHEMA_VERSION}; \
         use another --state directory or the program that wrote it",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in it.
        found: i64,
    },
    /// The transaction was not committed; see the log.
    #[error("the state database did not commit")]
    NotCommitted,
    /// The database thread has ended.
    #[error("the state database is closed")]
    Stopped,
    /// The database thread did not start.
    #[error("failed to start the thread of the state database: {0}")]
    Thread(std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use distbuild_proto::DigestFunction;

    fn recorded(key: u8, holder: &str) -> Recorded {
        let root = DigestFunction::Blake3.digest(b"");
        let result = wire::JobResult { output_root: Some(root.into()), ..Default::default() };
        Recorded { action_key: [key; 32], result, holders: vec![holder.to_owned()] }
    }

    fn link(key: u8) -> JobLink {
        JobLink {
            job_key: Some([key; 32]),
            action_key: [key; 32],
            job_id: [key; 20],
            name: format!("job {key}"),
            input_root: DigestFunction::Blake3.digest(b""),
        }
    }

    #[tokio::test]
    async fn a_recorded_result_is_found_by_job_and_by_action_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let state = State::open(&path).unwrap();
        state.record(Some(recorded(1, "a")), vec![link(1)], 5).await.unwrap();
        drop(state);
        let state = State::open(&path).unwrap();
        let jobs = state.jobs(vec![Some([1; 32]), Some([2; 32]), None]).await.unwrap();
        assert_eq!(jobs[0].as_ref().unwrap().holders, ["a"]);
        assert!(jobs[1].is_none() && jobs[2].is_none());
        assert!(state.actions(vec![[1; 32]]).await.unwrap()[0].is_some());
        assert_eq!(state.result(vec![1; 20]).await.unwrap().unwrap().name, "job 1");
    }

    #[tokio::test]
    async fn a_result_and_what_its_run_looked_at_take_the_place_of_another_runs_together() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state.db")).unwrap();
        let looked = |record: &'static [u8]| Looked {
            command: [9; 32],
            action: [1; 32],
            input_root: DigestFunction::Blake3.digest(b""),
            declared_id: None,
            complete: true,
            record: Bytes::from_static(record),
        };
        let record = |looked| state.record_all(vec![recorded(1, "a")], vec![], looked, vec![], 5);
        record(vec![looked(b"first")]).await.unwrap();
        record(vec![looked(b"second")]).await.unwrap();
        assert_eq!(state.records_of(vec![[1; 32]]).await.unwrap(), [([1; 32], b"second".to_vec())]);
        record(vec![]).await.unwrap();
        assert!(state.records_of(vec![[1; 32]]).await.unwrap().is_empty());
        let candidates = state.candidates(vec![([9; 32], None)]).await.unwrap();
        assert!(candidates[0].is_empty(), "that run is nobody's result any more");
    }

    #[tokio::test]
    async fn holders_of_equal_outputs_are_merged_and_of_others_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state.db")).unwrap();
        state.record(Some(recorded(1, "a")), vec![], 5).await.unwrap();
        state.record(Some(recorded(1, "b")), vec![], 6).await.unwrap();
        let holders = |found: Vec<Option<CachedResult>>| found[0].clone().unwrap().holders;
        assert_eq!(holders(state.actions(vec![[1; 32]]).await.unwrap()), ["b", "a"]);
        let mut other = recorded(1, "c");
        other.result.output_root = Some(DigestFunction::Blake3.digest(b"other").into());
        state.record(Some(other), vec![], 7).await.unwrap();
        assert_eq!(holders(state.actions(vec![[1; 32]]).await.unwrap()), ["c"]);
    }

    #[tokio::test]
    async fn two_processes_may_use_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let (one, two) = (State::open(&path).unwrap(), State::open(&path).unwrap());
        one.record(Some(recorded(1, "a")), vec![link(1)], 5).await.unwrap();
        two.record(Some(recorded(2, "b")), vec![link(2)], 6).await.unwrap();
        assert_eq!(one.results(10).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_file_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = State::open(&path).unwrap_err();
        assert!(matches!(error, StateError::Version { found: 99, .. }), "{error}");
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    }

    #[test]
    fn a_database_that_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        std::fs::create_dir(&path).unwrap();
        let error = State::open(&path).unwrap_err();
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    }
}
