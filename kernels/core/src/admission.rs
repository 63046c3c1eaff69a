//! At the door: when a request is due, where it stands in the order, and whether the queue may take it. Pure.
//!
//! The same decisions as `headrace.scheduling.admission`, which says why; one file of golden vectors holds for both.

use crate::clock::{NEVER, Nanos};
use crate::codec::Request;
use crate::error::{Error, Result};
use crate::spec::Batching;

/// What one priority level is worth in the order of the queue.
const LEVEL_OFFSET: i64 = 3_600_000_000_000;
/// By how much an entry falls back whose queue policy says DELAY.
pub const BEHIND_EVERYONE: i64 = 1 << 62;
const LAST_KEY: i64 = NEVER - BEHIND_EVERYONE;

/// What push needs to foretell when a request will be done: a batch of r rows lasts `base + r * row`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    pub base: Nanos,
    pub row: Nanos,
    pub max_rows: u64,
    pub instances: usize,
}

impl Estimate {
    /// How long a batch of so many rows runs.
    pub fn lasts(&self, rows: u64) -> Nanos {
        self.base.saturating_add(times(rows, self.row))
    }

    /// When a request of `rows` rows will be done that `rows_ahead` rows go before, if an instance is idle at `free_at`.
    pub fn done_at(&self, rows_ahead: u64, rows: u64, free_at: Nanos, now: Nanos) -> Nanos {
        let total = rows_ahead.saturating_add(rows);
        let batches = total.div_ceil(self.max_rows.max(1));
        let work = times(batches, self.base).saturating_add(times(total, self.row));
        now.max(free_at).saturating_add(self.lasts(rows).max(work / self.instances.max(1) as i64))
    }
}

fn times(count: u64, each: i64) -> i64 {
    i64::try_from(count).unwrap_or(NEVER).saturating_mul(each)
}

/// What stands before a request: rows that are queued and go first, and when an instance is idle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    pub rows: u64,
    pub free_at: Nanos,
}

/// The bounds of a queue. A request that finds it empty is always taken, however large.
#[derive(Clone, Debug)]
pub struct Limits {
    pub requests: u64,
    pub rows: u64,
    pub nbytes: u64,
    pub estimate: Option<Estimate>,
}

/// What waits, or what an entry adds to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    pub requests: u64,
    pub rows: u64,
    pub nbytes: u64,
}

/// The times of an entry; `NEVER` where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    pub deadline: Nanos,
    pub target: Nanos,
    /// Who is predicted to be done later is refused.
    pub latest: Nanos,
    pub queue_until: Nanos,
    pub key: i64,
    pub level: u32,
}

/// When a request that arrives now is due, and where it stands in the order.
pub fn due(request: &Request, batching: &Batching, now: Nanos) -> Due {
    let mut level = 0;
    if batching.priority_levels > 0 {
        let is_level = (1..=batching.priority_levels).contains(&request.priority);
        let chosen = if is_level { request.priority } else { batching.default_priority };
        level = u32::try_from(chosen).unwrap_or(u32::MAX);
    }
    let policy = batching.policy_of(level);
    let mut deadline = request.deadline.unwrap_or(NEVER);
    let mut wait = policy.timeout;
    if policy.timeout > 0 && policy.allow_override {
        if (1..wait).contains(&request.timeout) {
            wait = request.timeout;
        }
    } else if request.timeout > 0 {
        deadline = deadline.min(request.received.saturating_add(request.timeout));
    }
    let target = deadline.min(request.received.saturating_add(batching.objective));
    let key = if batching.preserve_ordering { now } else { target.saturating_add(i64::from(level).saturating_mul(LEVEL_OFFSET)) };
    let queue_until = if wait > 0 { now.saturating_add(wait) } else { NEVER };
    let latest = match (wait > 0, batching.sheds_target) {
        (true, _) => NEVER,
        (false, true) => target,
        (false, false) => deadline,
    };
    Due { deadline, target, latest, queue_until, key: key.min(LAST_KEY), level }
}

/// Whether the queue may take a request.
///
/// `ahead` is asked for only where it counts.
pub fn check(
    id: &str,
    due: &Due,
    size: Depth,
    waiting: Depth,
    ahead: impl Fn(&Estimate) -> Ahead,
    limits: &Limits,
    now: Nanos,
) -> Result<()> {
    let overflows = waiting.requests + size.requests > limits.requests
        || waiting.rows + size.rows > limits.rows
        || waiting.nbytes + size.nbytes > limits.nbytes;
    if waiting.requests > 0 && overflows {
        return Err(Error::queue_full(id));
    }
    if let Some(estimate) = &limits.estimate
        && due.latest != NEVER
    {
        let ahead = ahead(estimate);
        let late = estimate.done_at(ahead.rows, size.rows, ahead.free_at, now).saturating_sub(due.latest);
        // Where nobody waits and an instance is idle there is nothing to save, and something to learn.
        if late > 0 && (waiting.requests > 0 || now < ahead.free_at) {
            return Err(Error::cannot_meet_deadline(Some(late)));
        }
    }
    Ok(())
}
