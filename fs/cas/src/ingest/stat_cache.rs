//! `StatCache`: the digests of files that have not changed since they were hashed.
//!
//! A file is known by device, inode, size, mtime and ctime in ns; a path plays no part. The entries
//! of one hash function are loaded in one go (100 000 in about 25 ms), looked up in memory, and
//! what is new is written back in one transaction. What changed within [`RACY_WINDOW`] before it
//! was hashed is not remembered, because a second change could leave the same time stamps.
//!
//! It is a cache and never more: what cannot be read is a miss, a damaged file is replaced by an
//! empty one, a damaged row (every row carries a checksum) is a miss, and a build goes on without
//! it. Several processes may use one file; a file is replaced only by a process that has it for
//! itself.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use distbuild_proto::{Digest, DigestFunction};
use parking_lot::RwLock;
use rusqlite::{Connection, Row, TransactionBehavior, params};

use super::source::FileIdentity;

/// File systems and kernels stamp times in steps, the coarsest in use (FAT) in steps of two
/// seconds.
pub const RACY_WINDOW: Duration = Duration::from_secs(2);

/// Entries not used for so many days are dropped.
const KEEP_DAYS: i64 = 30;
/// The day of last use is written again when it is so many days old, so that reading writes rarely.
const TOUCH_DAYS: i64 = 7;
/// Entries of one function; the least recently used go first. 100 MiB on disk.
const MAX_ENTRIES: usize = 1_000_000;
/// How long another process may hold the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Format of the rows; a file of another format is replaced.
const FORMAT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS files (
        function INTEGER NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
        hash BLOB NOT NULL, checksum INTEGER NOT NULL, used_day INTEGER NOT NULL,
        PRIMARY KEY (function, device, inode)
    ) WITHOUT ROWID, STRICT;";

/// Digests of files by identity, for one hash function.
pub struct StatCache {
    function: DigestFunction,
    file: Option<PathBuf>,
    today: i64,
    /// As loaded, sorted by device and inode.
    loaded: Vec<Known>,
    /// What `loaded` does not know.
    changed: RwLock<HashMap<(u64, u64), Change>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    /// None: the file is to be forgotten.
    known: Option<Known>,
    saved: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    identity: FileIdentity,
    hash: [u8; 32],
    checksum: i64,
    used_day: i64,
}

impl StatCache {
    /// A cache that remembers within this process only.
    pub fn in_memory(function: DigestFunction) -> Self {
        let changed = RwLock::default();
        Self { function, file: None, today: 0, loaded: Vec::new(), changed }
    }

    /// Loads the entries of `function` from a file, which is made if need be, with its directory.
    /// What goes wrong costs the cache, not the build: it is logged, and the cache is empty.
    pub fn open(file: &Path, function: DigestFunction, now: SystemTime) -> Self {
        let loaded = load(file, function).unwrap_or_else(|error| {
            tracing::warn!(path = %file.display(), %error, "stat cache not read");
            Vec::new()
        });
        let file = Some(file.to_owned());
        Self { function, file, today: day(now), loaded, changed: RwLock::default() }
    }

    /// The function of the digests in here.
    pub fn function(&self) -> DigestFunction {
        self.function
    }

    /// The digest of the file, if it has been remembered in this very state.
    pub fn get(&self, identity: &FileIdentity) -> Option<Digest> {
        let key = (identity.device, identity.inode);
        let changed = self.changed.read().get(&key).copied();
        let known = match changed {
            Some(change) => change.known?,
            None => {
                let at = self.loaded.binary_search_by_key(&key, Known::key).ok()?;
                *self.loaded.get(at)?
            }
        };
        if known.identity != *identity || known.checksum != known.sum(self.function) {
            return None;
        }
        if self.today - known.used_day >= TOUCH_DAYS {
            let touched = Known { used_day: self.today, ..known };
            self.change(key, Some(touched));
        }
        let hash = &known.hash[..self.function.hash_len()];
        Digest::new(self.function, hash, identity.size_bytes).ok()
    }

    /// Remembers a file that was hashed from `started` on, unless it had changed just before.
    pub fn remember(&self, identity: &FileIdentity, digest: &Digest, started: SystemTime) {
        let settled = settled(started);
        let of_function = digest.function() == self.function;
        if !of_function || identity.mtime_ns >= settled || identity.ctime_ns >= settled {
            return;
        }
        let mut hash = [0; 32];
        hash[..digest.hash().len()].copy_from_slice(digest.hash());
        let mut known = Known { identity: *identity, hash, checksum: 0, used_day: self.today };
        known.checksum = known.sum(self.function);
        self.change(known.key(), Some(known));
    }

