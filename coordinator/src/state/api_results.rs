//! Results of actions as the Remote Execution API keeps them: by instance and action digest.
//!
//! A result is a claim like any other: whoever gives it to a client sees first that what it names is there.
//! Those used last stay, within [`MAX_BYTES`].

use std::sync::Arc;

use distbuild_proto::Digest;
use rusqlite::{Connection, OptionalExtension, params};

use super::{State, StateError};

/// Bytes of all results.
const MAX_BYTES: i64 = 1 << 30;
/// Results that go at once when there are too many.
const PRUNED_AT_ONCE: i64 = 256;
/// How exact the time of the last use is: a result that is used all the time is not written all the time.
const USE_INTERVAL_MS: u64 = 3_600_000;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS api_result (
    instance TEXT NOT NULL,
    function INTEGER NOT NULL,     -- number of the digest function
    hash BLOB NOT NULL,            -- of the Action
    size INTEGER NOT NULL,
    result BLOB NOT NULL,          -- ActionResult
    finished_ms INTEGER NOT NULL,
    used_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, function, hash, size)
);
CREATE INDEX IF NOT EXISTS api_result_by_use ON api_result (used_ms);
CREATE TABLE IF NOT EXISTS api_result_total (bytes INTEGER NOT NULL);
INSERT INTO api_result_total SELECT 0 WHERE NOT EXISTS (SELECT * FROM api_result_total);
";

/// What a result is kept under. The digest function is part of the digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ApiResultKey {
    /// The name of the instance.
    pub(crate) instance: Arc<str>,
    /// The digest of the encoded `Action`.
    pub(crate) action: Digest,
}

/// A result that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiResult {
    /// The encoded `ActionResult`.
    pub(crate) result: Vec<u8>,
    /// When it was recorded, in milliseconds since 1970.
    pub(crate) finished_ms: u64,
}

impl State {
    /// The result of an action. Counts as a use.
    pub(crate) async fn api_result(
        &self,
        key: ApiResultKey,
        now_ms: u64,
    ) -> Result<Option<ApiResult>, StateError> {
        self.call(move |connection| find(connection, &key, now_ms)).await
    }

    /// Records the result of an action, in place of an earlier one.
    pub(crate) async fn record_api_result(
        &self,
        key: ApiResultKey,
        result: Vec<u8>,
        now_ms: u64,
    ) -> Result<(), StateError> {
        self.call(move |connection| put(connection, &key, &result, now_ms, MAX_BYTES)).await
    }
}

fn find(
    connection: &Connection,
    key: &ApiResultKey,
    now_ms: u64,
) -> rusqlite::Result<Option<ApiResult>> {
    let found = connection
        .prepare_cached(
            "SELECT rowid, result, finished_ms, used_ms FROM api_result
             WHERE instance = ?1 AND function = ?2 AND hash = ?3 AND size = ?4",
        )?
        .query_row(
            params![
                &key.instance[..],
                key.action.function() as i64,
                key.action.hash(),
                key.action.size_bytes() as i64
            ],
            |row| {
                let row_id: i64 = row.get(0)?;
                let finished_ms: i64 = row.get(2)?;
                let used_ms: i64 = row.get(3)?;
                let result = ApiResult { result: row.get(1)?, finished_ms: finished_ms as u64 };
                Ok((row_id, result, used_ms as u64))
            },
        )
        .optional()?;
    let Some((row_id, result, used_ms)) = found else { return Ok(None) };
    if now_ms.saturating_sub(used_ms) >= USE_INTERVAL_MS {
        connection
            .prepare_cached("UPDATE api_result SET used_ms = ?2 WHERE rowid = ?1")?
            .execute(params![row_id, now_ms as i64])?;
    }
    Ok(Some(result))
}

