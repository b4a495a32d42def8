//! What a coordinator that is started anew has to know of what its predecessor was doing: which builds run and
//! whose they are, how their attempts ended that no cache entry tells of, and which worker sessions go on.
//!
//! Only what nobody else holds is written down. A client sends its graph again and says what it has heard, a worker
//! says what it runs. So an assignment costs no write, and the end of an attempt one row in the transaction of its
//! result. The rows of a build go when it ends.

use bytes::Bytes;
use distbuild_proto::wire;
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{State, StateError, decode};

/// Rows that one transaction forgets.
const FORGOTTEN_AT_ONCE: u32 = 4096;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS start (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS session (
    store TEXT PRIMARY KEY,        -- store id: one session a store
    id INTEGER NOT NULL,
    secret BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS running_build (id TEXT PRIMARY KEY, secret BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempt_end (
    build TEXT NOT NULL,
    job INTEGER NOT NULL,          -- by its place in the submission
    finished BLOB NOT NULL,        -- AttemptFinished
    action BLOB NOT NULL,          -- ActionKey
    result BLOB,                   -- JobResult; NULL: it is in action_result
    holders TEXT NOT NULL,         -- store ids, one a line
    PRIMARY KEY (build, job)
) WITHOUT ROWID;
";

/// How the last attempt of a job ended, in a build that runs: it succeeded, failed or timed out.
#[derive(Clone, Debug)]
pub(crate) struct AttemptEnd {
    pub(crate) build_id: String,
    /// The job by its place in the submission.
    pub(crate) finished: wire::AttemptFinished,
    pub(crate) action_key: [u8; 32],
    /// To be written: none if the same transaction records it as the result of the action. Read: none if
    /// that is not known any more.
    pub(crate) result: Option<wire::JobResult>,
    /// Stores that hold the outputs.
    pub(crate) holders: Vec<String>,
}

/// A session of a worker that was connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownSession {
    pub(crate) store_name: String,
    pub(crate) id: u32,
    pub(crate) secret: Bytes,
}

impl State {
    /// Counts the starts of coordinators on this state, and gives the number of this one, from 1.
    pub(crate) async fn count_start(&self) -> Result<u64, StateError> {
        self.call(|connection| {
            let count: i64 = connection.query_row(
                "INSERT INTO start (one, count) VALUES (1, 1)
                 ON CONFLICT (one) DO UPDATE SET count = count + 1 RETURNING count",
                [],
                |row| row.get(0),
            )?;
            Ok(count as u64)
        })
        .await
    }

    /// A worker's session has begun; an earlier one on its store has ended.
    pub(crate) async fn record_session(&self, session: KnownSession) -> Result<(), StateError> {
        self.call(move |connection| {
            let KnownSession { store_name, id, secret } = session;
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO session (store, id, secret) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![store_name, id, &secret[..]])?;
            Ok(())
        })
        .await
    }

    /// A worker's session has ended.
    pub(crate) async fn forget_session(&self, id: u32) -> Result<(), StateError> {
        self.call(move |connection| {
            connection.prepare_cached("DELETE FROM session WHERE id = ?1")?.execute([id])?;
            Ok(())
        })
        .await
    }

    /// The sessions that have begun and not ended.
    pub(crate) async fn sessions(&self) -> Result<Vec<KnownSession>, StateError> {
        self.call(|connection| {
            let session = |row: &rusqlite::Row<'_>| {
                let secret: Vec<u8> = row.get(2)?;
                let (store_name, id) = (row.get(0)?, row.get(1)?);
                Ok(KnownSession { store_name, id, secret: secret.into() })
            };
            connection
                .prepare_cached("SELECT store, id, secret FROM session")?
                .query_map([], session)?
                .collect()
        })
        .await
    }

    /// A build begins whose client comes back if it has to.
    pub(crate) async fn begin_build(&self, id: String, secret: Bytes) -> Result<(), StateError> {
        self.call(move |connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO running_build (id, secret) VALUES (?1, ?2)",
                )?
                .execute(params![id, &secret[..]])?;
            Ok(())
        })
        .await
    }

    /// The secret of a build that has begun and not ended, and how its attempts ended.
    pub(crate) async fn running_build(
        &self,
        id: String,
    ) -> Result<Option<(Bytes, Vec<AttemptEnd>)>, StateError> {
        self.call(move |connection| {
            let secret: Option<Vec<u8>> = connection
                .prepare_cached("SELECT secret FROM running_build WHERE id = ?1")?
                .query_row([&id], |row| row.get(0))
                .optional()?;
            let Some(secret) = secret else { return Ok(None) };
            let ends = connection
                .prepare_cached(
                    "SELECT e.finished, e.action, ifnull(e.result, a.result),
                            CASE WHEN e.result IS NULL THEN ifnull(a.holders, '') ELSE e.holders END
                     FROM attempt_end e LEFT JOIN action_result a ON a.key = e.action
                     WHERE e.build = ?1",
                )?
                .query_map([&id], |row| attempt_end(&id, row))?
                .collect::<Result<_, _>>()?;
            Ok(Some((secret.into(), ends)))
        })
        .await
    }

    /// The builds that have begun and not ended.
    pub(crate) async fn running_builds(&self) -> Result<Vec<String>, StateError> {
        self.call(|connection| {
            connection
                .prepare_cached("SELECT id FROM running_build")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
        .await
    }

    /// A build will not go on: it counts as ended by an infrastructure error.
    pub(crate) async fn give_build_up(&self, id: String) -> Result<(), StateError> {
        let given_up = id.clone();
        self.call(move |connection| {
            let summary: Option<Vec<u8>> = connection
                .prepare_cached("SELECT summary FROM build WHERE id = ?1")?
                .query_row([&given_up], |row| row.get(0))
                .optional()?;
            let Some(summary) = summary else { return Ok(()) };
            let mut summary: wire::BuildSummary = decode(&summary)?;
            (summary.finished, summary.outcome) = (true, wire::Outcome::InfraError.into());
            connection
                .prepare_cached("UPDATE build SET summary = ?2 WHERE id = ?1")?
                .execute(params![given_up, summary.encode_to_vec()])?;
            Ok(())
        })
        .await?;
        self.forget_build(id).await
    }

    /// A build has ended: forgets what only its going on needed.
    pub(crate) async fn forget_build(&self, id: String) -> Result<(), StateError> {
        loop {
            let id = id.clone();
            let some = self.call(move |connection| {
                connection
                    .prepare_cached("DELETE FROM running_build WHERE id = ?1")?
                    .execute([&id])?;
                connection
                    .prepare_cached(
                        "DELETE FROM attempt_end WHERE build = ?1 AND job IN
                         (SELECT job FROM attempt_end WHERE build = ?1 LIMIT ?2)",
                    )?
                    .execute(params![id, FORGOTTEN_AT_ONCE])
            });
            if some.await? < FORGOTTEN_AT_ONCE as usize {
                return Ok(());
            }
        }
    }
}

/// Writes the end of an attempt down.
pub(super) fn record(connection: &Connection, end: &AttemptEnd) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO attempt_end (build, job, finished, action, result, holders)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            end.build_id,
            end.finished.job,
            end.finished.encode_to_vec(),
            &end.action_key[..],
            end.result.as_ref().map(wire::JobResult::encode_to_vec),
            end.holders.join("\n"),
        ])?;
    Ok(())
}

