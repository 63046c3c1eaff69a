//! What native code has for Python: answers to local entries that no batch gave, whose clients have gone while their batch was in
//! parts, lines for the log, and that the ledger fills up. One thread of Python waits for it.

use parking_lot::{Condvar, Mutex};

use crate::error::Error;

/// Log lines that are kept until somebody reads them; what comes then is only counted.
const MOST_LINES: usize = 256;

/// An answer to a local entry of the queue of this id: an error.
pub struct LocalAnswer {
    pub queue: u64,
    pub number: u64,
    pub error: Error,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Warning,
    Error,
}

/// What there is to do.
#[derive(Default)]
pub struct Items {
    pub answers: Vec<LocalAnswer>,
    /// Parts that nobody wants any more: the id of the queue, the number of the entry.
    pub gone: Vec<(u64, u64)>,
    pub lines: Vec<(Level, String)>,
    pub unsaid: usize,
    pub is_filling: bool,
}

impl Items {
    fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.gone.is_empty() && self.lines.is_empty() && !self.is_filling
    }
}

#[derive(Default)]
struct State {
    items: Items,
    is_closed: bool,
}

/// Where it lies.
#[derive(Default)]
pub struct News {
    state: Mutex<State>,
    changed: Condvar,
}

impl News {
    pub fn answer(&self, answer: LocalAnswer) {
        self.state.lock().items.answers.push(answer);
        self.changed.notify_one();
    }

    /// The client of this entry, which is in a part of its batch, has gone.
    pub fn gone(&self, queue: u64, number: u64) {
        self.state.lock().items.gone.push((queue, number));
        self.changed.notify_one();
    }

    pub fn log(&self, level: Level, line: String) {
        let mut state = self.state.lock();
        if state.items.lines.len() < MOST_LINES {
            state.items.lines.push((level, line));
        } else {
            state.items.unsaid += 1;
        }
        self.changed.notify_one();
    }

    pub fn ledger_fills(&self) {
        self.state.lock().items.is_filling = true;
        self.changed.notify_one();
    }

    /// Wait for something; None once it is closed and everything was taken, or, without patience, when there is nothing.
    pub fn wait(&self, is_patient: bool) -> Option<Items> {
        let mut state = self.state.lock();
        while is_patient && state.items.is_empty() && !state.is_closed {
            self.changed.wait(&mut state);
        }
        if state.items.is_empty() { None } else { Some(std::mem::take(&mut state.items)) }
    }

    /// Nothing new will come.
    pub fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }
}
