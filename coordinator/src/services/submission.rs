//! From a client's messages to a build that is ready to run.
//!
//! In this order: receive, validate the graph, resolve each selector to one pool, compute ids and
//! keys, look all jobs up, and have the workers confirm what the cache claims. Whatever fails here is
//! the error of the call; nothing has run.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use distbuild_proto::graph::{Graph, JobId, JobKey, RawGraph};
use distbuild_proto::wire::build_request::Body;
use distbuild_proto::{Digest, DigestFunction, wire};
use distbuild_sched as sched;
use distbuild_sched::StoreId;
use tonic::{Status, Streaming};

use super::resuming;
use crate::core::{Claim, GraphWork, Handle, Message, Shared, Submission, Work};
use crate::metadata::BuildMetadata;
use crate::pools::{Properties, Selected, TOOLCHAIN};
use crate::state::{AttemptEnd, CachedResult};

/// Version of the protocol that clients speak.
const PROTOCOL: u32 = 1;
/// Keys in one question to the database.
const KEYS_PER_LOOKUP: usize = 8192;
/// A job's public id.
const JOB_ID_BYTES: usize = 20;

/// A submission as it came, its directories checked.
struct Received {
    header: wire::BuildHeader,
    function: DigestFunction,
    jobs: Vec<wire::SubmittedJob>,
    metadata: BuildMetadata,
    declared: HashSet<Digest>,
    heard: wire::HeardBatch,
}

/// Who a build is, and what is known of it from before this coordinator was started.
pub(crate) struct Named {
    pub(crate) build_id: String,
    pub(crate) secret: Bytes,
    /// None if it is new.
    pub(crate) ends: Option<Vec<AttemptEnd>>,
}

/// Jobs with what decides them, by position in the graph.
struct Keyed {
    ids: Vec<JobId>,
    keys: Vec<Option<JobKey>>,
}

/// Reads a submission from a client's stream and prepares it.
///
/// # Errors
/// The status that ends the call.
pub(crate) async fn prepare(
    header: wire::BuildHeader,
    messages: &mut Streaming<wire::BuildRequest>,
    core: &Handle,
    shared: &Shared,
    named: Named,
) -> Result<Submission, Status> {
    let Named { build_id, secret, ends } = named;
    let received = receive(header, messages, shared).await?;
    let Received { header, function, jobs, metadata, declared, heard } = received;
    let salt = header.salt.clone();
    let (graph, source_roots, requested) = blocking(move || validate(&salt, jobs)).await??;
    check_timeouts(&graph, shared.limits.max_job_timeout)?;
    let graph = Arc::new(graph);
    check_roots(&source_roots, &metadata)?;
    let (pools, pool_of) = select_pools(core, &graph).await?;
    let keyed = {
        let (graph, roots) = (graph.clone(), source_roots.clone());
        let toolchains: Vec<_> = pools
            .iter()
            .map(|pool: &Properties| pool.get(TOOLCHAIN).cloned().unwrap_or_default())
            .collect();
        let pool_of = pool_of.clone();
        blocking(move || compute_keys(&graph, function, &roots, &toolchains, &pool_of)).await?
    };
    let submitted: Vec<u32> = graph.jobs().iter().map(|job| number(job.number())).collect();
    let mut positions = vec![0; submitted.len()];
    for (position, &at) in submitted.iter().enumerate() {
        positions[at as usize] = number(position);
    }
    let mut claimed = if header.no_cache {
        vec![None; graph.jobs().len()]
    } else {
        look_up(shared, &keyed.keys).await?
    };
    let resumed = match (&header.resume, ends) {
        (Some(resume), Some(ends)) => {
            let heard = resuming::Heard { seq: resume.seq, heard, ends };
            Some(Box::new(heard.settle(shared, &positions, &mut claimed).await?))
        }
        _ => None,
    };
    let cached = confirm(core, &build_id, claimed).await?;
    let Keyed { ids, keys } = keyed;
    let assemble = move || {
        let mut id_bytes = BytesMut::zeroed(JOB_ID_BYTES * submitted.len());
        for (&at, id) in submitted.iter().zip(&ids) {
            let start = JOB_ID_BYTES * at as usize;
            id_bytes[start..start + JOB_ID_BYTES].copy_from_slice(id.as_bytes());
        }
        Ok(Submission {
            build_id,
            secret,
            header,
            function,
            plan: Box::new(plan(&graph, &pool_of, &requested, &cached)?),
            work: Work::Graph(Box::new(GraphWork {
                graph,
                submitted,
                positions,
                source_roots,
                ids,
                keys,
            })),
            requested,
            id_bytes: id_bytes.freeze(),
            cached,
            pools,
            pool_of,
            metadata,
            declared,
            resumed,
        })
    };
    blocking(assemble).await?
}

