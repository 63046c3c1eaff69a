//! One fixed-size record per request and per batch, in the layout of `headrace.ledger.records`.
//!
//! Written by whoever settles, under one lock, into rings that other processes may map (`ring`), and read in bulk. A ledger that nobody reads holds up those who would make more
//! of it – instances before their next turn, the I/O thread before it turns a request away – rather than lose a record. Whoever
//! settles does not wait: he may hold a connection, or be the reader.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::news::News;
use crate::origin::Origin;
use crate::ring::Ring;

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
    ClassShed = 6,
}

/// One request. Instants in ns; 0 where it never got. As it lies in memory it is in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
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
    pub predicted: i64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub client: u64,
    pub trace_high: u64,
    pub trace_low: u64,
    pub span: u64,
    pub parent: u64,
    pub parent_model: u32,
    pub model: u32,
    pub rows: u32,
    pub place: u32,
    pub level: u32,
    pub outcome: u8,
    pub code: u8,
    pub refusal: u16,
    pub trace_flags: u8,
    pub context: u8,
    pub spare: [u8; 6],
}

/// One batch. As it lies in memory it is in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
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
    pub predicted: i64,
    pub parent: u64,
    pub parent_model: u32,
    pub spare: [u8; 12],
}

/// Bytes of a request record, and of a batch record.
pub const RECORD_BYTES: (usize, usize) = (192, 96);
const _: () = assert!(size_of::<RequestRecord>() == RECORD_BYTES.0 && size_of::<BatchRecord>() == RECORD_BYTES.1);

impl RequestRecord {
    /// Where it comes from.
    pub fn with_origin(self, origin: &Origin) -> RequestRecord {
        let Origin { client, trace_high, trace_low, span, parent, parent_model, trace_flags, context } = *origin;
        RequestRecord { client, trace_high, trace_low, span, parent, parent_model, trace_flags, context, ..self }
    }

    fn as_bytes(&self) -> &[u8] {
        // SAFETY: plain numbers without padding between them, as the assertion above says.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), RECORD_BYTES.0) }
    }
}

impl BatchRecord {
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), RECORD_BYTES.1) }
    }
}

/// Records that a ring of this process holds until another one is mapped: of requests, of batches.
const CAPACITY: (u64, u64) = (1 << 13, 1 << 11);
/// Unread request records from which on the reader is woken.
const MANY: usize = 1 << 13;
/// Unread request records at which `wait_for_room` waits for the reader.
const MOST: usize = 1 << 18;

/// Records that are copied at a time, so that whoever settles meanwhile does not wait for all of them.
const AT_A_TIME: u64 = 1 << 10;

/// A ring, and how far it has been read. What would be written over unread is kept aside, so nothing is lost.
struct Track {
    ring: Ring,
    read: u64,
    kept: Vec<u8>,
    record_bytes: usize,
    /// Records in the ring that was here before, less those that were in this one already.
    before: i64,
}

impl Track {
    fn new(record_bytes: usize, capacity: u64) -> Track {
        Track { ring: Ring::own(record_bytes, capacity), read: 0, kept: Vec::new(), record_bytes, before: 0 }
    }

    fn write(&mut self, record: &[u8]) {
        if self.ring.written() - self.read == self.ring.capacity() {
            self.ring.copy(self.read, self.read + 1, &mut self.kept);
            self.read += 1;
        }
        self.ring.write(record);
    }

    fn unread(&self) -> usize {
        self.kept.len() / self.record_bytes + (self.ring.written() - self.read) as usize
    }

    fn written(&self) -> u64 {
        self.ring.written().saturating_add_signed(self.before)
    }

    /// Some of the unread ones, the oldest first, but none from `end` on. Whether there are more of them.
    fn take_some(&mut self, end: u64, to: &mut Vec<u8>) -> bool {
        let end = end.min(self.ring.written());
        if self.kept.is_empty() {
            let upto = end.min(self.read + AT_A_TIME).max(self.read);
            self.ring.copy(self.read, upto, to);
            self.read = upto;
        } else if to.is_empty() {
            *to = std::mem::take(&mut self.kept);
        } else {
            to.append(&mut self.kept);
        }
        self.read < end
    }

    fn replace(&mut self, ring: Ring) {
        self.ring.copy(self.read, self.ring.written(), &mut self.kept);
        self.before += self.ring.written() as i64 - ring.written() as i64;
        self.read = ring.written();
        self.ring = ring;
    }
}

struct State {
    requests: Track,
    batches: Track,
    is_closed: bool,
}

