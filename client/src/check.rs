//! `distbuild check`: everything about a graph that can be wrong without a worker.

use std::sync::Arc;

use distbuild_cas::ingest::StatCache;
use distbuild_proto::DigestFunction;

use crate::build::plan;
use crate::build::sources::Sources;
use crate::cli::CheckArgs;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::places::Places;

/// Validates the graph and its inputs.
///
/// # Errors
/// All that is wrong.
pub(crate) fn run(args: CheckArgs) -> Result<Exit, Failure> {
    let places = Places::new(&args.graph, args.source, args.out, args.state)?;
    places.check_out()?;
    let graph = plan::load(&places.graph)?;
    let function = DigestFunction::Blake3;
    let stat_cache =
        StatCache::open(&places.cache.stat_cache(), function, std::time::SystemTime::now());
    let in_file = graph.file_order().iter().map(|index| graph.job(*index));
    Sources::read(&places, Arc::new(stat_cache), in_file)?;
    output::line(format_args!("ok: {} jobs", graph.jobs().len()));
    Ok(Exit::DONE)
}
