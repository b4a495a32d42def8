//! Access records by command: what its last runs looked at.
//!
//! They serve to foresee what the next run reads, and to conclude that it would do the same again. Both are
//! lost chances at worst, so a record may go at any time: of a command the [`PER_COMMAND`] newest stay, and of
//! all commands the newest that fit [`MAX_BYTES`]. A record that is not complete only serves to foresee.

use bytes::Bytes;
use distbuild_proto::{Digest, wire};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

/// Records that are kept of one command.
const PER_COMMAND: i64 = 16;
/// Bytes of all records.
const MAX_BYTES: i64 = 256 << 20;
/// Records that go at once when there are too many.
const PRUNED_AT_ONCE: i64 = 64;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS access_record (
    number INTEGER PRIMARY KEY,    -- rises with time
    command BLOB NOT NULL,         -- CommandKey
    action BLOB NOT NULL,          -- ActionKey of the run, whose result is in action_result
    input_root BLOB NOT NULL,      -- wire Digest
    declared_id BLOB,              -- enters the action's key and not the command's
    complete INTEGER NOT NULL,     -- all that the run looked at stands in the record
    record BLOB NOT NULL           -- AccessRecord
);
CREATE INDEX IF NOT EXISTS access_by_command ON access_record (command);
CREATE INDEX IF NOT EXISTS access_by_action ON access_record (action);
CREATE TABLE IF NOT EXISTS access_total (bytes INTEGER NOT NULL);
INSERT INTO access_total SELECT 0 WHERE NOT EXISTS (SELECT * FROM access_total);
";

/// What a successful run looked at.
#[derive(Clone, Debug)]
pub(crate) struct Looked {
    pub(crate) command: [u8; 32],
    pub(crate) action: [u8; 32],
    pub(crate) input_root: Digest,
    pub(crate) declared_id: Option<[u8; 20]>,
    pub(crate) complete: bool,
    /// The encoded record.
    pub(crate) record: Bytes,
}

/// Adds a record; one of an equal run goes, and what is too much.
pub(super) fn add(connection: &Connection, looked: &Looked) -> rusqlite::Result<()> {
    add_within(connection, looked, MAX_BYTES)
}

fn add_within(connection: &Connection, looked: &Looked, max_bytes: i64) -> rusqlite::Result<()> {
    let command = &looked.command[..];
    let equal = "DELETE FROM access_record WHERE command = ?1 AND action = ?2
                 RETURNING length(record)";
    let mut freed = delete(connection, equal, params![command, &looked.action[..]])?;
    connection
        .prepare_cached(
            "INSERT INTO access_record
                 (command, action, input_root, declared_id, complete, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            command,
            &looked.action[..],
            wire::Digest::from(looked.input_root).encode_to_vec(),
            looked.declared_id.as_ref().map(|id| &id[..]),
            looked.complete,
            &looked.record[..],
        ])?;
    let older = "DELETE FROM access_record WHERE number IN
                     (SELECT number FROM access_record WHERE command = ?1
                      ORDER BY number DESC LIMIT -1 OFFSET ?2)
                 RETURNING length(record)";
    freed += delete(connection, older, params![command, PER_COMMAND])?;
    let added = i64::try_from(looked.record.len()).unwrap_or(i64::MAX);
    let mut total = connection
        .prepare_cached("UPDATE access_total SET bytes = bytes + ?1 RETURNING bytes")?
        .query_row([added - freed], |row| row.get::<_, i64>(0))?;
    while total > max_bytes {
        let oldest = "DELETE FROM access_record WHERE number IN
                          (SELECT number FROM access_record ORDER BY number LIMIT ?1)
                      RETURNING length(record)";
        let freed = delete(connection, oldest, params![PRUNED_AT_ONCE])?;
        if freed == 0 {
            return Ok(());
        }
        total -= freed;
        connection.prepare_cached("UPDATE access_total SET bytes = ?1")?.execute([total])?;
    }
    Ok(())
}

/// Deletes, and gives the bytes that were freed.
fn delete(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached(sql)?;
    let freed = statement.query_map(params, |row| row.get::<_, i64>(0))?;
    freed.sum()
}

/// Forgets what a run looked at: its result is that of another run from now on.
pub(super) fn forget(connection: &Connection, action: &[u8; 32]) -> rusqlite::Result<()> {
    let runs = "DELETE FROM access_record WHERE action = ?1 RETURNING length(record)";
    let freed = delete(connection, runs, params![&action[..]])?;
    if freed > 0 {
        connection
            .prepare_cached("UPDATE access_total SET bytes = bytes - ?1")?
            .execute([freed])?;
    }
    Ok(())
}

/// What the run of an action looked at, encoded.
pub(super) fn of_action(
    connection: &Connection,
    action: &[u8; 32],
) -> rusqlite::Result<Option<Vec<u8>>> {
    connection
        .prepare_cached(
            "SELECT record FROM access_record WHERE action = ?1 ORDER BY number DESC LIMIT 1",
        )?
        .query_row([&action[..]], |row| row.get(0))
        .optional()
}

