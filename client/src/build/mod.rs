//! `distbuild build`: a graph, from its file to its outputs.
//!
//! The graph becomes a [`plan::Plan`], its inputs [`sources::Sources`]; both are submitted to a
//! coordinator ([`crate::backend`]: embedded or remote), and a [`session::Session`] follows the build: it
//! lends sources, brings outputs, shows and writes down what happens. Nothing here decides what runs.

pub(crate) mod console;
pub(crate) mod deliver;
pub(crate) mod events;
pub(crate) mod fetch;
pub(crate) mod hints;
pub(crate) mod lend;
pub(crate) mod plan;
pub(crate) mod reconnect;
pub(crate) mod record;
pub(crate) mod report;
pub(crate) mod session;
pub(crate) mod sources;
pub(crate) mod submit;
pub(crate) mod summary;
pub(crate) mod traffic;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use distbuild_cas::ingest::StatCache;
use distbuild_cas::{Filler, FillerConfig};
use distbuild_proto::transport::MAX_MESSAGE_BYTES;
use distbuild_proto::wire;
use distbuild_proto::wire::builds_client::BuildsClient;

use crate::backend::{Backend, Where};
use crate::cli::{BuildArgs, Switch};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::output;
use crate::places::Places;
use crate::plaintext::Allowed;
use crate::progress::Screen;

use deliver::Deliveries;
use events::EventFile;
use fetch::Outputs;
use plan::Plan;
use reconnect::{Link, Reconnector};
use record::Record;
use session::{Ended, Parts, Session};
use sources::Sources;
use submit::Terms;
use summary::{Bytes, Summary};
use traffic::Traffic;

/// After so long without an answer to a submission the user is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// Blobs that may be wanted at once; the deliveries that run at a time ask for no more.
const MAX_WANTED: usize = 1 << 17;

/// What is to be built, how, and what is to be told about it.
#[derive(Debug)]
struct Options {
    places: Places,
    jobs: Vec<String>,
    target: Where,
    terms: Terms,
    upload: bool,
    /// How long a coordinator that is lost may take to come back.
    reconnect: Duration,
}

impl Options {
    fn new(args: BuildArgs) -> Result<Self, Failure> {
        let target = match args.coordinator {
            Some(address) => {
                Allowed::from(&args.plaintext).check(&address)?;
                Where::Remote(address)
            }
            None => Where::Embedded,
        };
        let places = Places::new(&args.graph, args.source, args.out, args.state)?.with_reports(
            args.summary,
            args.events,
            args.report,
        )?;
        let terms = Terms {
            digest_function: args.digest_function,
            keep_going: args.keep_going,
            no_cache: args.no_cache,
            observed_inputs: args.observed_inputs == Switch::On,
            title: places.title(),
            // An embedded coordinator goes with this process.
            resumable: matches!(target, Where::Remote(_)) && args.reconnect > 0,
        };
        let (jobs, upload) = (args.job, args.upload);
        let reconnect = Duration::from_secs(args.reconnect.into());
        Ok(Self { places, jobs, target, terms, upload, reconnect })
    }
}

/// Builds.
///
/// # Errors
/// What kept the build from starting; a build that started ends with an exit code.
pub(crate) async fn run(args: BuildArgs, interrupt: Interrupt) -> Result<Exit, Failure> {
    let started = Instant::now();
    let options = Options::new(args)?;
    // A graph or an event file may be a pipe that nobody serves.
    let prepared = async {
        let (places, jobs) = (options.places.clone(), options.jobs.clone());
        let plan = blocking(move || {
            places.check_out()?;
            places.check_reports()?;
            Plan::new(plan::load(&places.graph)?, &jobs)
        })
        .await?;
        let path = options.places.events.clone();
        let events = blocking(move || {
            EventFile::create(path.as_deref()).map_err(|error| {
                let path = path.unwrap_or_default();
                let text = format!("failed to write the events to {}: {error}", path.display());
                Failure::usage(text)
            })
        })
        .await?;
        Ok((events, plan))
    };
    let (events, plan) = tokio::select! {
        prepared = prepared => prepared?,
        () = interrupt.first() => return Err(Failure::cancelled()),
    };
    let build = Build { options, plan: Arc::new(plan), traffic: Arc::default(), started };
    tokio::select! {
        result = build.run(events, &interrupt) => result,
        () = interrupt.second() => Err(Failure::cancelled()),
    }
}