fn attempt_end(build_id: &str, row: &rusqlite::Row<'_>) -> rusqlite::Result<AttemptEnd> {
    let finished: Vec<u8> = row.get(0)?;
    let result: Option<Vec<u8>> = row.get(2)?;
    let holders: String = row.get(3)?;
    Ok(AttemptEnd {
        build_id: build_id.to_owned(),
        finished: decode(&finished)?,
        action_key: row.get(1)?,
        result: result.map(|result| decode(&result)).transpose()?,
        holders: holders.lines().map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Recorded;
    use super::*;

    fn state(directory: &tempfile::TempDir) -> State {
        State::open(&directory.path().join("state.db")).unwrap()
    }

    fn end(job: u32, result: Option<wire::JobResult>) -> AttemptEnd {
        AttemptEnd {
            build_id: "b".to_owned(),
            finished: wire::AttemptFinished { job, number: 2, ..Default::default() },
            action_key: [1; 32],
            result,
            holders: vec!["own".to_owned()],
        }
    }

    #[tokio::test]
    async fn starts_are_counted_over_the_life_of_the_state() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(state(&directory).count_start().await.unwrap(), 1);
        assert_eq!(state(&directory).count_start().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_session_is_known_until_it_ends_or_a_newer_one_begins_on_its_store() {
        let directory = tempfile::tempdir().unwrap();
        let session = |id| KnownSession {
            store_name: "s".to_owned(),
            id,
            secret: Bytes::from_static(b"secret"),
        };
        let before = state(&directory);
        before.record_session(session(1)).await.unwrap();
        before.record_session(session(2)).await.unwrap();
        before.forget_session(1).await.unwrap();
        let state = state(&directory);
        assert_eq!(state.sessions().await.unwrap(), [session(2)]);
        state.forget_session(2).await.unwrap();
        assert_eq!(state.sessions().await.unwrap(), []);
    }

    #[tokio::test]
    async fn the_ends_of_a_running_build_are_known_with_their_results_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let before = state(&directory);
        before.begin_build("b".to_owned(), Bytes::from_static(b"secret")).await.unwrap();
        let result = |exit_code| wire::JobResult { exit_code, ..Default::default() };
        let recorded =
            Recorded { action_key: [1; 32], result: result(0), holders: vec!["cached".to_owned()] };
        let ends = vec![end(0, None), end(1, Some(result(7)))];
        before.record_all(vec![recorded], vec![], vec![], ends, 1).await.unwrap();
        let state = state(&directory);
        let (secret, ends) = state.running_build("b".to_owned()).await.unwrap().unwrap();
        assert_eq!(secret, "secret");
        let found: Vec<_> = ends
            .iter()
            .map(|end| (end.finished.job, end.result.clone().unwrap().exit_code, &*end.holders[0]))
            .collect();
        assert_eq!(found, [(0, 0, "cached"), (1, 7, "own")]);
        state.forget_build("b".to_owned()).await.unwrap();
        assert!(state.running_build("b".to_owned()).await.unwrap().is_none());
        assert!(state.running_builds().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_build_that_does_not_go_on_is_listed_as_ended() {
        let directory = tempfile::tempdir().unwrap();
        let state = state(&directory);
        let summary = wire::BuildSummary { build_id: "b".to_owned(), ..Default::default() };
        state.record_build(summary, Bytes::new()).await.unwrap();
        state.begin_build("b".to_owned(), Bytes::new()).await.unwrap();
        state.give_build_up("b".to_owned()).await.unwrap();
        let listed = state.builds(1).await.unwrap().remove(0).summary.unwrap();
        assert!(listed.finished && listed.outcome() == wire::Outcome::InfraError, "{listed:?}");
        assert!(state.running_builds().await.unwrap().is_empty());
    }
}
