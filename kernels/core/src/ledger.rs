//! One fixed-size record per request and per batch, in the layout of `headrace.ledger.ledger`.
//!
//! Written by whoever settles, under one lock, and read in bulk. A ledger that nobody reads holds up those who would make more
//! of it – instances before their next turn, the I/O thread before it turns a request away – rather than lose a record. Whoever
//! settles does not wait: he may hold a connection, or be the reader.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::news::News;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    Answered = 0,
    Failed = 1,
    Refused = 2,
    Invalid = 3,
    Expired = 4,
    Cancelled = 5,
}

impl Outcome {
    /// The outcome of this number; FAILED for one that there is not.
    pub fn from_number(number: u8) -> Outcome {
        use Outcome::*;
        [Answered, Failed, Refused, Invalid, Expired, Cancelled].get(number as usize).copied().unwrap_or(Failed)
    }
}

/// Why a refused request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Refusal {
    None = 0,
    QueueFull = 1,
    QueueClosed = 2,
    Draining = 3,
    CannotMeetDeadline = 4,
    Other = 5,
}

/// One request. Instants in ns; 0 where it never got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestRecord {
    pub number: u64,
    pub batch: u64,
    pub received: i64,
    pub decoded: i64,
    pub queued: i64,
    pub taken: i64,
    pub gathered: i64,
    pub executed: i64,
    pub first: i64,
    pub scattered: i64,
    pub sent: i64,
    pub deadline: i64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub model: u32,
    pub rows: u32,
    pub place: u32,
    pub level: u32,
    pub outcome: u8,
    pub code: u8,
    pub refusal: u16,
}

/// One batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchRecord {
    pub number: u64,
    pub taken: i64,
    pub gathered: i64,
    pub executed: i64,
    pub scattered: i64,
    pub model: u32,
    pub rows: u32,
    pub requests: u32,
    pub padding: u32,
    pub failed: u32,
    pub instance: u16,
    pub reason: u16,
}

impl RequestRecord {
    fn write(&self, to: &mut Vec<u8>) {
        let r = self;
        for number in [r.number, r.batch] {
            to.extend_from_slice(&number.to_le_bytes());
        }
        let instants =
            [r.received, r.decoded, r.queued, r.taken, r.gathered, r.executed, r.first, r.scattered, r.sent, r.deadline];
        for instant in instants {
            to.extend_from_slice(&instant.to_le_bytes());
        }
        for size in [r.bytes_in, r.bytes_out] {
            to.extend_from_slice(&size.to_le_bytes());
        }
        for count in [r.model, r.rows, r.place, r.level] {
            to.extend_from_slice(&count.to_le_bytes());
        }
        to.extend_from_slice(&[r.outcome, r.code]);
        to.extend_from_slice(&r.refusal.to_le_bytes());
    }
}

impl BatchRecord {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.number.to_le_bytes());
        for instant in [self.taken, self.gathered, self.executed, self.scattered] {
            to.extend_from_slice(&instant.to_le_bytes());
        }
        for count in [self.model, self.rows, self.requests, self.padding, self.failed] {
            to.extend_from_slice(&count.to_le_bytes());
        }
        for count in [self.instance, self.reason] {
            to.extend_from_slice(&count.to_le_bytes());
        }
    }
}

/// Bytes of a request record, and of a batch record.
pub const RECORD_BYTES: (usize, usize) = (132, 64);
/// Unread request records from which on the reader is woken.
const MANY: usize = 1 << 13;
/// Unread request records at which `wait_for_room` waits for the reader.
const MOST: usize = 1 << 18;

#[derive(Default)]
struct Unread {
    requests: Vec<u8>,
    batches: Vec<u8>,
    written: (u64, u64),
    is_closed: bool,
}

/// The records that nobody has read yet.
pub struct Ledger {
    unread: Mutex<Unread>,
    emptied: Condvar,
    news: Arc<News>,
}

impl Ledger {
    /// An empty one, whose reader hears of `news`.
    pub fn new(news: Arc<News>) -> Ledger {
        Ledger { unread: Mutex::default(), emptied: Condvar::new(), news }
    }

    /// Wait while nobody has read for very long. The interpreter must be free meanwhile: the reader needs it.
    pub fn wait_for_room(&self) {
        let mut unread = self.unread.lock();
        while unread.requests.len() >= MOST * RECORD_BYTES.0 && !unread.is_closed {
            self.emptied.wait(&mut unread);
        }
    }

    /// A request has been settled.
    pub fn write(&self, record: &RequestRecord) {
        let mut unread = self.unread.lock();
        record.write(&mut unread.requests);
        unread.written.0 += 1;
        if unread.requests.len() == MANY * RECORD_BYTES.0 {
            drop(unread);
            self.news.ledger_fills();
        }
    }

    /// A batch has been answered.
    pub fn write_batch(&self, record: &BatchRecord) {
        let mut unread = self.unread.lock();
        record.write(&mut unread.batches);
        unread.written.1 += 1;
    }

    /// Everything unread: packed request records, packed batch records.
    pub fn take(&self) -> (Vec<u8>, Vec<u8>) {
        let mut unread = self.unread.lock();
        self.emptied.notify_all();
        (std::mem::take(&mut unread.requests), std::mem::take(&mut unread.batches))
    }

    /// How many records there have been: of requests, of batches.
    pub fn written(&self) -> (u64, u64) {
        self.unread.lock().written
    }

    /// Nobody waits any more: the reader has ended.
    pub fn close(&self) {
        self.unread.lock().is_closed = true;
        self.emptied.notify_all();
    }
}
