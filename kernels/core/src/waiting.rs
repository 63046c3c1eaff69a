//! The entries of one queue: in what order they wait, in which lanes, until when. All of it is guarded by the queue's lock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::admission::{BEHIND_EVERYONE, Before, Depth};
use crate::clock::{NEVER, Nanos};
use crate::entry::{Entry, Fate, Lane, Settlement};

/// What waits for one version, and what is known of those that were taken.
#[derive(Default)]
pub struct State {
    /// By key and number.
    pub order: BTreeMap<(i64, u64), Before>,
    pub waiting: FxHashMap<u64, Box<Entry>>,
    pub overdue: BinaryHeap<Reverse<(Nanos, u64)>>,
    /// Busy lanes: those behind the one that is under way, by number.
    pub lanes: FxHashMap<Lane, VecDeque<u64>>,
    pub depth: Depth,
    pub in_level: FxHashMap<u32, usize>,
    /// Requests of each class that came while it was shed.
    pub came: FxHashMap<u32, u64>,
    /// Rows that wait, by bucket.
    pub in_bucket: FxHashMap<u64, u64>,
    /// Settlements of local entries that were answered, until the caller says that it has the answer.
    pub handed: FxHashMap<u64, Settlement>,
    /// The fates of local entries that are not settled.
    pub local_fates: FxHashMap<u64, Arc<Fate>>,
    /// Entries of batches that were taken apart, which are neither cancelled nor settled.
    pub parted: FxHashSet<u64>,
    pub numbers: u64,
    pub batches: u64,
    pub unsettled: usize,
    pub running: usize,
    /// By instance, the last batch it took, and when it is predicted to be idle again.
    pub free_at: FxHashMap<u16, (u64, Nanos)>,
    pub turn_open: bool,
    pub has_news: bool,
    pub is_closed: bool,
}

impl State {
    /// An instance is done with a batch. It may have taken the next already, when the answers of this one were kept.
    pub fn done(&mut self, instance: u16, batch: u64) {
        let last = self.free_at.entry(instance).or_default();
        if last.0 <= batch {
            *last = (batch, 0);
        }
    }

    pub fn count(&mut self, entry: &Entry, enters: bool) {
        let (size, depth) = (entry.size(), &mut self.depth);
        let level = self.in_level.entry(entry.due.level).or_default();
        let bucket = self.in_bucket.entry(entry.admitted.bucket).or_default();
        if enters {
            *level += 1;
            *bucket += size.rows;
            *depth = Depth { requests: depth.requests + 1, rows: depth.rows + size.rows, nbytes: depth.nbytes + size.nbytes };
        } else {
            *level -= 1;
            *bucket -= size.rows;
            if *bucket == 0 {
                self.in_bucket.remove(&entry.admitted.bucket);
            }
            *depth = Depth { requests: depth.requests - 1, rows: depth.rows - size.rows, nbytes: depth.nbytes - size.nbytes };
        }
    }

    /// Into the order, or behind the others of its lane.
    pub fn line_up(&mut self, mut entry: Box<Entry>) {
        let number = entry.number;
        if let Some(lane) = &entry.lane {
            if let Some(behind) = self.lanes.get_mut(lane) {
                behind.push_back(number);
                entry.is_parked = true;
                self.waiting.insert(number, entry);
                return;
            }
            self.lanes.insert(lane.clone(), VecDeque::new());
        }
        self.waiting.insert(number, entry);
        self.show(number);
    }

    pub fn show(&mut self, number: u64) {
        if let Some(entry) = self.waiting.get_mut(&number) {
            entry.is_parked = false;
            let before = Before { bucket: entry.admitted.bucket, rows: entry.size().rows, deadline: entry.due.deadline };
            self.order.insert((entry.key, number), before);
            self.has_news = true;
        }
    }

    /// Remember when to expire an entry; true when that is earlier than all others.
    pub fn note_overdue(&mut self, number: u64, at: Nanos) -> bool {
        if at == NEVER {
            return false;
        }
        if self.overdue.len() > 2 * self.waiting.len() + 1024 {
            // Those that were answered in time are still in here: far deadlines at a high rate would pile up.
            let waiting = &self.waiting;
            self.overdue.retain(|Reverse((_, number))| waiting.contains_key(number));
        }
        let is_first = self.overdue.peek().is_none_or(|Reverse((first, _))| at < *first);
        self.overdue.push(Reverse((at, number)));
        is_first
    }

    /// Behind everyone whose time is not over, until its deadline if it has one.
    pub fn postpone(&mut self, number: u64) {
        let Some(entry) = self.waiting.get_mut(&number) else {
            return;
        };
        let (key, is_parked, deadline) = (entry.key, entry.is_parked, entry.due.deadline);
        entry.key += BEHIND_EVERYONE;
        if !is_parked {
            self.order.remove(&(key, number));
            self.show(number);
        }
        self.note_overdue(number, deadline);
    }

    /// Out of the queue, into a batch or to be answered. Its lane stays busy until it is settled.
    pub fn leave(&mut self, number: u64) -> Option<Box<Entry>> {
        let mut entry = self.waiting.remove(&number)?;
        if !entry.is_parked {
            self.order.remove(&(entry.key, number));
        } else if let Some(lane) = entry.lane.take() {
            if let Some(behind) = self.lanes.get_mut(&lane) {
                behind.retain(|other| *other != number);
            }
            if let Some(settlement) = &mut entry.settlement {
                settlement.leave_lane();
            }
        }
        self.count(&entry, false);
        Some(entry)
    }

    /// The one under way in this lane is settled: the next comes into the order. True when somebody should look.
    pub fn free_lane(&mut self, lane: &str) -> bool {
        let Some(behind) = self.lanes.get_mut(lane) else {
            return false;
        };
        match behind.pop_front() {
            Some(next) => self.show(next),
            None => {
                self.lanes.remove(lane);
            }
        }
        true
    }
}
