//! A load generator for any V2 server: sends prepared messages and notes when each was due, sent and answered.
//!
//! It decides nothing: what is sent, and when, is given. One thread does all of it, so that its own cost is one number, and
//! latencies are counted from the instant a request was *due*: a server that stalls, or a generator that falls behind, cannot
//! hide what it did to those who came meanwhile (no coordinated omission).
//!
//! `caller` makes the calls of one connection, `alarm` wakes at an instant, `pump` sends when it is time.

mod alarm;
mod caller;
mod pump;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::clock::{Clock, Nanos, thread_cpu};

/// Bytes of a packed `Sample`.
pub const SAMPLE_BYTES: usize = 32;
/// Instead of a gRPC code: it was due and not sent, because as many as may be were on their way.
pub const NOT_SENT: u8 = 255;
/// Instead of a gRPC code: it was sent, and the load ended before it was answered.
pub const NOT_ANSWERED: u8 = 254;

/// When requests are due.
pub enum Pace {
    /// So many clients, each sends its next request when it has its answer, for so long.
    Closed { clients: usize, lasts: Nanos },
    /// At these instants after the start, in order.
    Open { due: Vec<Nanos> },
}

/// What is to be done.
pub struct Order {
    /// `HOST:PORT`, or `unix:PATH`.
    pub address: String,
    pub channels: usize,
    /// Requests as they go over the wire: length-prefixed messages.
    pub messages: Vec<Bytes>,
    /// Which message is sent when, over and over.
    pub picks: Vec<u32>,
    pub pace: Pace,
    /// How long after it was due the client gives a request up; 0 for never.
    pub deadline: Nanos,
    /// How many requests may be on their way.
    pub most: usize,
    /// How long to wait for what is on its way when everything is sent.
    pub patience: Nanos,
}

/// One request, in ns of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub due: Nanos,
    pub sent: Nanos,
    pub done: Nanos,
    /// Its place in `Order::messages`.
    pub message: u32,
    /// The gRPC code, `NOT_SENT` or `NOT_ANSWERED`.
    pub code: u8,
}

impl Sample {
    fn write(&self, to: &mut Vec<u8>) {
        for instant in [self.due, self.sent, self.done] {
            to.extend_from_slice(&instant.to_le_bytes());
        }
        to.extend_from_slice(&self.message.to_le_bytes());
        to.extend_from_slice(&[self.code, 0, 0, 0]);
    }
}

/// What the thread that sends and the one that reads the samples share.
#[derive(Default)]
struct Shared {
    samples: Mutex<Vec<Sample>>,
    noted: AtomicU64,
    /// CPU time of the sending thread.
    cpu: AtomicI64,
    stopping: tokio::sync::Notify,
    is_stopping: AtomicBool,
    is_over: AtomicBool,
}

impl Shared {
    fn note(&self, sample: Sample) {
        self.samples.lock().push(sample);
        // Asking for it costs as much as a tenth of a request.
        if self.noted.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
            self.note_cpu();
        }
    }

    fn note_cpu(&self) {
        self.cpu.store(thread_cpu(), Ordering::Relaxed);
    }
}

/// A load that runs, or has run.
pub struct Load {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Load {
    /// Connect, and begin. Fails where there is nobody.
    pub fn start(order: Order) -> Result<Load, String> {
        if order.messages.is_empty()
            || order.picks.iter().any(|pick| *pick as usize >= order.messages.len())
            || order.picks.is_empty()
        {
            return Err("there is nothing to send".to_owned());
        }
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let (told, hear) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("headrace-load".to_owned());
        let thread = thread.spawn(move || {
            let over = Over(&its);
            if let Err(told_too_late) = on_own_runtime(pump::run(order, Arc::clone(&its), told.clone())).and_then(|done| done) {
                let _ = told.send(Err(told_too_late));
            }
            drop(over);
        });
        let thread = thread.map_err(|error| format!("no thread for the load: {error}"))?;
        // The sender hears of the end of the thread, too.
        hear.recv().unwrap_or_else(|_| Err("the load ended before it began".to_owned()))?;
        Ok(Load { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The samples since the last call, packed.
    pub fn take(&self) -> Vec<u8> {
        let samples = std::mem::take(&mut *self.shared.samples.lock());
        let mut packed = Vec::with_capacity(samples.len() * SAMPLE_BYTES);
        samples.iter().for_each(|sample| sample.write(&mut packed));
        packed
    }

    /// CPU time of the sending thread so far.
    pub fn cpu(&self) -> Nanos {
        self.shared.cpu.load(Ordering::Relaxed)
    }

    /// Whether everything is sent, and answered or given up.
    pub fn is_over(&self) -> bool {
        self.shared.is_over.load(Ordering::Acquire)
    }

    /// Send no more.
    pub fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.stopping.notify_waiters();
    }
}

impl Load {
    /// Stop, and wait for what is on its way.
    pub fn end(&self) {
        self.stop();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

/// Says that the thread has ended, however it did.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.note_cpu();
        self.0.is_over.store(true, Ordering::Release);
    }
}

fn on_own_runtime<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no poller for the load: {error}"))?;
    let tasks = tokio::task::LocalSet::new();
    Ok(tasks.block_on(&runtime, work))
}

fn now() -> Nanos {
    Clock::Monotonic.now()
}
