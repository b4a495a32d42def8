//! A worker, its coordinator, and how a test describes a job.

use std::time::Duration;

use bytes::Bytes;
use distbuild_proto::action::{Action, ActionParts, ExecStep, Layout, Step, input_root};
use distbuild_proto::graph::{Platform, Resources};
use distbuild_proto::wire::to_worker;
use distbuild_proto::{Digest, DigestFunction, Directory, FileNode, Name, RelPath, wire};
use distbuild_worker::{RunningWorker, Worker, WorkerConfig};
use tempfile::TempDir;

use crate::fake::{Connection, Fake, within};

pub(crate) struct Rig {
    pub(crate) directory: TempDir,
    pub(crate) fake: Fake,
    pub(crate) worker: RunningWorker,
    pub(crate) link: Connection,
}

/// A job: a script for the shell, and what it can see.
pub(crate) struct Job<'a> {
    pub(crate) script: &'a str,
    pub(crate) source: Option<Digest>,
    pub(crate) deps: Vec<wire::TreeHint>,
    pub(crate) timeout: Duration,
}

impl<'a> Job<'a> {
    pub(crate) fn new(script: &'a str) -> Self {
        Self { script, source: None, deps: Vec::new(), timeout: Duration::from_secs(60) }
    }

    pub(crate) fn action(&self) -> (Action, Vec<Bytes>) {
        let argv =
            ["/bin/sh", "-c", self.script].map(|word| Bytes::copy_from_slice(word.as_bytes()));
        let environ = vec![Bytes::from_static(b"PATH=/usr/bin:/bin")];
        let directory = Bytes::from_static(b"/distbuild/src");
        let step = ExecStep::new(argv.into(), environ, directory).unwrap();
        self.action_of(vec![Step::Exec(step)])
    }

    fn action_of(&self, steps: Vec<Step>) -> (Action, Vec<Bytes>) {
        let roots: Vec<_> =
            self.deps.iter().map(|dep| Digest::try_from(dep.root.clone()).unwrap()).collect();
        let (root, blobs) = input_root(self.source, &roots, DigestFunction::Blake3).unwrap();
        let action = Action::new(ActionParts {
            layout: Layout::Native,
            steps,
            input_root: root,
            output_paths: vec![],
            platform: Platform::new([("os", "linux")]),
            timeout: Some(self.timeout),
            resources: Resources::default(),
            network: false,
            toolchain: String::new(),
            salt: String::new(),
            declared_id: None,
        });
        (action.unwrap(), blobs.into_iter().map(|(_, blob)| blob).collect())
    }

    pub(crate) fn assign(self, attempt: u64) -> to_worker::Body {
        let made = self.action();
        self.assign_action(attempt, made)
    }

    /// Only what is around the commands of a job.
    pub(crate) fn assign_without_commands(self, attempt: u64) -> to_worker::Body {
        let made = self.action_of(Vec::new());
        self.assign_action(attempt, made)
    }

    /// The same for an action that may change its input root, which is the source tree, and has an output in it.
    pub(crate) fn assign_in_root_without_commands(self, attempt: u64) -> to_worker::Body {
        let (native, _) = self.action_of(Vec::new());
        let output = RelPath::new(b"out/file").unwrap();
        let action = Action::new(ActionParts {
            layout: Layout::Root,
            input_root: self.source.unwrap(),
            output_paths: vec![output],
            ..(*native).clone()
        });
        self.assign_action(attempt, (action.unwrap(), Vec::new()))
    }

    fn assign_action(
        self,
        attempt: u64,
        (action, directories): (Action, Vec<Bytes>),
    ) -> to_worker::Body {
        to_worker::Body::Assign(wire::Assign {
            attempt,
            job_name: format!("job {attempt}"),
            action: Some(action.to_wire()),
            directories,
            deps: self.deps,
            digest_function: DigestFunction::Blake3 as i32,
            build_ids: vec!["build".to_owned()],
            unrecorded: false,
            origin: None,
        })
    }
}

impl Rig {
    /// A worker that has been welcomed.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(configure: impl FnOnce(&mut WorkerConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut fake = Fake::start(directory.path()).await;
        let mut config =
            WorkerConfig::new(fake.address.clone(), "w1", directory.path().join("state"));
        // No test is about the toolchain, and computing its name takes a while.
        config.properties.insert("toolchain".to_owned(), "t".to_owned());
        configure(&mut config);
        let welcomed = async {
            let link = fake.connection().await;
            link.welcome(1, false).await;
            link
        };
        // Fails at once, and not when nobody was welcomed for long.
        let started = async { Worker::start(config).await.unwrap() };
        let (worker, link) = within(async { tokio::join!(started, welcomed) }).await;
        Self { directory, fake, worker, link }
    }

    /// Runs a job to its end.
    pub(crate) async fn run(&mut self, attempt: u64, job: Job<'_>) -> wire::AttemptEnded {
        self.link.send(job.assign(attempt)).await;
        let (ended, _) = self.link.end().await;
        assert_eq!(ended.attempt, attempt);
        self.link.acknowledge(attempt).await;
        ended
    }

    /// A source tree of one file, which only the client of build `b1` has.
    pub(crate) fn source(&self, name: &str, contents: &[u8]) -> (Digest, Digest) {
        let file = self.fake.store(contents);
        let lender = wire::located::Place::LenderBuild("b1".to_owned());
        self.fake.place(file, lender);
        (self.fake.store(&tree(name, file)), file)
    }
}

/// An encoded directory of one file.
pub(crate) fn tree(name: &str, digest: Digest) -> Bytes {
    let name = Name::new(name.as_bytes()).unwrap();
    Directory::new(vec![FileNode { name, digest, executable: false }], vec![], vec![])
        .unwrap()
        .encode()
}

/// What a stream of a result holds, if it is in the message.
pub(crate) fn text(content: &Option<wire::Content>) -> String {
    String::from_utf8(content.as_ref().unwrap().inline.to_vec()).unwrap()
}

/// A dependency with this output tree.
pub(crate) fn dep(root: &Option<wire::Digest>) -> wire::TreeHint {
    wire::TreeHint { root: root.clone(), peer_addresses: vec![], local: true }
}
