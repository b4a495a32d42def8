//! Large blobs between workers: pieces from several holders at once, over connections of their own.
//!
//! Model: a *transfer* is one blob on its way. Up to [`HOLDERS`] workers that have it are dialled, each
//! answers on a connection that serves this blob alone ([`connection`], [`serve`]), and a thread a holder
//! asks for pieces, [`WINDOW`] ahead. Which piece is next, [`plan`] says: what a reader waits for, then on
//! from there, then what another holder is slow to send. With BLAKE3 a piece is compared with its
//! chaining value when it comes and may be read from then on; a holder that sent another is not asked
//! again, and nothing it sent is kept. With the other functions the whole is compared at the end.
//!
//! Bytes go from the page cache of one worker into that of the other with one copy at the sender's socket,
//! one at the receiver's and one into the file. Memory is bounded by the size of a piece for each holder of
//! each transfer. How many transfers run at once, and for which action the next one is, the filler says, in
//! its lane of large blobs.
//!
//! Never: trusts a holder, shows bytes that were not verified, or goes on when nobody waits.

mod connection;
mod demand;
mod door;
mod fetch;
mod plan;
mod read;
mod serve;
#[cfg(test)]
mod tests;
mod transfer;
mod under_way;

use std::time::Duration;

pub use connection::PREFACE;
pub(crate) use demand::Demands;
pub(crate) use door::sort;
pub use fetch::{FetchFailure, Fetched, Holder, Wanted, fetch};
pub(crate) use read::read;
pub use serve::serve;
pub use transfer::{Arrived, HolderError, Transfer};
pub(crate) use under_way::UnderWay;

/// A blob larger than this goes in pieces.
pub const LARGE_BYTES: u64 = 4 << 20;
/// Holders that one blob is read from at once.
pub const HOLDERS: usize = 3;
/// Pieces asked of one holder ahead of its answers: 4 MiB, enough for 1 Gbit/s over 30 ms.
pub const WINDOW: usize = 4;
/// A piece that a holder has not sent for so long is asked of another one as well.
pub const STALL: Duration = Duration::from_millis(500);
