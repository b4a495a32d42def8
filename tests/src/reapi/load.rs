//! Many small actions on a farm: how many a second, and how long each takes.
//!
//! No two actions are equal, so that nothing is cached, and everything they need is stored before the clock starts,
//! except where a run is told to do all that a build tool does for each action.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bazel_remote_apis::build::bazel::remote::execution::v2 as reapi;
use prost::Message as _;
use tokio::task::JoinSet;

use super::client::{Client, ClientError, digest};
use super::tree::InputTree;

/// What an action looks like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Files in its input root.
    pub input_files: usize,
    /// Size of each.
    pub file_bytes: usize,
    /// How many of them its command reads; with none, the command is `/bin/true`.
    pub read_files: usize,
    /// Each action has an input root of its own, which shares all its directories with the others.
    pub distinct_roots: bool,
}

/// How many actions are run, and how.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// How many.
    pub actions: usize,
    /// How many at a time.
    pub concurrency: usize,
    /// Before an action is executed, its result is looked up, what is missing is asked, and that is uploaded, as
    /// build tools do, and the time of it counts.
    pub whole_client: bool,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Report {
    /// From the first action's begin to the last one's end.
    pub elapsed: Duration,
    /// Of each action, shortest first.
    latencies: Vec<Duration>,
}

/// A load whose input tree a server has.
#[derive(Debug)]
pub struct Prepared {
    client: Client,
    load: Load,
    tree: InputTree,
    command: reapi::Digest,
    actions_made: AtomicUsize,
}

/// An action, its digest, and its input root if that is its own.
struct Action {
    digest: reapi::Digest,
    blobs: Vec<Vec<u8>>,
}

impl Load {
    /// Stores the input tree and the command.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn prepare(self, client: &Client) -> Result<Prepared, ClientError> {
        let tree = InputTree::new(self.input_files, self.file_bytes);
        let arguments = match tree.some(self.read_files) {
            paths if paths.is_empty() => vec!["/bin/true".to_owned()],
            paths => ["/bin/sh", "-c", "exec cat \"$@\" > /dev/null", "cat"]
                .into_iter()
                .map(String::from)
                .chain(paths)
                .collect(),
        };
        let path = reapi::command::EnvironmentVariable {
            name: "PATH".into(),
            value: "/usr/bin:/bin".into(),
        };
        let command =
            reapi::Command { arguments, environment_variables: vec![path], ..Default::default() };
        let command = command.encode_to_vec();
        let command_digest = digest(&command);
        let blobs = tree.blobs().chain([tree.root(None), command, Vec::new()]);
        client.upload(blobs).await?;
        Ok(Prepared {
            client: client.clone(),
            load: self,
            tree,
            command: command_digest,
            actions_made: AtomicUsize::new(0),
        })
    }
}

impl Prepared {
    /// Runs actions, none of which was run before.
    ///
    /// # Errors
    /// The server refuses one, or its command fails.
    pub async fn run(self: &Arc<Self>, run: Run) -> Result<Report, ClientError> {
        let actions: Vec<Action> = (0..run.actions).map(|_| self.action()).collect();
        if !run.whole_client {
            let blobs = actions.iter().flat_map(|action| action.blobs.iter().cloned());
            self.client.upload(blobs).await?;
        }
        let (actions, next) = (Arc::new(actions), Arc::new(AtomicUsize::new(0)));
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..run.concurrency {
            let (prepared, actions, next) = (self.clone(), actions.clone(), next.clone());
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                while let Some(action) = actions.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    prepared.one(action, run.whole_client).await?;
                    latencies.push(began.elapsed());
                }
                Ok::<_, ClientError>(latencies)
            });
        }
        let mut latencies = Vec::with_capacity(run.actions);
        while let Some(ended) = tasks.join_next().await {
            let ended = ended.map_err(|_| ClientError::Protocol("a task of the load panicked"))?;
            latencies.extend(ended?);
        }
        let elapsed = started.elapsed();
        latencies.sort_unstable();
        Ok(Report { elapsed, latencies })
    }

    async fn one(&self, action: &Action, whole_client: bool) -> Result<(), ClientError> {
        if whole_client {
            if self.client.cached(&action.digest).await?.is_some() {
                return Err(ClientError::Protocol("an action that never ran is cached"));
            }
            let digests: Vec<_> = action.blobs.iter().map(|blob| digest(blob)).collect();
            let missing = self.client.find_missing(&digests).await?;
            let mut blobs = action.blobs.clone();
            blobs.retain(|blob| missing.contains(&digest(blob)));
            self.client.upload(blobs).await?;
        }
        let response = self.client.execute(&action.digest).await?;
        match response.result {
            _ if response.cached_result => {
                Err(ClientError::Protocol("an action that never ran has a cached result"))
            }
            Some(result) if result.exit_code == 0 => Ok(()),
            Some(result) => Err(ClientError::NotExecuted {
                code: result.exit_code,
                message: "the command failed".into(),
            }),
            None => Err(ClientError::Protocol("an executed action has no result")),
        }
    }

    /// One that no server has seen.
    fn action(&self) -> Action {
        let number = self.actions_made.fetch_add(1, Ordering::Relaxed);
        let salt = format!("{number} {}", unique());
        let mark = self.load.distinct_roots.then(|| format!("mark-{number}"));
        let root = self.tree.root(mark.as_deref());
        let action = reapi::Action {
            command_digest: Some(self.command.clone()),
            input_root_digest: Some(digest(&root)),
            salt: salt.into_bytes(),
            ..Default::default()
        };
        let action = action.encode_to_vec();
        let action_digest = digest(&action);
        let root = self.load.distinct_roots.then_some(root);
        Action { digest: action_digest, blobs: root.into_iter().chain([action]).collect() }
    }
}

/// Another text in every process.
fn unique() -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} {}", std::process::id(), since_epoch.as_nanos())
}

impl Report {
    /// Actions a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that so many of a hundred actions do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.latencies.len() * percent).div_ceil(100);
        self.latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// The latency in the middle.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_latencies_that_were_seen() {
        let latencies = (1..=200).map(Duration::from_millis).collect();
        let report = Report { elapsed: Duration::from_secs(2), latencies };
        assert_eq!(report.rate(), 100.0);
        assert_eq!(report.median(), Duration::from_millis(100));
        assert_eq!(report.percentile(99), Duration::from_millis(198));
        assert_eq!(report.percentile(100), Duration::from_millis(200));
    }
}
