//! What people look at: builds, the newest results, and the pools that were ever seen.

use bytes::Bytes;
use distbuild_proto::wire;
use prost::Message as _;
use rusqlite::{OptionalExtension as _, params};

use super::{State, StateError, decode};

impl State {
    /// Remembers a pool: the properties of a worker, `key=value` a line.
    pub(crate) async fn remember_pool(
        &self,
        properties: String,
        now_ms: u64,
    ) -> Result<(), StateError> {
        self.call(move |connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO pool (properties, seen_ms) VALUES (?1, ?2)",
                )?
                .execute(params![properties, now_ms as i64])?;
            Ok(())
        })
        .await
    }

    /// Every pool that was ever remembered, latest seen last.
    pub(crate) async fn pools(&self) -> Result<Vec<String>, StateError> {
        self.call(|connection| {
            connection
                .prepare_cached("SELECT properties FROM pool ORDER BY seen_ms")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
        .await
    }

    /// Writes a build down, anew or again.
    pub(crate) async fn record_build(
        &self,
        summary: wire::BuildSummary,
        job_ids: Bytes,
    ) -> Result<(), StateError> {
        self.call(move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO build (id, summary, job_ids, started_ms) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (id) DO UPDATE SET summary = excluded.summary",
                )?
                .execute(params![
                    summary.build_id,
                    summary.encode_to_vec(),
                    &job_ids[..],
                    summary.started_ms as i64
                ])?;
            Ok(())
        })
        .await
    }

    /// The newest builds, newest first.
    pub(crate) async fn builds(&self, limit: u32) -> Result<Vec<wire::FinishedBuild>, StateError> {
        self.call(move |connection| {
            connection
                .prepare_cached(
                    "SELECT summary, job_ids FROM build ORDER BY started_ms DESC LIMIT ?1",
                )?
                .query_map([limit], finished_build)?
                .collect()
        })
        .await
    }

    /// The newest result under each public job id, newest first.
    pub(crate) async fn results(&self, limit: u32) -> Result<Vec<wire::NamedResult>, StateError> {
        self.call(move |connection| {
            connection
                .prepare_cached(
                    "SELECT n.job_id, n.name, n.input_root, a.result FROM named_result n
                     JOIN action_result a ON a.key = n.action
                     ORDER BY n.finished_ms DESC LIMIT ?1",
                )?
                .query_map([limit], named_result)?
                .collect()
        })
        .await
    }

    /// The newest result under a public job id.
    pub(crate) async fn result(
        &self,
        job_id: Vec<u8>,
    ) -> Result<Option<wire::NamedResult>, StateError> {
        self.call(move |connection| {
            connection
                .prepare_cached(
                    "SELECT n.job_id, n.name, n.input_root, a.result FROM named_result n
                     JOIN action_result a ON a.key = n.action WHERE n.job_id = ?1",
                )?
                .query_row([job_id], named_result)
                .optional()
        })
        .await
    }
}

pub(crate) fn named_result(row: &rusqlite::Row<'_>) -> rusqlite::Result<wire::NamedResult> {
    let job_id: Vec<u8> = row.get(0)?;
    let input_root: Option<Vec<u8>> = row.get(2)?;
    let result: Vec<u8> = row.get(3)?;
    Ok(wire::NamedResult {
        job_id: job_id.into(),
        name: row.get(1)?,
        input_root: input_root.map(|root| decode(&root)).transpose()?,
        result: Some(decode(&result)?),
    })
}

pub(crate) fn finished_build(row: &rusqlite::Row<'_>) -> rusqlite::Result<wire::FinishedBuild> {
    let summary: Vec<u8> = row.get(0)?;
    let ids: Vec<u8> = row.get(1)?;
    let job_ids = ids.chunks_exact(20).map(bytes::Bytes::copy_from_slice).collect();
    Ok(wire::FinishedBuild { summary: Some(decode(&summary)?), job_ids })
}
