//! Results: of actions by their keys, and of the jobs that came down to them.

use distbuild_proto::wire;
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{CachedResult, JobLink, Recorded, State, StateError};

/// Stores that are remembered as holders of one output tree.
const MAX_HOLDERS: usize = 8;

impl State {
    /// The results of jobs by their keys, in order.
    pub(crate) async fn jobs(
        &self,
        keys: Vec<Option<[u8; 32]>>,
    ) -> Result<Vec<Option<CachedResult>>, StateError> {
        self.call(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT a.result, a.holders FROM job_result j
                 JOIN action_result a ON a.key = j.action WHERE j.key = ?1",
            )?;
            keys.iter().map(|key| look_up(&mut statement, key.as_ref())).collect()
        })
        .await
    }

    /// The results of actions by their keys, in order.
    pub(crate) async fn actions(
        &self,
        keys: Vec<[u8; 32]>,
    ) -> Result<Vec<Option<CachedResult>>, StateError> {
        self.call(move |connection| {
            let mut statement = connection
                .prepare_cached("SELECT result, holders FROM action_result WHERE key = ?1")?;
            keys.iter().map(|key| look_up(&mut statement, Some(key))).collect()
        })
        .await
    }
}

/// An entry that cannot be decoded is a miss: it will be written anew.
fn look_up(
    statement: &mut rusqlite::CachedStatement<'_>,
    key: Option<&[u8; 32]>,
) -> rusqlite::Result<Option<CachedResult>> {
    let Some(key) = key else { return Ok(None) };
    let found = statement
        .query_row([&key[..]], |row| {
            let result: Vec<u8> = row.get(0)?;
            let holders: String = row.get(1)?;
            Ok((result, holders))
        })
        .optional()?;
    Ok(found.and_then(|(result, holders)| {
        Some(CachedResult {
            result: wire::JobResult::decode(&result[..]).ok()?,
            holders: holders.lines().map(str::to_owned).collect(),
        })
    }))
}

pub(super) fn record_result(
    connection: &Connection,
    recorded: &Recorded,
    now_ms: u64,
) -> rusqlite::Result<()> {
    let root = recorded.result.output_root.as_ref().map(wire::Digest::encode_to_vec);
    let earlier: Option<(Option<Vec<u8>>, String)> = connection
        .prepare_cached("SELECT output_root, holders FROM action_result WHERE key = ?1")?
        .query_row([&recorded.action_key[..]], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let mut holders: Vec<_> =
        recorded.holders.iter().map(String::as_str).take(MAX_HOLDERS).collect();
    if let Some((earlier_root, earlier_holders)) = &earlier
        && *earlier_root == root
    {
        let room = MAX_HOLDERS - holders.len();
        let others: Vec<_> =
            earlier_holders.lines().filter(|holder| !holders.contains(holder)).take(room).collect();
        holders.extend(others);
    }
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO action_result (key, result, output_root, holders, finished_ms)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            &recorded.action_key[..],
            recorded.result.encode_to_vec(),
            root,
            holders.join("\n"),
            now_ms as i64
        ])?;
    Ok(())
}

pub(super) fn record_link(
    connection: &Connection,
    link: &JobLink,
    now_ms: u64,
) -> rusqlite::Result<()> {
    if let Some(job_key) = &link.job_key {
        connection
            .prepare_cached("INSERT OR REPLACE INTO job_result (key, action) VALUES (?1, ?2)")?
            .execute(params![&job_key[..], &link.action_key[..]])?;
    }
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO named_result (job_id, name, input_root, action, finished_ms)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            &link.job_id[..],
            link.name,
            wire::Digest::from(link.input_root).encode_to_vec(),
            &link.action_key[..],
            now_ms as i64
        ])?;
    Ok(())
}