fn put(
    connection: &Connection,
    key: &ApiResultKey,
    result: &[u8],
    now_ms: u64,
    max_bytes: i64,
) -> rusqlite::Result<()> {
    let digest = &key.action;
    let earlier = connection
        .prepare_cached(
            "DELETE FROM api_result
             WHERE instance = ?1 AND function = ?2 AND hash = ?3 AND size = ?4
             RETURNING length(result)",
        )?
        .query_row(
            params![
                &key.instance[..],
                digest.function() as i64,
                digest.hash(),
                digest.size_bytes() as i64
            ],
            |row| row.get::<_, i64>(0),
        )
        .optional()?;
    connection
        .prepare_cached(
            "INSERT INTO api_result
                 (instance, function, hash, size, result, finished_ms, used_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
        )?
        .execute(params![
            &key.instance[..],
            digest.function() as i64,
            digest.hash(),
            digest.size_bytes() as i64,
            result,
            now_ms as i64
        ])?;
    let added = i64::try_from(result.len()).unwrap_or(i64::MAX);
    let mut total = connection
        .prepare_cached("UPDATE api_result_total SET bytes = bytes + ?1 RETURNING bytes")?
        .query_row([added - earlier.unwrap_or(0)], |row| row.get::<_, i64>(0))?;
    while total > max_bytes {
        let freed = prune(connection)?;
        if freed == 0 {
            return Ok(());
        }
        total -= freed;
        connection.prepare_cached("UPDATE api_result_total SET bytes = ?1")?.execute([total])?;
    }
    Ok(())
}

/// Deletes results used least recently, and gives their bytes.
fn prune(connection: &Connection) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM api_result WHERE rowid IN
             (SELECT rowid FROM api_result ORDER BY used_ms, rowid LIMIT ?1)
         RETURNING length(result)",
    )?;
    let freed = statement.query_map([PRUNED_AT_ONCE], |row| row.get::<_, i64>(0))?;
    freed.sum()
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;

    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
    }

    fn key(instance: &str, function: DigestFunction, action: &str) -> ApiResultKey {
        ApiResultKey { instance: instance.into(), action: function.digest(action.as_bytes()) }
    }

    fn found(connection: &Connection, key: &ApiResultKey) -> Option<Vec<u8>> {
        find(connection, key, 0).unwrap().map(|found| found.result)
    }

    #[test]
    fn instances_and_digest_functions_are_name_spaces_of_their_own() {
        let connection = database();
        let one = key("a", DigestFunction::Sha256, "x");
        put(&connection, &one, b"result", 7, 1000).unwrap();
        let kept = ApiResult { result: b"result".to_vec(), finished_ms: 7 };
        assert_eq!(find(&connection, &one, 8).unwrap(), Some(kept));
        let hash = one.action.hash();
        let blake3 = Digest::new(DigestFunction::Blake3, hash, 1).unwrap();
        let larger = Digest::new(DigestFunction::Sha256, hash, 2).unwrap();
        for other in [
            key("", DigestFunction::Sha256, "x"),
            key("a/b", DigestFunction::Sha256, "x"),
            ApiResultKey { action: blake3, ..one.clone() },
            ApiResultKey { action: larger, ..one.clone() },
        ] {
            assert_eq!(found(&connection, &other), None, "{other:?}");
        }
    }

    #[test]
    fn a_later_result_replaces_an_earlier_one() {
        let connection = database();
        let one = key("", DigestFunction::Sha1, "x");
        for result in [&b"first"[..], b"2"] {
            put(&connection, &one, result, 7, 1000).unwrap();
            assert_eq!(found(&connection, &one).unwrap(), result);
        }
        let total = "SELECT bytes FROM api_result_total";
        assert_eq!(connection.query_row(total, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    }

    #[test]
    fn beyond_the_limit_those_used_longest_ago_go() {
        let connection = database();
        let nth = |n: u64| key("", DigestFunction::Sha256, &n.to_string());
        for n in 0..1000 {
            put(&connection, &nth(n), &[0; 10], n, 10_000).unwrap();
        }
        find(&connection, &nth(0), USE_INTERVAL_MS).unwrap().unwrap();
        put(&connection, &nth(1000), &[0; 10], 1000, 10_000).unwrap();
        assert!(found(&connection, &nth(0)).is_some(), "it was used");
        assert!(found(&connection, &nth(1)).is_none());
        assert!(found(&connection, &nth(999)).is_some());
        let totals = "SELECT bytes, (SELECT sum(length(result)) FROM api_result)
                      FROM api_result_total";
        let (counted, sum): (i64, i64) =
            connection.query_row(totals, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(counted, sum);
        assert!(counted <= 10_000);
    }
}