struct Build {
    options: Options,
    plan: Arc<Plan>,
    traffic: Arc<Traffic>,
    started: Instant,
}

impl Build {
    async fn run(&self, events: EventFile, interrupt: &Interrupt) -> Result<Exit, Failure> {
        let sources = self.read_sources();
        let backend = Backend::start(&self.options.target, &self.options.places.cache);
        let prepared = async { tokio::join!(sources, backend) };
        let (sources, backend) = tokio::select! {
            prepared = prepared => prepared,
            () = interrupt.first() => return self.refused(Failure::cancelled(), 0).await,
        };
        let (sources, backend) = match (sources, backend) {
            (Ok(sources), Ok(backend)) => (sources, backend),
            (Err(failure), backend) => {
                if let Ok(backend) = backend {
                    backend.end().await;
                }
                return self.refused(failure, 0).await;
            }
            (Ok(_), Err(failure)) => return self.refused(failure, 0).await,
        };
        let (stat_cache, snapshot) = (sources.stat_cache.clone(), sources.clone());
        let declared = sources.snapshot.stats().declared_bytes;
        let session = tokio::select! {
            session = self.submit(sources, &backend, events) => session,
            () = interrupt.first() => Err(Failure::cancelled()),
        };
        let ended = match session {
            Ok((session, link)) => self.follow(session, link, &backend, interrupt).await,
            Err(failure) => {
                backend.end().await;
                return self.refused(failure, declared).await;
            }
        };
        let told = self.write_report(&ended.record, &snapshot, &backend).await;
        backend.end().await;
        let saved = blocking(move || Ok(stat_cache.save())).await?;
        if let Err(error) = saved {
            tracing::warn!(%error, "digests of outputs not remembered");
        }
        self.finish(&ended, declared, told).await
    }

