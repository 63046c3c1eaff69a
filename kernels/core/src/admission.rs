//! At the door: when a request is due, where it stands in the order, and whether the queue may take it. Pure.
//!
//! The same decisions as `headrace.scheduling.admission`, which says why; one file of golden vectors holds for both.

use rustc_hash::FxHashMap;

use crate::clock::{NEVER, Nanos};
use crate::codec::Request;
use crate::error::{Error, Result};
use crate::spec::Batching;

/// What one priority level is worth in the order of the queue.
const LEVEL_OFFSET: i64 = 3_600_000_000_000;
/// By how much an entry falls back whose queue policy says DELAY.
pub const BEHIND_EVERYONE: i64 = 1 << 62;
const LAST_KEY: i64 = NEVER - BEHIND_EVERYONE;

/// A batch of r rows of one bucket lasts `base + r * row`, and has at most `max_rows`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub base: Nanos,
    pub row: Nanos,
    pub max_rows: u64,
}

impl Line {
    fn lasts(&self, rows: u64) -> Nanos {
        self.base.saturating_add(times(rows, self.row))
    }

    /// How long it takes to run so many rows in as few batches as possible.
    fn work(&self, rows: u64) -> Nanos {
        times(rows.div_ceil(self.max_rows.max(1)), self.base).saturating_add(times(rows, self.row))
    }
}

/// What push needs to foretell when a request will be done: lines by bucket. One without a line counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    pub lines: FxHashMap<u64, Line>,
    pub instances: usize,
    /// What the way back takes at most.
    pub margin: Nanos,
}

impl Estimate {
    /// How long a batch of so many rows runs; 0 if it is not known.
    pub fn lasts(&self, bucket: u64, rows: u64) -> Nanos {
        self.lines.get(&bucket).map_or(0, |line| line.lasts(rows))
    }
}

/// What rows take to run, added up: in full batches of one bucket each, shared evenly by the instances.
pub struct Work<'a> {
    estimate: &'a Estimate,
    begins: Nanos,
    /// By bucket: rows, and how long they take. Few: a list is quicker than a map.
    by_bucket: Vec<(u64, u64, Nanos)>,
    total: Nanos,
}