impl State {
    fn has_room(&self) -> bool {
        self.requests.unread() < MOST || self.is_closed
    }
}

/// The records, of which some nobody has read yet.
pub struct Ledger {
    state: Mutex<State>,
    emptied: Condvar,
    news: Arc<News>,
}

impl Ledger {
    /// An empty one, whose reader hears of `news`.
    pub fn new(news: Arc<News>) -> Ledger {
        let requests = Track::new(RECORD_BYTES.0, CAPACITY.0);
        let batches = Track::new(RECORD_BYTES.1, CAPACITY.1);
        Ledger { state: Mutex::new(State { requests, batches, is_closed: false }), emptied: Condvar::new(), news }
    }

    /// Write into these rings from now on, which others may read, too.
    pub fn write_to(&self, requests: Ring, batches: Ring) {
        let mut state = self.state.lock();
        state.requests.replace(requests);
        state.batches.replace(batches);
    }

    /// Wait while nobody has read for very long. The interpreter must be free meanwhile: the reader needs it.
    pub fn wait_for_room(&self) {
        let mut state = self.state.lock();
        while !state.has_room() {
            self.emptied.wait(&mut state);
        }
    }

    /// Whether `wait_for_room` would not wait.
    pub fn has_room(&self) -> bool {
        self.state.lock().has_room()
    }

    /// A request has been settled.
    pub fn write(&self, record: &RequestRecord) {
        if cfg!(feature = "unrecorded") {
            return;
        }
        let mut state = self.state.lock();
        state.requests.write(record.as_bytes());
        if state.requests.unread() == MANY {
            drop(state);
            self.news.ledger_fills();
        }
    }

    /// A batch has been answered.
    pub fn write_batch(&self, record: &BatchRecord) {
        if cfg!(feature = "unrecorded") {
            return;
        }
        self.state.lock().batches.write(record.as_bytes());
    }

    /// Everything unread: request records, batch records. There is one reader.
    pub fn take(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut requests, mut batches) = (Vec::new(), Vec::new());
        let state = self.state.lock();
        let ends = (state.requests.ring.written(), state.batches.ring.written());
        drop(state);
        while self.state.lock().requests.take_some(ends.0, &mut requests) {}
        while self.state.lock().batches.take_some(ends.1, &mut batches) {}
        self.emptied.notify_all();
        (requests, batches)
    }

    /// How many records there have been: of requests, of batches.
    pub fn written(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.requests.written(), state.batches.written())
    }

    /// Nobody waits any more: the reader has ended.
    pub fn close(&self) {
        self.state.lock().is_closed = true;
        self.emptied.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(packed: &[u8]) -> Vec<u64> {
        packed
            .chunks_exact(RECORD_BYTES.0)
            .map(|record| record.first_chunk().map_or(0, |number| u64::from_le_bytes(*number)))
            .collect()
    }

    fn write(ledger: &Ledger, numbers: std::ops::Range<u64>) {
        numbers.for_each(|number| ledger.write(&RequestRecord { number, ..RequestRecord::default() }));
    }

    #[test]
    fn what_nobody_has_read_outlives_its_place_in_the_ring() {
        let ledger = Ledger::new(Arc::default());
        let many = 3 * CAPACITY.0 + 5;
        write(&ledger, 0..many);
        assert_eq!(numbers(&ledger.take().0), (0..many).collect::<Vec<_>>());
        assert!(ledger.take().0.is_empty());
        assert_eq!(ledger.written(), (many, 0));
    }

    #[test]
    fn records_go_on_in_another_ring_and_none_is_lost() {
        let ledger = Ledger::new(Arc::default());
        write(&ledger, 0..10);
        assert_eq!(ledger.take().0.len(), 10 * RECORD_BYTES.0);
        write(&ledger, 10..20);
        ledger.write_to(Ring::own(RECORD_BYTES.0, 4), Ring::own(RECORD_BYTES.1, 4));
        write(&ledger, 20..30);
        assert_eq!(numbers(&ledger.take().0), (10..30).collect::<Vec<_>>());
        write(&ledger, 30..31);
        assert_eq!(numbers(&ledger.take().0), [30]);
        assert_eq!(ledger.written(), (31, 0));
    }

    #[test]
    fn while_one_reads_others_write() {
        let ledger = Ledger::new(Arc::default());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| write(&ledger, 0..50_000));
            }
            let mut seen = 0;
            while seen < 100_000 {
                seen += numbers(&ledger.take().0).len();
            }
            assert_eq!(seen, 100_000);
        });
    }
}