    /// Forgets a file whose contents turned out to be others.
    pub fn forget(&self, identity: &FileIdentity) {
        self.change((identity.device, identity.inode), None);
    }

    fn change(&self, key: (u64, u64), known: Option<Known>) {
        self.changed.write().insert(key, Change { known, saved: false });
    }

    /// Writes what is new since the cache was opened or saved; returns the number of rows written.
    ///
    /// # Errors
    /// The file cannot be written, or another process wrote for longer than two seconds. What is
    /// new can be saved another time; if it is lost, the next build hashes more.
    pub fn save(&self) -> Result<usize, StatCacheError> {
        let Some(file) = &self.file else { return Ok(0) };
        let mut unsaved: Vec<_> = {
            let changed = self.changed.read();
            let unsaved = changed.iter().filter(|(_, change)| !change.saved);
            unsaved.map(|(key, change)| (*key, *change)).collect()
        };
        // Neighbours in the table are written together.
        unsaved.sort_unstable_by_key(|(key, _)| *key);
        if unsaved.is_empty() {
            return Ok(0);
        }
        let _in_use = lock(file, File::try_lock_shared)?;
        let mut connection = connect(file)?;
        // The right to write is taken first, and waited for; a later upgrade would fail at once.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.write(&transaction, &unsaved)?;
        self.expire(&transaction, unsaved.len(), MAX_ENTRIES)?;
        transaction.commit()?;
        let mut changed = self.changed.write();
        for (key, written) in &unsaved {
            // It may have changed again meanwhile.
            if let Some(change) = changed.get_mut(key).filter(|change| *change == written) {
                change.saved = true;
            }
        }
        Ok(unsaved.len())
    }

    fn write(
        &self,
        connection: &Connection,
        changes: &[((u64, u64), Change)],
    ) -> rusqlite::Result<()> {
        let mut put = connection
            .prepare("INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
        let mut delete = connection
            .prepare("DELETE FROM files WHERE function = ?1 AND device = ?2 AND inode = ?3")?;
        let function = self.function as i64;
        for ((device, inode), change) in changes {
            let (device, inode) = (device.cast_signed(), inode.cast_signed());
            let Some(known) = change.known else {
                delete.execute(params![function, device, inode])?;
                continue;
            };
            put.execute(params![
                function,
                device,
                inode,
                known.identity.size_bytes.cast_signed(),
                known.identity.mtime_ns,
                known.identity.ctime_ns,
                &known.hash[..self.function.hash_len()],
                known.checksum,
                known.used_day
            ])?;
        }
        Ok(())
    }

    /// Drops what is old once a day, and what is too much whenever there may be too much.
    fn expire(&self, connection: &Connection, new: usize, cap: usize) -> rusqlite::Result<()> {
        let expired: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
        if expired != self.today {
            connection
                .execute("DELETE FROM files WHERE used_day < ?1", [self.today - KEEP_DAYS])?;
            connection.pragma_update(None, "application_id", self.today)?;
        }
        if self.loaded.len() + new > cap {
            connection.execute(
                "DELETE FROM files WHERE (function, device, inode) IN (
                     SELECT function, device, inode FROM files WHERE function = ?1
                     ORDER BY used_day DESC LIMIT -1 OFFSET ?2)",
                params![self.function as i64, cap.cast_signed() as i64],
            )?;
        }
        Ok(())
    }
}

impl fmt::Debug for StatCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatCache")
            .field("function", &self.function)
            .field("file", &self.file)
            .field("loaded", &self.loaded.len())
            .finish_non_exhaustive()
    }
}

impl Known {
    fn key(&self) -> (u64, u64) {
        (self.identity.device, self.identity.inode)
    }

