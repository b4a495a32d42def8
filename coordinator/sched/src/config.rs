//! `Config`: every limit of the scheduler, by name, with its default.

/// Limits and waits. All times are milliseconds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Attempts of one execution that may end in a counted infrastructure error or out of memory
    /// before its jobs end so too. Default 3.
    pub max_attempts: u8,
    /// Attempts that may end because inputs were lost, on top of `max_attempts`. Default 3.
    pub max_lost_inputs: u8,
    /// Attempts that workers may reject, on top of `max_attempts`. Default 8.
    pub max_rejections: u8,
    /// How often the outputs of one job are made again after all copies were lost. Default 3.
    pub max_remakes: u8,
    /// Workers that may vanish under one execution before it is held to be the cause. Default 2.
    pub quarantine_after: u8,
    /// How long a ready job may wait for the worker that holds most of its inputs while another
    /// one is free. Default 200 ms.
    pub locality_wait_ms: u64,
    /// How many jobs may wait for one worker's locality; more go anywhere at once, since a worker
    /// cannot take a longer line within `locality_wait_ms` anyway. Default 64.
    pub locality_line: usize,
    /// How long a retried job waits for a worker where it has not gone wrong, while those that could
    /// take it are busy. With no such worker online it does not wait. Default 60 s.
    pub retry_elsewhere_ms: u64,
    /// After so many infrastructure errors in a row for which a worker may be to blame, it is
    /// suspect: it runs one attempt at a time, and only what has no room elsewhere, until an attempt
    /// shows that it can run jobs. 0 counts as 1. Default 3.
    pub suspect_after: u32,
    /// How long jobs wait while no online worker could ever take them. Default 10 min.
    pub queue_timeout_ms: u64,
    /// How long a job that does not fit may be overtaken by later ones before a worker is kept
    /// free for it. Default 10 s.
    pub reserve_after_ms: u64,
    /// At most one worker in this many is kept free at a time (but one always may be). Default 4.
    pub reserve_one_in: u32,
    /// A user's queue that has started nothing for this long comes before every class. Default 30 s.
    pub ageing_ms: u64,
    /// Look-ups the driver is asked for at a time; the others wait, round robin over builds.
    /// Default 1024.
    pub max_lookups: u32,
    /// Distinct requests (selector and resources) that get a queue of their own; beyond that, new
    /// ones share queues with requests of nearly their size. Bounds the cost of a decision.
    /// Default 256.
    pub max_exact_shapes: usize,
    /// How long a job may be queued while a worker has room for it before the watchdog reports that
    /// and has the queue decided on anew; it looks this often, so it may take twice as long. Never
    /// reached unless the scheduler has lost a wake-up. Default 10 s.
    pub stall_after_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            max_lost_inputs: 3,
            max_rejections: 8,
            max_remakes: 3,
            quarantine_after: 2,
            locality_wait_ms: 200,
            locality_line: 64,
            retry_elsewhere_ms: 60_000,
            suspect_after: 3,
            queue_timeout_ms: 10 * 60 * 1000,
            reserve_after_ms: 10_000,
            reserve_one_in: 4,
            ageing_ms: 30_000,
            max_lookups: 1024,
            max_exact_shapes: 256,
            stall_after_ms: 10_000,
        }
    }
}