/// The build as the scheduler sees it.
pub(crate) fn plan(
    graph: &Graph,
    pool_of: &[u32],
    requested: &[bool],
    cached: &[Found],
) -> Result<sched::Graph, Status> {
    let mut plan = sched::Graph::new();
    let mut deps = Vec::new();
    for (index, job) in graph.jobs().iter().enumerate() {
        let asked = job.resources();
        let state = match &cached[index] {
            Some((_, holders)) => sched::JobState::Cached { holders: holders.clone() },
            None => sched::JobState::Unknown,
        };
        let spec = sched::JobSpec {
            resources: sched::Resources::new(asked.milli_cores, asked.memory_bytes),
            selector: sched::SelectorId(pool_of[index]),
            requested: requested[index],
            state,
        };
        deps.clear();
        deps.extend(job.deps().iter().map(|dep| number(dep.get())));
        plan.push(&deps, spec).map_err(|error| Status::resource_exhausted(error.to_string()))?;
    }
    Ok(plan)
}

fn number(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))
}

async fn receive(
    header: wire::BuildHeader,
    messages: &mut Streaming<wire::BuildRequest>,
    shared: &Shared,
) -> Result<Received, Status> {
    if header.protocol != PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "the client speaks protocol {}, this coordinator {PROTOCOL}",
            header.protocol
        )));
    }
    let function = DigestFunction::from_number(header.digest_function)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let mut metadata = shared.metadata.build(function);
    let mut declared = HashSet::new();
    let mut children = HashSet::new();
    let mut jobs = Vec::new();
    let mut heard = wire::HeardBatch::default();
    loop {
        let Some(message) = messages.message().await? else {
            return Err(Status::cancelled("the client went away before its build had begun"));
        };
        match message.body {
            Some(Body::Directories(batch)) => {
                for blob in batch.blobs {
                    let (_, directory) = metadata
                        .add(blob)
                        .map_err(|error| Status::resource_exhausted(error.to_string()))?;
                    declared.extend(directory.files().iter().map(|node| node.digest));
                    children.extend(directory.directories().iter().map(|node| node.digest));
                }
            }
            Some(Body::Jobs(batch)) => jobs.extend(batch.jobs),
            Some(Body::Heard(batch)) if header.resume.is_some() => {
                heard.finished.extend(batch.finished);
                heard.attempts.extend(batch.attempts);
            }
            Some(Body::Run(_)) => break,
            Some(Body::Cancel(_)) => return Err(Status::cancelled("cancelled by the client")),
            _ => {
                return Err(Status::invalid_argument("unexpected message in a submission"));
            }
        }
    }
    if let Some(missing) = children.iter().find(|child| !metadata.contains(child)) {
        let text = format!("source directory {missing} was named and not sent");
        return Err(Status::invalid_argument(text));
    }
    Ok(Received { header, function, jobs, metadata, declared, heard })
}

type Validated = (Graph, Vec<Option<Digest>>, Vec<bool>);

fn validate(salt: &str, submitted: Vec<wire::SubmittedJob>) -> Result<Validated, Status> {
    let mut raw = RawGraph::new(salt);
    let mut by_number = Vec::with_capacity(submitted.len());
    for submitted in submitted {
        let root = match submitted.source_root {
            Some(root) => Some(
                Digest::try_from(&root)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?,
            ),
            None => None,
        };
        by_number.push((root, submitted.requested));
        raw.push(submitted.job.unwrap_or_default());
    }
    let graph = Graph::validate(raw)
        .map_err(|errors| Status::invalid_argument(format!("invalid graph: {errors}")))?;
    let in_order = graph.jobs().iter().map(|job| by_number[job.number()]);
    let (roots, requested) = in_order.unzip();
    Ok((graph, roots, requested))
}

fn check_roots(roots: &[Option<Digest>], metadata: &BuildMetadata) -> Result<(), Status> {
    match roots.iter().flatten().find(|root| !metadata.contains(root)) {
        Some(root) => {
            let text = format!("source tree {root} was named and not sent");
            Err(Status::invalid_argument(text))
        }
        None => Ok(()),
    }
}

fn check_timeouts(graph: &Graph, most: std::time::Duration) -> Result<(), Status> {
    let too_long =
        |job: &&distbuild_proto::graph::Job| job.timeout().is_some_and(|limit| limit > most);
    match graph.jobs().iter().find(too_long) {
        Some(job) => Err(Status::invalid_argument(format!(
            "job {:?}: timeout_ms is over {} ms, the most that this coordinator allows",
            job.name(),
            most.as_millis()
        ))),
        None => Ok(()),
    }
}

