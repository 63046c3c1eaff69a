//! Expires what waits: one thread for all queues, with a wake time of its own.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::clock::{Clock, NEVER, Nanos};
use crate::queue::Queue;

#[derive(Default)]
struct State {
    /// When to look at which queue. Weakly: a queue that is unloaded should not stay for its furthest deadline.
    due: HashMap<u64, (Weak<Queue>, Nanos)>,
    is_closed: bool,
}

/// When to look at which queue.
#[derive(Default)]
pub struct Expiry {
    state: Mutex<State>,
    changed: Condvar,
}

impl Expiry {
    /// Something in `queue` is overdue at this instant.
    pub fn at(&self, queue: &Arc<Queue>, instant: Nanos) {
        let mut state = self.state.lock();
        let known = state.due.entry(queue.id).or_insert_with(|| (Arc::downgrade(queue), NEVER));
        if instant < known.1 {
            known.1 = instant;
            self.changed.notify_one();
        }
    }

    /// Expire until closed.
    pub fn run(&self, clock: &Clock) {
        let mut state = self.state.lock();
        while !state.is_closed {
            let now = clock.now();
            let next = state.due.values().map(|(_, at)| *at).min().unwrap_or(NEVER);
            if next > now {
                match next {
                    NEVER => self.changed.wait(&mut state),
                    _ => {
                        self.changed.wait_for(&mut state, Duration::from_nanos((next - now) as u64));
                    }
                }
                continue;
            }
            let ripe: Vec<_> = state.due.extract_if(|_, (_, at)| *at <= now).map(|(_, (queue, _))| queue).collect();
            drop(state);
            for queue in ripe.iter().filter_map(Weak::upgrade) {
                if let Some(again) = queue.expire(now) {
                    self.at(&queue, again);
                }
            }
            state = self.state.lock();
        }
    }

    pub fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }
}
