//! Sends requests when they are due, and notes what becomes of them.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use futures_util::future::select;

use super::alarm::Alarm;
use super::caller::{Asked, Caller};
use super::{NOT_ANSWERED, NOT_SENT, Order, Pace, Sample, Shared, now};
use crate::clock::Nanos;

const METHOD: &str = "/inference.GRPCInferenceService/ModelInfer";
/// A client whose connection is gone asks again after that.
const REST: Duration = Duration::from_millis(100);
/// Requests that are sent one after the other before their connections have their turn.
const AT_A_TIME: usize = 32;
const OK: u8 = 0;
const DEADLINE_EXCEEDED: u8 = 4;
/// The sender does not wake more often than this: at high rates, a wake for each request would cost more than the request.
const GRAIN: Nanos = 50_000;

/// What all requests of a load share.
struct Sending {
    order: Order,
    shared: Arc<Shared>,
    callers: Vec<Caller>,
    count: Cell<usize>,
    outstanding: Cell<usize>,
    ended: tokio::sync::Notify,
}

/// Carry out an order. Says over `told` whether it has begun.
pub async fn run(order: Order, shared: Arc<Shared>, told: SyncSender<Result<(), String>>) -> Result<(), String> {
    let mut callers = Vec::with_capacity(order.channels);
    for _ in 0..order.channels.max(1) {
        callers.push(Caller::connect(&order.address, METHOD).await?);
    }
    let alarm = Alarm::new().map_err(|error| format!("no timer for the load: {error}"))?;
    let (count, outstanding, ended) = (Cell::new(0), Cell::new(0), tokio::sync::Notify::new());
    let sending = Rc::new(Sending { order, shared, callers, count, outstanding, ended });
    let _ = told.send(Ok(()));
    let stopped = sending.shared.stopping.notified();
    let all = async {
        match &sending.order.pace {
            Pace::Closed { clients, lasts } => closed(&sending, *clients, now() + lasts).await,
            Pace::Open { due } => open(&sending, due, &alarm).await,
        }
    };
    if !sending.is_stopping() {
        select(pin!(all), pin!(stopped)).await;
    }
    let patience = Duration::from_nanos(sending.order.patience.max(0) as u64);
    let _ = tokio::time::timeout(patience, sending.all_answered()).await;
    Ok(())
}

/// At the instants that are given.
async fn open(sending: &Rc<Sending>, due: &[Nanos], alarm: &Alarm) {
    let start = now();
    let (mut sent, mut woken) = (0, start);
    for after in due {
        let due = start + after;
        if due > now() {
            let _ = alarm.at(due.max(woken + GRAIN)).await;
            (sent, woken) = (0, now());
        } else {
            sent += 1;
            if sent % AT_A_TIME == 0 {
                tokio::task::yield_now().await;
            }
        }
        let ask = sending.next();
        if sending.outstanding.get() >= sending.order.most {
            let now = now();
            sending.shared.note(Sample { due, sent: now, done: now, message: ask.message, code: NOT_SENT });
            continue;
        }
        tokio::task::spawn_local(Noted::new(sending, ask, due).send());
    }
}

/// Each when its client has had its answer.
async fn closed(sending: &Rc<Sending>, clients: usize, end: Nanos) {
    let clients = (0..clients).map(|_| {
        let sending = Rc::clone(sending);
        tokio::task::spawn_local(async move {
            while now() < end && !sending.is_stopping() {
                let ask = sending.next();
                if !Noted::new(&sending, ask, now()).send().await {
                    tokio::time::sleep(REST).await;
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        let _ = client.await;
    }
}

/// Which message goes over which connection.
#[derive(Clone, Copy)]
struct Ask {
    message: u32,
    caller: usize,
}

impl Sending {
    fn next(&self) -> Ask {
        let count = self.count.get();
        self.count.set(count + 1);
        Ask { message: self.order.picks[count % self.order.picks.len()], caller: count % self.callers.len() }
    }

    fn is_stopping(&self) -> bool {
        self.shared.is_stopping.load(Ordering::Acquire)
    }

    async fn all_answered(&self) {
        loop {
            let ended = self.ended.notified();
            if self.outstanding.get() == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// A request, from when it was due. Noted when it ends, or is dropped because nobody waits for it any longer.
struct Noted {
    sending: Rc<Sending>,
    ask: Ask,
    due: Nanos,
    sent: Nanos,
    code: u8,
}

impl Noted {
    fn new(sending: &Rc<Sending>, ask: Ask, due: Nanos) -> Noted {
        sending.outstanding.set(sending.outstanding.get() + 1);
        Noted { sending: Rc::clone(sending), ask, due, sent: now(), code: NOT_ANSWERED }
    }

    /// Whether it left.
    async fn send(mut self) -> bool {
        self.sent = now();
        let order = &self.sending.order;
        let message = order.messages[self.ask.message as usize].clone();
        let caller = &self.sending.callers[self.ask.caller];
        let asked = if order.deadline == 0 {
            caller.ask(message, None).await
        } else {
            let until = self.due.saturating_add(order.deadline);
            let left = until.saturating_sub(self.sent);
            let given_up = Asked { code: DEADLINE_EXCEEDED, was_sent: true };
            let patience = Duration::from_nanos(left.max(0) as u64);
            let asked = tokio::time::timeout(patience, caller.ask(message, Some(left))).await.unwrap_or(given_up);
            // The timer counts milliseconds: an answer in the last of them is late all the same.
            if asked.code == OK && now() > until { given_up } else { asked }
        };
        self.code = asked.code;
        asked.was_sent
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let Noted { sending, ask, due, sent, code } = self;
        sending.shared.note(Sample { due: *due, sent: *sent, done: now(), message: ask.message, code: *code });
        sending.outstanding.set(sending.outstanding.get() - 1);
        if sending.outstanding.get() == 0 {
            sending.ended.notify_waiters();
        }
    }
}
