//! The coordinator over HTTP: health for load balancers, metrics for Prometheus, a page for people.
//!
//! It reads, and never steers. What it shows it asks the coordinator for over gRPC, as anybody could.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use distbuild_proto::transport::{Listener, endpoint};
use distbuild_proto::wire::builds_client::BuildsClient;
use distbuild_proto::wire::{ListWorkersRequest, StatusRequest, StatusResponse, WorkerInfo};
use distbuild_proto::{Address, transport};
use futures::StreamExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::build::deliver::with_causes;
use crate::exit::Failure;

/// Connections at a time.
const CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
const REQUEST: Duration = Duration::from_secs(10);
/// How long the coordinator may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// The page, served until it is dropped.
#[derive(Debug)]
pub(crate) struct StatusPage {
    address: Address,
    server: JoinHandle<()>,
}

impl StatusPage {
    /// Serves the state of `coordinator` at `address`.
    ///
    /// # Errors
    /// The address cannot be listened at.
    pub(crate) async fn serve(address: &Address, coordinator: &Address) -> Result<Self, Failure> {
        let listener = Listener::bind(address).await.map_err(|error| {
            Failure::infrastructure(format!("failed to listen at {address}: {error}"))
        })?;
        let address = listener.address().clone();
        let channel = endpoint(coordinator)
            .map_err(|error| Failure::infrastructure(with_causes(&error)))?
            .connect_lazy();
        let builds =
            BuildsClient::new(channel).max_decoding_message_size(transport::MAX_MESSAGE_BYTES);
        let server = tokio::spawn(accept(listener, builds));
        Ok(Self { address, server })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for StatusPage {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(mut listener: Listener, builds: BuildsClient<Channel>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let connection = match listener.next().await {
            Some(Ok(connection)) => connection,
            Some(Err(error)) => {
                tracing::warn!(%error, "failed to accept a connection");
                // Out of descriptors, most likely: others have to go first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            None => return,
        };
        let builds = builds.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, builds.clone()));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST)
                .serve_connection(TokioIo::new(connection), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "an HTTP connection broke");
            }
            drop(permit);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    builds: BuildsClient<Channel>,
) -> Result<Response<String>, Infallible> {
    let readable = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, kind, text) = match request.uri().path() {
        _ if !readable => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned()),
        "/healthz" => match ask(builds).await {
            Ok(_) => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
            Err(error) => unavailable(&error),
        },
        "/metrics" => match ask(builds).await {
            Ok((status, workers)) => {
                (StatusCode::OK, "text/plain; version=0.0.4", metrics(&status, &workers))
            }
            Err(error) => unavailable(&error),
        },
        "/" => match ask(builds).await {
            Ok((status, workers)) => (StatusCode::OK, "text/html", page(&status, &workers)),
            Err(error) => unavailable(&error),
        },
        _ => (StatusCode::NOT_FOUND, "text/plain", "not found\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

fn unavailable(error: &Status) -> (StatusCode, &'static str, String) {
    (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{}\n", error.message()))
}

async fn ask(
    mut builds: BuildsClient<Channel>,
) -> Result<(StatusResponse, Vec<WorkerInfo>), Status> {
    let asked = async {
        let status = builds.status(StatusRequest {}).await?.into_inner();
        let workers = builds.list_workers(ListWorkersRequest {}).await?.into_inner().workers;
        Ok((status, workers))
    };
    let late = |_| Err(Status::deadline_exceeded("the coordinator does not answer"));
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(late)
}

/// The text format of Prometheus, version 0.0.4.
fn metrics(status: &StatusResponse, workers: &[WorkerInfo]) -> String {
    let mut text = String::new();
    let jobs = [
        ("queued", status.queued_jobs),
        ("running", status.running_jobs),
        ("waiting", status.waiting_jobs),
    ];
    text.push_str("# HELP distbuild_jobs Jobs of running builds by state.\n");
    text.push_str("# TYPE distbuild_jobs gauge\n");
    for (state, count) in jobs {
        let _ = writeln!(text, "distbuild_jobs{{state=\"{state}\"}} {count}");
    }
    let gauges = [
        ("distbuild_builds", "Builds that run.", status.builds.len() as u64),
        ("distbuild_workers", "Workers that are connected.", u64::from(status.workers)),
        (
            "distbuild_workers_draining",
            "Workers that take no new jobs.",
            workers.iter().filter(|worker| worker.draining).count() as u64,
        ),
        (
            "distbuild_offered_millicores",
            "Thousandths of cores that connected workers offer.",
            workers.iter().map(|worker| u64::from(worker.milli_cores)).sum(),
        ),
    ];
    for (name, help, value) in gauges {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
    let _ = write!(
        text,
        "# HELP distbuild_stalls_total Jobs that stayed queued although a worker had room for them.\n\
         # TYPE distbuild_stalls_total counter\ndistbuild_stalls_total {}\n",
        status.stalls
    );
    text
}

fn page(status: &StatusResponse, workers: &[WorkerInfo]) -> String {
    let mut text = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>distbuild</title>\
         <style>body{font:14px sans-serif;margin:2em}td,th{padding:.2em 1em .2em 0;text-align:left}\
         </style><h1>distbuild</h1>",
    );
    let _ = write!(
        text,
        "<p>{} jobs queued, {} running, {} waiting</p><h2>Builds</h2><table><tr><th>id<th>graph<th>user<th>jobs",
        status.queued_jobs, status.running_jobs, status.waiting_jobs
    );
    for build in &status.builds {
        let _ = write!(
            text,
            "<tr><td>{}<td>{}<td>{}<td>{}/{}",
            escaped(&build.build_id),
            escaped(&build.title),
            escaped(&build.user),
            build.finished_jobs,
            build.total_jobs
        );
    }
    text.push_str("</table><h2>Workers</h2><table><tr><th>name<th>jobs<th>cores<th>state");
    for worker in workers {
        let _ = write!(
            text,
            "<tr><td>{}<td>{}<td>{}<td>{}",
            escaped(&worker.name),
            worker.running_jobs,
            f64::from(worker.milli_cores) / 1000.0,
            if worker.draining { "draining" } else { "ready" }
        );
    }
    text.push_str("</table></html>\n");
    text
}

/// Text that means nothing to a browser.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use distbuild_proto::wire::BuildSummary;

    use super::*;

    fn status() -> StatusResponse {
        let build =
            BuildSummary { build_id: "b1".into(), title: "<x>.json".into(), ..Default::default() };
        StatusResponse { queued_jobs: 3, workers: 1, builds: vec![build], ..Default::default() }
    }

    #[test]
    fn metrics_have_a_type_and_a_value_each() {
        let worker = WorkerInfo { milli_cores: 4000, draining: true, ..Default::default() };
        let text = metrics(&status(), &[worker]);
        assert!(text.contains("\ndistbuild_jobs{state=\"queued\"} 3\n"));
        assert!(text.contains("\n# TYPE distbuild_builds gauge\ndistbuild_builds 1\n"));
        assert!(text.contains("\ndistbuild_workers_draining 1\n"));
        assert!(text.contains("\ndistbuild_offered_millicores 4000\n"));
        assert!(
            text.contains("\n# TYPE distbuild_stalls_total counter\ndistbuild_stalls_total 0\n")
        );
    }

    #[test]
    fn what_users_wrote_is_no_markup() {
        let text = page(&status(), &[]);
        assert!(text.contains("&lt;x&gt;.json") && !text.contains("<x>"));
    }
}