impl<'a> Work<'a> {
    /// `begins`: when the first instance is idle.
    pub fn new(estimate: &'a Estimate, begins: Nanos) -> Work<'a> {
        Work { estimate, begins, by_bucket: Vec::new(), total: 0 }
    }

    /// These rows of one request as well, unless they would be done after `by`.
    pub fn add(&mut self, bucket: u64, rows: u64, by: Nanos) {
        let Some(line) = self.estimate.lines.get(&bucket) else {
            return;
        };
        let place = self.by_bucket.iter().position(|(known, ..)| *known == bucket).unwrap_or_else(|| {
            self.by_bucket.push((bucket, 0, 0));
            self.by_bucket.len() - 1
        });
        let (_, before, lasted) = self.by_bucket[place];
        let count = before.saturating_add(rows);
        let lasts = line.work(count);
        let total = self.total.saturating_sub(lasted).saturating_add(lasts);
        if self.done(total, line.lasts(rows)) <= by {
            self.by_bucket[place] = (bucket, count, lasts);
            self.total = total;
        }
    }

    /// When all of it is done; `lasts` is what a batch takes that cannot be shared.
    pub fn done_at(&self, lasts: Nanos) -> Nanos {
        self.done(self.total, lasts)
    }

    fn done(&self, total: Nanos, lasts: Nanos) -> Nanos {
        self.begins.saturating_add(lasts.max(total / self.estimate.instances.max(1) as i64))
    }
}

fn times(count: u64, each: i64) -> i64 {
    i64::try_from(count).unwrap_or(NEVER).saturating_mul(each)
}

/// The bounds of a queue. A request that finds it empty is always taken, however large.
#[derive(Clone, Debug)]
pub struct Limits {
    pub requests: u64,
    pub rows: u64,
    pub nbytes: u64,
    /// How many requests may wait before one without a deadline is refused.
    pub undated: u64,
    pub estimate: Option<Estimate>,
    /// Of each class that is shed, how many of `SHARE_OF` of its requests are refused.
    pub shed: FxHashMap<u32, u32>,
}

/// Of how many a share is told.
pub const SHARE_OF: u64 = 1024;

/// Whether the `nth`, counted from 1, falls into a share of so many of `SHARE_OF`, evenly spread.
pub fn in_share(nth: u64, share: u32) -> bool {
    let upto = |count: u64| count.wrapping_mul(u64::from(share)) / SHARE_OF;
    nth > 0 && upto(nth) > upto(nth - 1)
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

/// The class of a request; 0 where the model has none.
pub fn level_of(request: &Request, batching: &Batching) -> u32 {
    if batching.priority_levels == 0 {
        return 0;
    }
    let is_level = (1..=batching.priority_levels).contains(&request.priority);
    let chosen = if is_level { request.priority } else { batching.default_priority };
    u32::try_from(chosen).unwrap_or(u32::MAX)
}

/// When a request that arrives now is due, and where it stands in the order.
pub fn due(request: &Request, batching: &Batching, now: Nanos) -> Due {
    let level = level_of(request, batching);
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

/// A request at the door: when it is due, what it adds to what waits, and whom it may share a batch with.
#[derive(Clone, Copy)]
pub struct Newcomer<'a> {
    pub id: &'a str,
    pub due: &'a Due,
    pub size: Depth,
    pub bucket: u64,
}

/// Who goes before a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    pub bucket: u64,
    pub rows: u64,
    pub deadline: Nanos,
}

/// What stands before a request, and when an instance is idle.
pub struct Ahead<W, F> {
    /// Everything that is queued, known without looking: buckets and rows.
    pub waiting: W,
    /// Those of it who go before the request, in order.
    pub first: F,
    pub free_at: Nanos,
}

/// Whether the queue may take a request.
pub fn check(
    new: Newcomer<'_>,
    waiting: Depth,
    ahead: Ahead<impl Iterator<Item = (u64, u64)>, impl Iterator<Item = Before>>,
    limits: &Limits,
    now: Nanos,
) -> Result<()> {
    let (due, size) = (new.due, new.size);
    let overflows = waiting.requests + size.requests > limits.requests
        || waiting.rows + size.rows > limits.rows
        || waiting.nbytes + size.nbytes > limits.nbytes
        || (due.deadline == NEVER && waiting.requests + size.requests > limits.undated);
    if waiting.requests > 0 && overflows {
        return Err(Error::queue_full(new.id));
    }
    // Where nobody waits and an instance is idle there is nothing to save, and something to learn.
    if let Some(estimate) = &limits.estimate
        && due.latest != NEVER
        && (waiting.requests > 0 || now < ahead.free_at)
    {
        let late = lateness(estimate, new, ahead, now);
        if late > 0 {
            return Err(Error::cannot_meet_deadline(Some(late)));
        }
    }
    Ok(())
}

/// By how much a request will be done after `latest`; at most 0 if it will be in time.
pub fn lateness(
    estimate: &Estimate,
    new: Newcomer<'_>,
    ahead: Ahead<impl Iterator<Item = (u64, u64)>, impl Iterator<Item = Before>>,
    now: Nanos,
) -> Nanos {
    let (bucket, rows) = (new.bucket, new.size.rows);
    if !estimate.lines.contains_key(&bucket) {
        return 0;
    }
    let (latest, begins) = (new.due.latest.saturating_sub(estimate.margin), now.max(ahead.free_at));
    let lasts = estimate.lasts(bucket, rows);
    let mut work = Work::new(estimate, begins);
    work.add(bucket, rows, NEVER);
    ahead.waiting.for_each(|(other, count)| work.add(other, count, NEVER));
    let late = work.done_at(lasts).saturating_sub(latest);
    if late <= 0 {
        return late;
    }
    let mut work = Work::new(estimate, begins);
    for before in ahead.first {
        // Who will be late himself will be dropped.
        work.add(before.bucket, before.rows, before.deadline.saturating_sub(estimate.margin));
        if work.done_at(0) > latest {
            break;
        }
    }
    work.add(bucket, rows, NEVER);
    work.done_at(lasts).saturating_sub(latest)
}
