//! An entry: one request on its way through a version, and how it ends.
//!
//! An entry is answered exactly once and settled exactly once. Whoever hands over its answer settles it, which writes the
//! ledger record and frees its place; a settlement that is dropped settles itself: its client is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::admission::{Depth, Due};
use crate::clock::Nanos;
use crate::codec::{Parameter, Request};
use crate::error::{Code, Error, Result};
use crate::ledger::{Outcome, Refusal, RequestRecord};
use crate::queue::Queue;
use crate::validate::Admitted;

/// Where the answers to an entry go.
#[derive(Clone)]
pub enum Sink {
    /// To a mailbox of an I/O thread; `ask` tells the requests of one stream apart.
    Remote { outbox: Arc<dyn Outbox>, mailbox: u64, ask: u64, is_stream: bool },
    /// To a caller in this process.
    Local,
}

/// Takes letters from any thread, and wakes whoever opens them once.
pub trait Outbox: Send + Sync {
    fn post(&self, letters: Vec<Letter>);
}

/// One answer on its way to a mailbox.
pub struct Letter {
    pub mailbox: u64,
    pub ask: u64,
    /// A framed message, or the error instead of it. An empty message is an answer that is not sent.
    pub result: Result<Bytes>,
    pub is_final: bool,
    /// Of a final answer.
    pub settlement: Option<Settlement>,
}

/// What keeps entries of one sequence in order.
pub type Lane = String;

/// The lane of a sequence id; numbers and text never meet.
pub fn lane_of(id: &Parameter) -> Lane {
    match id {
        Parameter::Int(number) => format!("#{number}"),
        Parameter::String(text) => format!("'{text}"),
        Parameter::Bool(_) | Parameter::Double(_) => String::new(),
    }
}

/// What a batch, a queue and a client know of an entry at the same time.
#[derive(Default)]
pub struct Fate {
    is_cancelled: AtomicBool,
}

impl Fate {
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
    }

    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }
}

/// One admitted request.
pub struct Entry {
    pub number: u64,
    pub key: i64,
    pub due: Due,
    pub request: Request,
    pub admitted: Admitted,
    pub sink: Sink,
    pub lane: Option<Lane>,
    /// In its lane, behind another: not in the order.
    pub is_parked: bool,
    pub queued: Nanos,
    pub fate: Arc<Fate>,
    /// None once it was handed over with the last answer.
    pub settlement: Option<Settlement>,
}

impl Entry {
    /// What it adds to the depth of its queue. Zero rows still count as one: they take a turn.
    pub fn size(&self) -> Depth {
        Depth { requests: 1, rows: u64::from(self.admitted.rows.max(1)), nbytes: self.admitted.nbytes }
    }
}

/// The duty to write one record and to free one place.
pub struct Settlement {
    pub record: RequestRecord,
    place: Option<Place>,
}

struct Place {
    queue: Arc<Queue>,
    lane: Option<Lane>,
    fate: Arc<Fate>,
}

impl Settlement {
    pub fn new(queue: Arc<Queue>, record: RequestRecord, lane: Option<Lane>, fate: Arc<Fate>) -> Settlement {
        Settlement { record, place: Some(Place { queue, lane, fate }) }
    }

    /// It never came to the head of its lane, which is another's: nothing to free there.
    pub fn leave_lane(&mut self) {
        if let Some(place) = &mut self.place {
            place.lane = None;
        }
    }

    /// Whether nobody wants the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.fate.is_cancelled())
    }

    /// The answer of a local entry, which is made in Python, was there at this instant; 0: it is an error that no batch gave.
    pub fn scattered(&mut self, at: Nanos) {
        let record = &mut self.record;
        if at > 0 && record.scattered > 0 {
            record.first = if record.first == record.scattered { at } else { record.first };
            record.scattered = at;
        }
    }

    /// Its answer was handed over at `sent`.
    pub fn answered(self, sent: Nanos, bytes_out: u64) {
        self.end(Outcome::Answered, Code::Ok, sent, bytes_out);
    }

    /// It got this error at `sent`.
    pub fn failed(self, error: &Error, sent: Nanos) {
        self.end(error.outcome, error.code, sent, 0);
    }

    /// Any end, in the ledger's words. Who cancelled before has cancelled.
    pub fn end(mut self, outcome: Outcome, code: Code, sent: Nanos, bytes_out: u64) {
        self.finish(outcome, code, sent, bytes_out);
    }

    fn finish(&mut self, outcome: Outcome, code: Code, sent: Nanos, bytes_out: u64) {
        let Some(Place { queue, lane, fate }) = self.place.take() else {
            return;
        };
        let (outcome, code) = if fate.is_cancelled() { (Outcome::Cancelled, Code::Cancelled) } else { (outcome, code) };
        let record = &mut self.record;
        (record.outcome, record.code, record.sent) = (outcome as u8, code as u8, sent);
        // Whoever was admitted is refused because the plan dropped it, or because the queue was abandoned.
        let refusal = match (outcome, code) {
            (Outcome::Refused, Code::ResourceExhausted) => Refusal::CannotMeetDeadline,
            (Outcome::Refused, _) => Refusal::QueueClosed,
            _ => Refusal::None,
        };
        record.refusal = refusal as u16;
        record.bytes_out += bytes_out;
        queue.settled(record, lane);
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if let Some(now) = self.place.as_ref().map(|place| place.queue.clock.now()) {
            // Dropped on the way: its client is gone. Or we are, and the client is told so by whoever catches the panic.
            let (outcome, code) =
                if std::thread::panicking() { (Outcome::Failed, Code::Internal) } else { (Outcome::Cancelled, Code::Cancelled) };
            self.finish(outcome, code, now, 0);
        }
    }
}

/// What a client holds of an entry that is on its way.
#[derive(Clone)]
pub struct Ticket {
    pub queue: Arc<Queue>,
    pub number: u64,
    pub fate: Arc<Fate>,
}

impl Ticket {
    /// Nobody wants the answer any more. What waits leaves its queue at once; what runs is not answered.
    pub fn cancel(&self) {
        self.fate.cancel();
        self.queue.cancel(self.number);
    }
}