/// The pools of a build, each once, and which one each job runs in.
async fn select_pools(core: &Handle, graph: &Graph) -> Result<(Vec<Properties>, Vec<u32>), Status> {
    let mut selectors: Vec<Properties> = Vec::new();
    let mut known: BTreeMap<Properties, u32> = BTreeMap::new();
    let mut pool_of = Vec::with_capacity(graph.jobs().len());
    let mut first_job = Vec::new();
    for job in graph.jobs() {
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let selector: Properties = job.platform().iter().map(owned).collect();
        let next = number(selectors.len());
        let index = *known.entry(selector).or_insert_with_key(|selector| {
            selectors.push(selector.clone());
            first_job.push(job.name().to_owned());
            next
        });
        pool_of.push(index);
    }
    if selectors.is_empty() {
        return Ok((selectors, pool_of));
    }
    let selected = core.ask(|reply| Message::Select { selectors, reply }).await?;
    let mut pools = Vec::with_capacity(selected.len());
    let mut errors = Vec::new();
    for (selected, job) in selected.into_iter().zip(first_job) {
        match selected {
            Selected::Pool(pool) => pools.push(pool),
            Selected::NoMatch(hint) => errors.push(format!("job {job:?}: {hint}")),
            Selected::NoneKnown => {
                return Err(Status::failed_precondition(
                    "no worker has ever registered with this coordinator, and none came in time; \
                     start one with `distbuild worker`",
                ));
            }
        }
    }
    if errors.is_empty() {
        Ok((pools, pool_of))
    } else {
        let text = format!("no worker can run this build:\n{}", errors.join("\n"));
        Err(Status::failed_precondition(text))
    }
}

fn compute_keys(
    graph: &Graph,
    function: DigestFunction,
    roots: &[Option<Digest>],
    toolchains: &[String],
    pool_of: &[u32],
) -> Keyed {
    let count = graph.jobs().len();
    let mut ids = Vec::with_capacity(count);
    let mut public_ids = Vec::with_capacity(count);
    let mut keys: Vec<JobKey> = Vec::with_capacity(count);
    let mut found_by_key: Vec<bool> = Vec::with_capacity(count);
    for (index, job) in graph.jobs().iter().enumerate() {
        let record = job.record(function, roots[index].as_ref());
        let dep_ids: Vec<JobId> = job.deps().iter().map(|dep| ids[dep.get()]).collect();
        let dep_keys: Vec<JobKey> = job.deps().iter().map(|dep| keys[dep.get()]).collect();
        let id = JobId::of(&record, &dep_ids);
        ids.push(id);
        public_ids.push(job.declared_id().unwrap_or(id));
        let toolchain = &toolchains[pool_of[index] as usize];
        keys.push(JobKey::of(&record, toolchain, &dep_keys));
        // What depends on something that may come out differently each time is found by its action.
        let deps_found = job.deps().iter().all(|dep| found_by_key[dep.get()]);
        found_by_key.push(job.cache() && deps_found);
    }
    let keys = keys.into_iter().zip(found_by_key).map(|(key, found)| found.then_some(key));
    Keyed { ids: public_ids, keys: keys.collect() }
}

type Found = Option<(CachedResult, Vec<StoreId>)>;

/// Looks all jobs up by their keys.
async fn look_up(
    shared: &Shared,
    keys: &[Option<JobKey>],
) -> Result<Vec<Option<CachedResult>>, Status> {
    let mut found = Vec::with_capacity(keys.len());
    for batch in keys.chunks(KEYS_PER_LOOKUP) {
        let batch = batch.iter().map(|key| key.map(|key| *key.as_bytes())).collect();
        let results = shared.state.jobs(batch).await;
        found.extend(results.map_err(|error| Status::internal(error.to_string()))?);
    }
    Ok(found)
}

/// Has the workers confirm what was found; what is not whole any more is a miss.
async fn confirm(
    core: &Handle,
    build_id: &str,
    found: Vec<Option<CachedResult>>,
) -> Result<Vec<Found>, Status> {
    let claims: Vec<_> = found.iter().flatten().map(Claim::of).collect();
    let build_id = build_id.to_owned();
    let confirmed = core.ask(|reply| Message::CheckClaims { build_id, claims, reply }).await?;
    let mut confirmed = confirmed.into_iter();
    let whole = |cached: Option<CachedResult>| {
        let cached = cached?;
        let stores = confirmed.next().flatten()?;
        Some((cached, stores))
    };
    Ok(found.into_iter().map(whole).collect())
}