    /// Writes down what jobs declared and never looked at, if that was asked for.
    async fn write_report(
        &self,
        record: &Record,
        sources: &Sources,
        backend: &Backend,
    ) -> Result<(), Failure> {
        let Some(path) = self.options.places.report.clone() else { return Ok(()) };
        let builds =
            BuildsClient::new(backend.control.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let runs = report::runs(builds, record).await?;
        let text = report::Report::new(record, sources, &runs).to_text();
        blocking(move || {
            text.and_then(|text| summary::write(&path, &text)).map_err(|error| {
                Failure::infrastructure(format!("failed to write the report {path:?}: {error}"))
            })
        })
        .await
    }

    async fn read_sources(&self) -> Result<Sources, Failure> {
        let (places, plan) = (self.options.places.clone(), self.plan.clone());
        let function = self.options.terms.digest_function;
        blocking(move || {
            let file = places.cache.stat_cache();
            let stat_cache = Arc::new(StatCache::open(&file, function, SystemTime::now()));
            Sources::read(&places, stat_cache, plan.jobs())
        })
        .await
    }

    /// Sends the submission and waits until the build has started.
    async fn submit(
        &self,
        sources: Sources,
        backend: &Backend,
        events: EventFile,
    ) -> Result<(Session, Link), Failure> {
        let out = self.options.places.out.clone();
        std::fs::create_dir_all(&out)
            .map_err(|error| Failure::infrastructure(format!("failed to make {out:?}: {error}")))?;
        let existing = {
            let (places, plan) = (self.options.places.clone(), self.plan.clone());
            let stat_cache = sources.stat_cache.clone();
            tokio::task::spawn_blocking(move || deliver::existing(&places, &plan, &stat_cache))
        };
        let reconnector = Reconnector {
            control: backend.control.clone(),
            terms: self.options.terms.clone(),
            plan: self.plan.clone(),
            sources: sources.clone(),
            limit: self.options.reconnect,
        };
        let link = with_patience(reconnector.submit()).await;
        let link = link.map_err(|status| Failure::of_status(&status))?;
        let outputs = Outputs::new(backend.bytes.clone(), self.traffic.clone());
        let config = FillerConfig { max_queued: MAX_WANTED, ..FillerConfig::default() };
        let filler = Filler::new(backend.store.clone(), outputs, config);
        let session = Session::new(Parts {
            record: Record::new(self.plan.clone()),
            events,
            screen: Screen::new(self.plan.len()),
            traffic: self.traffic.clone(),
            deliveries: Deliveries::new(filler, out, self.plan.clone()),
            existing,
            requests: link.requests.clone(),
            reconnector: self.options.terms.resumable.then_some(reconnector),
            bytes: backend.bytes.clone(),
            source: self.options.places.source.clone(),
            sources,
            upload: self.options.upload,
        });
        Ok((session, link))
    }

    async fn follow(
        &self,
        session: Session,
        link: Link,
        backend: &Backend,
        interrupt: &Interrupt,
    ) -> Ended {
        let troubles = session.troubles();
        let watch = async {
            let trouble = backend.failed().await;
            let _ = troubles.send(format!("the embedded worker failed: {trouble}")).await;
            std::future::pending::<Ended>().await
        };
        tokio::select! {
            ended = session.run(link.events, interrupt) => ended,
            ended = watch => ended,
        }
    }

    /// A build that never started.
    async fn refused(&self, failure: Failure, declared: u64) -> Result<Exit, Failure> {
        let outcome = match failure.exit {
            // Nothing was built, so there is nothing to sum up.
            Exit::USAGE => return Err(failure),
            Exit::NO_WORKER => wire::Outcome::NoWorker,
            Exit::CANCELLED => wire::Outcome::Cancelled,
            _ => wire::Outcome::InfraError,
        };
        let mut record = Record::new(self.plan.clone());
        record.close(outcome);
        match self.write_summary(&record, outcome, declared).await {
            Err(unwritten) if failure.exit != Exit::CANCELLED => {
                output::error(failure);
                Err(unwritten)
            }
            Err(unwritten) => {
                output::error(unwritten);
                Err(failure)
            }
            Ok(()) => Err(failure),
        }
    }

    async fn finish(
        &self,
        ended: &Ended,
        declared: u64,
        told: Result<(), Failure>,
    ) -> Result<Exit, Failure> {
        let mut exit = ended.exit;
        let summary = self.write_summary(&ended.record, ended.outcome, declared).await;
        for unwritten in [told, summary].into_iter().filter_map(Result::err) {
            exit = Exit::of_all([exit, unwritten.exit]);
            output::error(unwritten);
        }
        let record = &ended.record;
        let seconds = self.started.elapsed().as_secs_f64();
        let counts: Vec<String> =
            record.counts().map(|(word, count)| format!("{count} {word}")).collect();
        output::note(format_args!(
            "{}: {} jobs, {} in {seconds:.1} s",
            record::result_word(ended.outcome),
            record.plan().len(),
            counts.join(", "),
        ));
        Ok(exit)
    }

    async fn write_summary(
        &self,
        record: &Record,
        outcome: wire::Outcome,
        declared: u64,
    ) -> Result<(), Failure> {
        let Some(path) = self.options.places.summary.clone() else { return Ok(()) };
        let bytes = Bytes {
            declared,
            opened: record.bytes.opened,
            sent_by_client: self.traffic.sent(),
            from_peers: record.bytes.from_peers,
            from_backing_store: record.bytes.from_backing_store,
            prefetched: record.bytes.prefetched.unwrap_or_default().into(),
            outputs_received: self.traffic.received(),
        };
        let wall_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let text = Summary::new(record, outcome, wall_ms, bytes).to_text();
        blocking(move || {
            text.and_then(|text| summary::write(&path, &text)).map_err(|error| {
                Failure::infrastructure(format!("failed to write the summary {path:?}: {error}"))
            })
        })
        .await
    }
}

/// Waits for a call; after a while the user learns what is waited for.
async fn with_patience<T>(call: impl Future<Output = T>) -> T {
    let mut call = std::pin::pin!(call);
    if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut call).await {
        return answer;
    }
    output::note("waiting for the coordinator to accept the build");
    call.await
}

/// Work for a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Failure::infrastructure(error)))
}
