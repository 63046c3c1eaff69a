//! `ModelStreamInfer`: many requests and many answers over one call. The reference is `headrace.transport.streams`.
//!
//! Answers of ordinary models keep the order of their requests; those of decoupled models go as they come. A reader that is
//! slow meets three bounds: no further request is read while many are on their way or their answers unsent, a stream that a
//! decoupled model floods is ended, and what all streams of a connection hold counts for it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::connection::{Held, Outgoing};
use super::infer::{Head, decode, push};
use super::io::{Io, MailboxOwner};
use super::message::{Failed, Messages};
use super::reply::Reply;
use super::status;
use crate::codec::{failure, refusal, request_id_of};
use crate::entry::{Letter, Outbox, Settlement, Sink, Ticket};
use crate::error::Error;
use crate::faults::{self, Point};
use crate::wire::Text;

/// What an unsent answer takes beside its message.
const OVERHEAD: usize = 512;
/// Messages that are read before others have their turn.
const AT_A_TIME: usize = 64;

/// Serve one stream to its end. Being dropped – the client is gone – cancels whatever is on its way.
pub async fn serve(io: &Arc<Io>, head: Head, messages: Messages, reply: &mut Reply, outgoing: &Arc<Outgoing>) {
    let refused = io.shared.check_accepting().and_then(|()| head.forwarded.as_ref().map(|_| ()).map_err(Error::clone));
    if let Err(error) = refused {
        return reply.end(Err(&error));
    }
    let mut stream = Stream {
        mailbox: io.shared.inbox.open(),
        io,
        head,
        messages,
        reply,
        outgoing,
        asked: FxHashMap::default(),
        line: VecDeque::new(),
        ready: VecDeque::new(),
        sending: None,
        asks: 0,
        unsent: 0,
        flood: 0,
        is_read: false,
        failure: None,
    };
    match poll_fn(|cx| stream.poll(cx)).await {
        End::Gone => {}
        End::Well => stream.reply.end(Ok(())),
        End::Failed(error) => stream.reply.end(Err(&error)),
        End::Encoding(error) => stream.reply.end_with(status::with_encodings(status::failed(&error))),
    }
}

enum End {
    Well,
    Failed(Error),
    Encoding(Error),
    Gone,
}

/// A request of the stream, until its last answer is sent. Answers that are not yet in turn are held back.
struct Asked {
    is_ordered: bool,
    ticket: Option<Ticket>,
    held: VecDeque<Piece>,
    bytes_out: u64,
    model: Text,
    version: i64,
    id: Text,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            ticket.cancel();
        }
    }
}

/// One message to send, or none (an empty one nobody asked for), and what is to be done then.
struct Piece {
    ask: u64,
    payload: Bytes,
    /// Until it is with `Reply`, which counts what it sends.
    held: Option<Held>,
    is_last: bool,
    settlement: Option<Settlement>,
    error: Option<Error>,
    /// The error ends the stream instead of being sent.
    closes: bool,
}

impl Piece {
    fn cost(&self) -> usize {
        self.payload.len().saturating_sub(5) + OVERHEAD
    }
}

struct Stream<'a> {
    io: &'a Arc<Io>,
    head: Head,
    messages: Messages,
    reply: &'a mut Reply,
    outgoing: &'a Arc<Outgoing>,
    mailbox: MailboxOwner,
    asked: FxHashMap<u64, Asked>,
    /// The ordered ones that have not had their last answer, in their order.
    line: VecDeque<u64>,
    ready: VecDeque<Piece>,
    sending: Option<Piece>,
    asks: u64,
    unsent: usize,
    flood: usize,
    /// The client has no more requests.
    is_read: bool,
    failure: Option<Error>,
}

