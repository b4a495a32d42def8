//! A fixed number of threads for what may block: disk reads and the answers that follow them.
//!
//! The queue is bounded. When it is full, the caller runs the job itself: whoever brings more work
//! than the threads do is slowed down, and nothing is lost.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};

type Job = Box<dyn FnOnce() + Send>;

const QUEUE_LIMIT: usize = 4096;

/// Ends its threads, after the queued jobs, when dropped.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    jobs: VecDeque<Job>,
    ended: bool,
}

impl Pool {
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), ended: false });
        let pool = Self { shared: Arc::new(Shared { queue, changed: Condvar::new() }) };
        for _ in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            thread::Builder::new().name("fs-blobs".into()).spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    pub(crate) fn run(&self, job: Job) {
        let mut queue = self.shared.queue.lock();
        if queue.ended || queue.jobs.len() >= QUEUE_LIMIT {
            drop(queue);
            return job();
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.changed.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue.lock();
            } else if queue.ended {
                return;
            } else {
                self.changed.wait(&mut queue);
            }
        }
    }
}
