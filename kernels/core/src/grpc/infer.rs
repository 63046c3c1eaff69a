//! `ModelInfer`: one message in, one answer out.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::HeaderMap;

use super::connection::Outgoing;
use super::io::Io;
use super::message::{Failed, Messages};
use super::reply::Reply;
use super::status;
use crate::admission::level_of;
use crate::clock::Nanos;
use crate::codec::{self, Parameter, Request};
use crate::entry::{Sink, Ticket};
use crate::error::{Error, Result};
use crate::faults::{self, Point};
use crate::ledger::RequestRecord;
use crate::news::Level;
use crate::origin::Origin;
use crate::queue::Queue;
use crate::wire::Text;

/// What a call says beside its messages.
pub struct Head {
    pub received: Nanos,
    pub deadline: Option<Nanos>,
    pub forwarded: Result<Vec<(Text, Parameter)>>,
    pub closes_on_error: bool,
    pub origin: Origin,
}

impl Head {
    /// `peer` is the pseudonym of whoever has the connection.
    pub fn of(io: &Io, headers: &HeaderMap, received: Nanos, peer: u64) -> Head {
        Head {
            received,
            deadline: status::deadline(headers, received),
            forwarded: io.shared.options.forwarding.parameters(headers),
            closes_on_error: headers.get_all("triton_grpc_error").iter().any(|value| value == "true"),
            origin: Origin::of(headers, peer),
        }
    }
}

/// Serve one call to its end.
pub async fn infer(io: &Arc<Io>, head: Head, mut messages: Messages, reply: &mut Reply, outgoing: &Outgoing) {
    let payload = match one_message(&mut messages).await {
        Ok(payload) => payload,
        Err(Failed::Gone(_)) => return,
        Err(Failed::Told(error)) => return reply.end(Err(&error)),
        Err(Failed::Encoding(error)) => {
            return reply.end_with(status::with_encodings(status::failed(&error)));
        }
    };
    let mailbox = io.shared.inbox.open();
    let outbox = Arc::clone(&io.shared.inbox) as Arc<dyn crate::entry::Outbox>;
    let sink = Sink::Remote { outbox, mailbox: mailbox.id, ask: 0, is_stream: false };
    let pushed = decode(io, &payload, &head, head.received).and_then(|request| {
        if io.shared.routes.resolve(&request.model, request.version).is_ok_and(|queue| queue.spec.decoupled) {
            return Err(turned_away(io, Error::decoupled(), head.received, (0, 0), &head.origin));
        }
        push(io, request, sink)
    });
    drop(payload);
    let asked = match pushed {
        Ok(ticket) => Asked(Some(ticket)),
        Err(error) => return reply.end(Err(&error)),
    };
    let letter = poll_fn(|cx| match mailbox.poll_next(cx) {
        Poll::Ready(letter) => Poll::Ready(Some(letter)),
        Poll::Pending => reply.poll_gone(cx).map(|_| None),
    })
    .await;
    let Some(mut letter) = letter else { return };
    if let Ok(message) = &letter.result
        && !outgoing.has_room(message.len())
    {
        letter.result = Err(outgoing.too_slow());
    }
    faults::pass(Point::Io);
    let clock = &io.shared.house.clock;
    match letter.result {
        Ok(message) => {
            let size = message.len() as u64 - 5;
            if reply.send_all(message).await.is_err() {
                return;
            }
            reply.end(Ok(()));
            if let Some(settlement) = letter.settlement {
                settlement.answered(clock.now(), size);
            }
        }
        Err(error) => {
            reply.end(Err(&error));
            if let Some(settlement) = letter.settlement {
                settlement.failed(&error, clock.now());
            }
        }
    }
    asked.end();
}

/// A request that is on its way; if its call is dropped before it is answered, it is cancelled.
pub struct Asked(pub Option<Ticket>);

impl Asked {
    pub fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(ticket) = self.0.take() {
            ticket.cancel();
        }
    }
}

/// The one message of a unary call.
pub async fn one_message(messages: &mut Messages) -> std::result::Result<Bytes, Failed> {
    match poll_fn(|cx| messages.poll_next(cx)).await? {
        Some(message) => Ok(message),
        None => Err(Failed::Told(Error::new(crate::error::Kind::Unsupported, "the call has no message"))),
    }
}

/// A message of a call as a request. What is turned away is in the ledger.
pub fn decode(io: &Io, payload: &Bytes, head: &Head, received: Nanos) -> Result<Box<Request>> {
    let shared = &io.shared;
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        shared.check_accepting()?;
        let forwarded = head.forwarded.as_ref().map_err(Error::clone)?;
        faults::pass(Point::Decode);
        codec::decode(payload, &shared.regions, forwarded)
    }))
    .unwrap_or_else(|panic| Err(broken(io, "decoding a request", &*panic)));
    match decoded {
        Ok(mut request) => {
            request.received = received;
            request.decoded = shared.house.clock.now();
            request.deadline = head.deadline;
            request.origin = head.origin;
            Ok(Box::new(request))
        }
        Err(error) => Err(turned_away(io, error, received, (0, 0), &head.origin)),
    }
}

/// Bind a request to a version and push it there. What is turned away is in the ledger, too.
pub fn push(io: &Io, request: Box<Request>, sink: Sink) -> Result<Ticket> {
    let (received, origin, mut model, mut level) = (request.received, request.origin, 0, 0);
    let pushed = catch_unwind(AssertUnwindSafe(|| {
        io.shared.routes.check_open()?;
        let queue = io.shared.routes.resolve(&request.model, request.version)?;
        (model, level) = (queue.model, level_of(&request, &queue.spec.batching));
        push_there(io, &queue, request, sink)
    }))
    .unwrap_or_else(|panic| Err(broken(io, "pushing a request", &*panic)));
    pushed.map_err(|error| turned_away(io, error, received, (model, level), &origin))
}

fn push_there(io: &Io, queue: &Arc<Queue>, request: Box<Request>, sink: Sink) -> Result<Ticket> {
    let ticket = match queue.push(request, sink.clone()) {
        Ok(ticket) => ticket,
        Err(rejected) => {
            // The version was replaced a moment ago: once more, to its successor.
            let Some(request) = rejected.request else {
                return Err(rejected.error);
            };
            let successor = io.shared.routes.resolve(&request.model, request.version)?;
            successor.push(request, sink).map_err(|rejected| rejected.error)?
        }
    };
    io.wake_later(&ticket.queue);
    Ok(ticket)
}

/// Write the record of a request that got no entry. `to` is the ledger's number of the version that it was for, and its class.
pub fn turned_away(io: &Io, error: Error, received: Nanos, to: (u32, u32), origin: &Origin) -> Error {
    let ledger = &io.shared.house.ledger;
    ledger.wait_for_room();
    ledger.write(&RequestRecord {
        received,
        sent: io.shared.house.clock.now(),
        model: to.0,
        level: to.1,
        outcome: error.outcome as u8,
        code: error.code as u8,
        refusal: error.refusal as u16,
        ..RequestRecord::default().with_origin(origin)
    });
    error
}

fn broken(io: &Io, what: &str, panic: &(dyn std::any::Any + Send)) -> Error {
    let error = Error::broken(format!("{what} panicked: {}", faults::said(panic)));
    io.shared.house.news.log(Level::Error, error.message.clone());
    error
}