impl Stream<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..AT_A_TIME {
            let mut is_idle = true;
            while let Poll::Ready(letter) = self.mailbox.poll_next(cx) {
                self.receive(letter);
                is_idle = false;
            }
            if self.may_read() {
                match self.messages.poll_next(cx) {
                    Poll::Ready(Ok(Some(payload))) => {
                        self.ask(&payload);
                        is_idle = false;
                    }
                    Poll::Ready(Ok(None)) => {
                        self.is_read = true;
                        is_idle = false;
                    }
                    Poll::Ready(Err(Failed::Gone(_))) => return Poll::Ready(End::Gone),
                    Poll::Ready(Err(Failed::Told(error))) => {
                        return Poll::Ready(End::Failed(error));
                    }
                    Poll::Ready(Err(Failed::Encoding(error))) => {
                        return Poll::Ready(End::Encoding(error));
                    }
                    Poll::Pending => {}
                }
            }
            match self.write(cx) {
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Ready(Ok(wrote)) => is_idle &= !wrote,
                Poll::Pending => {}
            }
            if let Some(end) = self.end() {
                return Poll::Ready(end);
            }
            if is_idle {
                return self.reply.poll_gone(cx).map(|_| End::Gone);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    // Reading.

    fn is_finishing(&self) -> bool {
        self.io.is_finishing.load(Ordering::Acquire)
    }

    fn may_read(&self) -> bool {
        let window = &self.io.shared.options.window;
        let has_room = self.asked.len() < window.requests && self.unsent <= window.unsent;
        !self.is_read && !self.is_finishing() && self.failure.is_none() && has_room
    }

    fn ask(&mut self, payload: &Bytes) {
        let io = self.io;
        let received = self.messages.received;
        self.asks += 1;
        let ask = self.asks;
        let mut asked = Asked {
            is_ordered: true,
            ticket: None,
            held: VecDeque::new(),
            bytes_out: 0,
            model: Text::default(),
            version: 0,
            id: Text::default(),
        };
        let request = match decode(io, payload, &self.head, received) {
            Ok(request) => request,
            Err(error) => {
                asked.id = request_id_of(payload);
                self.join(ask, asked);
                return self.refuse(ask, &error);
            }
        };
        let queue = io.shared.routes.resolve(&request.model, request.version);
        asked.is_ordered = queue.map_or(true, |queue| !queue.spec.decoupled);
        (asked.model, asked.version, asked.id) = (request.model.clone(), request.version, request.id.clone());
        self.join(ask, asked);
        let outbox = Arc::clone(&io.shared.inbox) as Arc<dyn Outbox>;
        let sink = Sink::Remote { outbox, mailbox: self.mailbox.id, ask, is_stream: true };
        match push(io, request, sink) {
            Ok(ticket) => {
                if let Some(asked) = self.asked.get_mut(&ask) {
                    asked.ticket = Some(ticket);
                }
            }
            Err(error) => self.refuse(ask, &error),
        }
    }

    fn join(&mut self, ask: u64, asked: Asked) {
        if asked.is_ordered {
            self.line.push_back(ask);
        }
        self.asked.insert(ask, asked);
    }

    // Answers.

    /// The request was not scheduled: the error is told in the stream, which goes on.
    fn refuse(&mut self, ask: u64, error: &Error) {
        let payload = self.asked.get(&ask).map_or_else(Bytes::new, |asked| refusal(error, &asked.id));
        self.line_up(Piece { ask, payload, held: None, is_last: true, settlement: None, error: None, closes: false });
    }

    fn receive(&mut self, letter: Letter) {
        // Dropped asks have been cancelled, and so has what is still on its way for them.
        let Some(asked) = self.asked.get(&letter.ask) else {
            return;
        };
        if letter.result.as_ref().is_ok_and(|payload| !self.outgoing.has_room(payload.len())) {
            return self.fail(self.outgoing.too_slow());
        }
        let (payload, error) = match letter.result {
            Ok(payload) => (payload, None),
            Err(error) => (failure(&error, &asked.model, asked.version, &asked.id), Some(error)),
        };
        let closes = error.is_some() && self.head.closes_on_error;
        let (ask, is_last, settlement) = (letter.ask, letter.is_final, letter.settlement);
        let held = Some(Held::new(self.outgoing, payload.len()));
        self.line_up(Piece { ask, payload, held, is_last, settlement, error, closes });
    }

    /// To be sent at once, or when all before it in the order of the stream have had their last answer.
    fn line_up(&mut self, piece: Piece) {
        self.unsent += piece.cost();
        if !piece.is_last {
            self.flood += piece.cost();
            if self.flood > self.io.shared.options.window.flood {
                return self.fail(Error::reader_too_slow(self.flood));
            }
        }
        let Some(asked) = self.asked.get_mut(&piece.ask) else {
            return;
        };
        if !asked.is_ordered {
            return self.ready.push_back(piece);
        }
        asked.held.push_back(piece);
        while let Some(asked) = self.line.front().and_then(|first| self.asked.get_mut(first)) {
            let Some(last) = asked.held.back() else { break };
            let is_last = last.is_last;
            self.ready.append(&mut asked.held);
            if !is_last {
                break;
            }
            self.line.pop_front();
        }
    }

    /// End the stream, once the message that is being sent is sent: a client takes no status in between.
    fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
        self.drop_all();
    }

    fn drop_all(&mut self) {
        self.ready.clear();
        self.line.clear();
        self.asked.clear();
    }

    // Writing.

    /// Whether something was written.
    fn write(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, End>> {
        let mut wrote = false;
        loop {
            if self.sending.is_none() {
                let Some(mut piece) = self.ready.pop_front() else {
                    return Poll::Ready(Ok(wrote));
                };
                piece.held = None;
                faults::pass(Point::Io);
                if !piece.payload.is_empty() && !piece.closes && self.reply.send(piece.payload.clone()).is_err() {
                    return Poll::Ready(Err(End::Gone));
                }
                self.sending = Some(piece);
            }
            match self.reply.poll_sent(cx) {
                Poll::Pending => {
                    return if wrote { Poll::Ready(Ok(true)) } else { Poll::Pending };
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Gone)),
                Poll::Ready(Ok(())) => {}
            }
            wrote = true;
            if let Some(piece) = self.sending.take()
                && let Some(error) = self.settle(piece)
            {
                self.fail(error);
                return Poll::Ready(Ok(true));
            }
        }
    }

    /// A piece is with the client, or as good as that. Returns the error that ends the stream.
    fn settle(&mut self, piece: Piece) -> Option<Error> {
        self.unsent = self.unsent.saturating_sub(piece.cost());
        let mut sent = piece.payload.len().saturating_sub(5) as u64;
        if let Some(asked) = self.asked.get_mut(&piece.ask) {
            sent += asked.bytes_out;
            asked.bytes_out = sent;
            if piece.is_last {
                asked.ticket = None;
                self.asked.remove(&piece.ask);
            }
        }
        if !piece.is_last {
            self.flood = self.flood.saturating_sub(piece.cost());
        }
        if let Some(settlement) = piece.settlement {
            let now = self.io.shared.house.clock.now();
            match &piece.error {
                None => settlement.answered(now, sent),
                Some(error) => settlement.failed(error, now),
            }
        }
        if piece.closes { piece.error } else { None }
    }

    /// How the stream ends, if it does now.
    fn end(&mut self) -> Option<End> {
        if self.sending.is_some() || !self.ready.is_empty() {
            return None;
        }
        if let Some(error) = self.failure.take() {
            return Some(End::Failed(error));
        }
        if !self.asked.is_empty() {
            return None;
        }
        match (self.is_read, self.is_finishing()) {
            (true, _) => Some(End::Well),
            (false, true) => Some(End::Failed(Error::draining())),
            (false, false) => None,
        }
    }
}
