//! Explanations: how it was decided whether jobs ran, by build and job.
//!
//! Each is found by its build and the job's name or public id. The newest [`MAX_ROWS`] stay.

use distbuild_proto::wire;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::decode;

/// Explanations that are kept.
const MAX_ROWS: i64 = 100_000;
/// Newest builds among which one is sought that had a job.
const SEARCHED_BUILDS: u32 = 64;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS explanation (
    number INTEGER PRIMARY KEY,    -- rises with time
    build TEXT NOT NULL,
    job TEXT NOT NULL,             -- its name
    job_id BLOB NOT NULL,
    body BLOB NOT NULL             -- Explanation
);
CREATE INDEX IF NOT EXISTS explanation_by_job ON explanation (job, number);
CREATE INDEX IF NOT EXISTS explanation_by_id ON explanation (job_id, number);
CREATE INDEX IF NOT EXISTS named_by_name ON named_result (name);
";

/// Writes explanations down; the oldest go.
pub(super) fn add(
    connection: &Connection,
    explanations: &[wire::Explanation],
) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO explanation (build, job, job_id, body) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for explanation in explanations {
        insert.execute(params![
            explanation.build_id,
            explanation.job_name,
            &explanation.job_id[..],
            explanation.encode_to_vec()
        ])?;
    }
    let newest = connection.last_insert_rowid();
    connection
        .prepare_cached("DELETE FROM explanation WHERE number <= ?1")?
        .execute([newest - MAX_ROWS])?;
    Ok(())
}

/// What was decided about a job in a build, or in the newest that had it; none if nothing is known.
pub(crate) fn find(
    connection: &Connection,
    job: &str,
    build_id: &str,
) -> rusqlite::Result<Option<wire::Explanation>> {
    let id = id_of(job);
    let decided = decided(connection, job, id.as_deref(), build_id)?;
    let by_key = found_by_key(connection, job, id.as_deref(), build_id)?;
    Ok(match (decided, by_key) {
        (Some(decided), Some((found, started_ms))) => {
            let is_newer = started_ms > decided.time_ms && found.build_id != decided.build_id;
            Some(if is_newer { found } else { decided })
        }
        (decided, by_key) => decided.or(by_key.map(|(found, _)| found)),
    })
}

/// A public id in hexadecimal digits.
fn id_of(job: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    (job.len() == 40).then(|| job.as_bytes().chunks_exact(2).map(pair).collect()).flatten()
}

fn decided(
    connection: &Connection,
    job: &str,
    id: Option<&[u8]>,
    build_id: &str,
) -> rusqlite::Result<Option<wire::Explanation>> {
    connection
        .prepare_cached(
            "SELECT body FROM explanation WHERE (job = ?1 OR job_id = ?2) AND (?3 = '' OR build = ?3)
             ORDER BY number DESC LIMIT 1",
        )?
        .query_row(params![job, id, build_id], |row| {
            let body: Vec<u8> = row.get(0)?;
            decode(&body)
        })
        .optional()
}

/// A build that had the job with a result that is known, and when it started: unless something else was decided there,
/// the job's key found it.
fn found_by_key(
    connection: &Connection,
    job: &str,
    id: Option<&[u8]>,
    build_id: &str,
) -> rusqlite::Result<Option<(wire::Explanation, u64)>> {
    let mut named = connection.prepare_cached(
        "SELECT n.job_id, n.name, a.result FROM named_result n
         JOIN action_result a ON a.key = n.action WHERE n.name = ?1 OR n.job_id = ?2",
    )?;
    let results: Vec<(Vec<u8>, String, Vec<u8>)> = named
        .query_map(params![job, id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let mut builds = connection.prepare_cached(
        "SELECT id, job_ids, started_ms FROM build WHERE ?1 = '' OR id = ?1
         ORDER BY started_ms DESC LIMIT ?2",
    )?;
    let mut rows = builds.query(params![build_id, SEARCHED_BUILDS])?;
    while let Some(row) = rows.next()? {
        let (build_id, ids, started_ms): (String, Vec<u8>, i64) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        let had = |result: &&(Vec<u8>, String, Vec<u8>)| {
            ids.chunks_exact(20).any(|id| *id == result.0[..])
        };
        if let Some((job_id, name, result)) = results.iter().find(had) {
            let explanation = wire::Explanation {
                build_id,
                job_name: name.clone(),
                job_id: job_id.clone().into(),
                time_ms: started_ms as u64,
                decision: wire::Decision::FoundByJob.into(),
                result: Some(decode(result)?),
                ..Default::default()
            };
            return Ok(Some((explanation, started_ms as u64)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(super::super::SCHEMA).unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
    }

    fn explanation(build: &str, job: &str, time_ms: u64) -> wire::Explanation {
        wire::Explanation {
            build_id: build.to_owned(),
            job_name: job.to_owned(),
            job_id: vec![7; 20].into(),
            time_ms,
            decision: wire::Decision::NotFound.into(),
            ..Default::default()
        }
    }

    fn build(connection: &Connection, id: &str, job_id: [u8; 20], started_ms: i64) {
        connection
            .execute(
                "INSERT INTO build (id, summary, job_ids, started_ms) VALUES (?1, x'', ?2, ?3)",
                params![id, &job_id[..], started_ms],
            )
            .unwrap();
    }

    #[test]
    fn the_newest_decision_is_found_by_name_by_id_and_by_build() {
        let connection = database();
        let all = [explanation("b1", "a", 1), explanation("b2", "a", 2), explanation("b2", "b", 2)];
        add(&connection, &all).unwrap();
        let found = |job: &str, build: &str| {
            find(&connection, job, build).unwrap().map(|found| (found.build_id, found.job_name))
        };
        let is = |build: &str, job: &str| Some((build.to_owned(), job.to_owned()));
        assert_eq!(found("a", ""), is("b2", "a"));
        assert_eq!(found("a", "b1"), is("b1", "a"));
        assert_eq!(found(&"07".repeat(20), "b1"), is("b1", "a"));
        assert_eq!(found("c", ""), None);
        assert_eq!(found("b", "b1"), None);
    }

    #[test]
    fn a_job_of_a_newer_build_about_which_nothing_was_decided_was_found_by_its_key() {
        let connection = database();
        add(&connection, &[explanation("b1", "a", 5)]).unwrap();
        connection
            .execute_batch(
                "INSERT INTO action_result (key, result, holders, finished_ms) VALUES (x'01', x'', '', 6);
                 INSERT INTO named_result (job_id, name, action, finished_ms)
                     VALUES (x'0707070707070707070707070707070707070707', 'a', x'01', 6);",
            )
            .unwrap();
        build(&connection, "b1", [7; 20], 4);
        let decision = |build: &str| find(&connection, "a", build).unwrap().unwrap().decision();
        assert_eq!(decision(""), wire::Decision::NotFound);
        build(&connection, "b2", [7; 20], 8);
        assert_eq!(decision(""), wire::Decision::FoundByJob);
        assert_eq!(decision("b1"), wire::Decision::NotFound);
        assert_eq!(decision("b2"), wire::Decision::FoundByJob);
    }
}