    /// Guards a row against damage that the database does not notice.
    fn sum(&self, function: DigestFunction) -> i64 {
        let identity = &self.identity;
        let mut bytes = [0; 80];
        bytes[..32].copy_from_slice(&self.hash);
        let words = [
            identity.device,
            identity.inode,
            identity.size_bytes,
            identity.mtime_ns.cast_unsigned(),
            identity.ctime_ns.cast_unsigned(),
            function as u64,
        ];
        for (place, word) in bytes[32..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let sum = DigestFunction::Blake3.digest(&bytes);
        sum.hash().first_chunk().map_or(0, |first| i64::from_le_bytes(*first))
    }

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let unsigned = |at| row.get(at).map(i64::cast_unsigned);
        let identity = FileIdentity {
            device: unsigned(0)?,
            inode: unsigned(1)?,
            size_bytes: unsigned(2)?,
            mtime_ns: row.get(3)?,
            ctime_ns: row.get(4)?,
        };
        let mut hash = [0; 32];
        let bytes = row.get_ref(5)?.as_blob()?;
        let len = bytes.len().min(hash.len());
        hash[..len].copy_from_slice(&bytes[..len]);
        Ok(Self { identity, hash, checksum: row.get(6)?, used_day: row.get(7)? })
    }
}

/// The rows of one function, sorted by device and inode; a damaged file is replaced.
fn load(file: &Path, function: DigestFunction) -> Result<Vec<Known>, StatCacheError> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    let in_use = lock(file, File::try_lock_shared)?;
    let error = match connect(file).and_then(|connection| Ok(read(&connection, function)?)) {
        Ok(rows) => return Ok(rows),
        Err(error) if error.is_damage() => error,
        Err(error) => return Err(error),
    };
    drop(in_use);
    tracing::warn!(path = %file.display(), %error, "stat cache is damaged and starts anew");
    let _alone = lock(file, File::try_lock)?;
    for suffix in ["", "-wal", "-shm"] {
        match fs::remove_file(beside(file, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    connect(file)?;
    Ok(Vec::new())
}

fn read(connection: &Connection, function: DigestFunction) -> rusqlite::Result<Vec<Known>> {
    let mut statement = connection.prepare(
        "SELECT device, inode, size_bytes, mtime_ns, ctime_ns, hash, checksum, used_day
         FROM files WHERE function = ?1",
    )?;
    let rows = statement.query_map([function as i64], Known::from_row)?;
    let mut known: Vec<Known> = rows.collect::<Result<_, _>>()?;
    // The primary key's order is that of signed numbers, and a damaged file has none.
    if !known.is_sorted_by_key(Known::key) {
        known.sort_unstable_by_key(Known::key);
    }
    Ok(known)
}

fn connect(file: &Path) -> Result<Connection, StatCacheError> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let format: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match format {
        FORMAT => {}
        0 => {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.execute_batch(SCHEMA)?;
            connection.pragma_update(None, "user_version", FORMAT)?;
        }
        other => return Err(StatCacheError::Format(other)),
    }
    // What a crash takes is hashed again.
    connection.pragma_update(None, "synchronous", "OFF")?;
    Ok(connection)
}

/// Holds the file beside the database: shared while it is used, alone while it is replaced.
fn lock(
    file: &Path,
    how: fn(&File) -> Result<(), fs::TryLockError>,
) -> Result<File, StatCacheError> {
    let path = beside(file, ".lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    match how(&lock) {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(StatCacheError::Replaced),
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// What changed before this, in ns since 1970, is not mistaken for a later state by who starts to look at
/// `started`.
pub(super) fn settled(started: SystemTime) -> i64 {
    started.checked_sub(RACY_WINDOW).map_or(i64::MIN, nanoseconds)
}

fn nanoseconds(time: SystemTime) -> i64 {
    let after = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)
}

fn day(now: SystemTime) -> i64 {
    nanoseconds(now) / 86_400_000_000_000
}

/// Why a stat cache could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StatCacheError {
    /// The file or its directory cannot be used.
    #[error("failed to use the stat cache: {0}")]
    Io(#[from] io::Error),
    /// The database refused.
    #[error("failed to use the stat cache: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Another version of the program wrote the file.
    #[error("the stat cache has the unknown format {0}")]
    Format(i64),
    /// The file is damaged while other processes use it, or one of them replaces it now.
    #[error("another process uses or replaces the stat cache")]
    Replaced,
}

impl StatCacheError {
    fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SchemaChanged, Unknown};
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => {
                matches!(error.code, DatabaseCorrupt | NotADatabase | SchemaChanged | Unknown)
            }
            Self::Sqlite(_) | Self::Format(_) => true,
            Self::Io(_) | Self::Replaced => false,
        }
    }
}

#[cfg(test)]
mod tests;