/// The newest record of a command, encoded.
pub(super) fn newest(
    connection: &Connection,
    command: &[u8; 32],
) -> rusqlite::Result<Option<Vec<u8>>> {
    connection
        .prepare_cached(
            "SELECT record FROM access_record WHERE command = ?1 ORDER BY number DESC LIMIT 1",
        )?
        .query_row([&command[..]], |row| row.get(0))
        .optional()
}

/// A run that may stand for another of the same command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) action: [u8; 32],
    /// The encoded record.
    pub(crate) record: Vec<u8>,
}

/// The runs of a command with this declared id of which the whole record is known, newest first.
pub(super) fn candidates(
    connection: &Connection,
    command: &[u8; 32],
    declared_id: Option<&[u8; 20]>,
) -> rusqlite::Result<Vec<Candidate>> {
    connection
        .prepare_cached(
            "SELECT action, record FROM access_record
             WHERE command = ?1 AND declared_id IS ?2 AND complete ORDER BY number DESC",
        )?
        .query_map(params![&command[..], declared_id.map(|id| &id[..])], |row| {
            Ok(Candidate { action: row.get(0)?, record: row.get(1)? })
        })?
        .collect()
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

    fn looked(command: u8, action: u8, record: &[u8]) -> Looked {
        Looked {
            command: [command; 32],
            action: [action; 32],
            input_root: DigestFunction::Blake3.digest(b"root"),
            declared_id: None,
            complete: true,
            record: Bytes::copy_from_slice(record),
        }
    }

    fn count(connection: &Connection, what: &str) -> i64 {
        let sql = format!("SELECT {what} FROM access_record, access_total");
        connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn the_newest_record_of_a_command_is_found() {
        let connection = database();
        add(&connection, &looked(1, 1, b"first")).unwrap();
        add(&connection, &looked(1, 2, b"second")).unwrap();
        add(&connection, &looked(2, 3, b"other")).unwrap();
        assert_eq!(newest(&connection, &[1; 32]).unwrap().unwrap(), b"second");
        add(&connection, &looked(1, 1, b"again")).unwrap();
        assert_eq!(newest(&connection, &[1; 32]).unwrap().unwrap(), b"again");
        assert_eq!(count(&connection, "count(*)"), 3, "an equal run replaces its record");
        assert_eq!(newest(&connection, &[9; 32]).unwrap(), None);
    }

    #[test]
    fn a_run_that_was_forgotten_stands_for_nothing_and_takes_no_room() {
        let connection = database();
        add(&connection, &looked(1, 1, b"first")).unwrap();
        add(&connection, &looked(2, 2, b"other")).unwrap();
        assert_eq!(of_action(&connection, &[1; 32]).unwrap().unwrap(), b"first");
        forget(&connection, &[1; 32]).unwrap();
        assert!(of_action(&connection, &[1; 32]).unwrap().is_none());
        assert!(candidates(&connection, &[1; 32], None).unwrap().is_empty());
        assert_eq!(count(&connection, "max(bytes)"), 5);
    }

    #[test]
    fn only_whole_records_of_the_same_declared_id_are_candidates() {
        let connection = database();
        let id = Some([7; 20]);
        add(&connection, &looked(1, 1, b"whole")).unwrap();
        add(&connection, &Looked { complete: false, ..looked(1, 2, b"cut") }).unwrap();
        add(&connection, &Looked { declared_id: id, ..looked(1, 3, b"declared") }).unwrap();
        add(&connection, &looked(1, 4, b"newer")).unwrap();
        add(&connection, &looked(2, 5, b"other")).unwrap();
        let actions = |declared_id: Option<&[u8; 20]>| -> Vec<u8> {
            let found = candidates(&connection, &[1; 32], declared_id).unwrap();
            found.iter().map(|candidate| candidate.action[0]).collect()
        };
        assert_eq!(actions(None), [4, 1]);
        assert_eq!(actions(id.as_ref()), [3]);
    }

    #[test]
    fn of_a_command_the_last_sixteen_stay() {
        let connection = database();
        for action in 0..20 {
            add(&connection, &looked(1, action, &[action])).unwrap();
        }
        assert_eq!(count(&connection, "count(*)"), PER_COMMAND);
        assert_eq!(count(&connection, "hex(min(record)) = '04'"), 1);
        assert_eq!(count(&connection, "max(bytes)"), PER_COMMAND);
    }

    #[test]
    fn beyond_the_bytes_of_all_the_oldest_go() {
        let connection = database();
        for command in 0..200 {
            add_within(&connection, &looked(command, 1, &[command; 100]), 10_000).unwrap();
            assert!(count(&connection, "max(bytes)") <= 10_000);
            assert_eq!(count(&connection, "max(bytes) = sum(length(record))"), 1);
        }
        assert!(newest(&connection, &[199; 32]).unwrap().is_some());
        assert!(newest(&connection, &[0; 32]).unwrap().is_none());
    }
}
