//! Everything but inference: methods and bytes for a thread of Python, which answers with bytes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::infer::one_message;
use super::io::{Inbox, Io, MailboxOwner};
use super::message::{Failed, Messages};
use super::reply::{Gone, Reply};
use super::status;
use crate::codec::framed;
use crate::entry::Letter;
use crate::error::{Code, Error};
use crate::ledger::{Outcome, Refusal};

/// Calls that wait for Python; further ones are refused.
const MOST_CALLS: usize = 1024;

/// A call on its way to Python. It is answered once; if it is dropped before, its client is told that something broke.
pub struct Call {
    pub method: String,
    pub payload: Bytes,
    mailbox: u64,
    inbox: Option<Arc<Inbox>>,
}

impl Call {
    pub fn answer(mut self, payload: &[u8]) {
        let result = framed(payload.len()).map(|mut message| {
            message.extend_from_slice(payload);
            message.into()
        });
        self.post(result);
    }

    pub fn fail(mut self, error: Error) {
        self.post(Err(error));
    }

    fn post(&mut self, result: Result<Bytes, Error>) {
        if let Some(inbox) = self.inbox.take() {
            // Left to the I/O thread: this one holds the interpreter.
            inbox.distribute(vec![Letter { mailbox: self.mailbox, ask: 0, result, is_final: true, settlement: None }]);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.post(Err(Error::broken(format!("{} was not answered", self.method))));
    }
}

#[derive(Default)]
struct Waiting {
    calls: VecDeque<Call>,
    is_closed: bool,
}

/// The calls that wait.
#[derive(Default)]
pub struct Calls {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Calls {
    /// Wait for a call; None once the server has ended.
    pub fn next(&self) -> Option<Call> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(call) = waiting.calls.pop_front() {
                return Some(call);
            }
            if waiting.is_closed {
                return None;
            }
            self.changed.wait(&mut waiting);
        }
    }

    /// Take no more; those that wait are dropped.
    pub fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.is_closed = true;
        let left = std::mem::take(&mut waiting.calls);
        drop(waiting);
        drop(left);
        self.changed.notify_all();
    }

    fn push(&self, call: Call) {
        let mut waiting = self.waiting.lock();
        if waiting.is_closed || waiting.calls.len() >= MOST_CALLS {
            drop(waiting);
            let message = "too many control calls wait; try again later".to_owned();
            let (code, outcome, refusal) = (Code::ResourceExhausted, Outcome::Refused, Refusal::Other);
            return call.fail(Error { message, code, outcome, refusal, kind: None, retry_after: None });
        }
        waiting.calls.push_back(call);
        drop(waiting);
        self.changed.notify_one();
    }
}

/// Serve a call with one message each way.
pub async fn call(io: &Arc<Io>, method: &str, mut messages: Messages, reply: &mut Reply) {
    let payload = match one_message(&mut messages).await {
        Ok(payload) => payload,
        Err(failed) => return end(reply, failed),
    };
    let mailbox = io.shared.inbox.open();
    if let Ok(Ok(message)) = ask(io, &mailbox, method, payload, reply).await
        && reply.send_all(message).await.is_ok()
    {
        reply.end(Ok(()));
    }
}

/// Serve a call with a stream each way, in which every message gets one answer.
pub async fn converse(io: &Arc<Io>, method: &str, mut messages: Messages, reply: &mut Reply) {
    let mailbox = io.shared.inbox.open();
    loop {
        let next = poll_fn(|cx| match messages.poll_next(cx) {
            // The mailbox is empty between two answers; to look is how we are woken when the server ends.
            Poll::Pending if mailbox.poll_next(cx).is_pending() && io.is_finishing.load(Ordering::Acquire) => Poll::Ready(None),
            next => next.map(Some),
        });
        let payload = match next.await {
            None => return reply.end(Err(&Error::draining())),
            Some(Ok(Some(payload))) => payload,
            Some(Ok(None)) => return reply.end(Ok(())),
            Some(Err(failed)) => return end(reply, failed),
        };
        let Ok(Ok(message)) = ask(io, &mailbox, method, payload, reply).await else {
            return;
        };
        if reply.send_all(message).await.is_err() {
            return;
        }
    }
}

/// Put a question to Python. An error that comes back has been sent.
async fn ask(
    io: &Io,
    mailbox: &MailboxOwner,
    method: &str,
    payload: Bytes,
    reply: &mut Reply,
) -> Result<Result<Bytes, ()>, Gone> {
    let inbox = Some(Arc::clone(&io.shared.inbox));
    io.shared.calls.push(Call { method: method.to_owned(), payload, mailbox: mailbox.id, inbox });
    let letter = poll_fn(|cx| match mailbox.poll_next(cx) {
        Poll::Ready(letter) => Poll::Ready(Ok(letter)),
        Poll::Pending => reply.poll_gone(cx).map(Err),
    })
    .await?;
    Ok(letter.result.map_err(|error| reply.end(Err(&error))))
}

fn end(reply: &mut Reply, failed: Failed) {
    match failed {
        Failed::Gone(_) => {}
        Failed::Told(error) => reply.end(Err(&error)),
        Failed::Encoding(error) => reply.end_with(status::with_encodings(status::failed(&error))),
    }
}
