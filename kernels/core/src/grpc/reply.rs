//! The way back of a call: head, messages as the client's windows take them, trailers.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;

use super::connection::Outgoing;
use super::status;
use crate::error::Error;

/// The client is gone.
pub struct Gone;

enum State {
    Before,
    Open(SendStream<Bytes>),
    Ended,
}

/// Answers one call. What it sends counts for its connection until the client's windows have taken it.
pub struct Reply {
    respond: SendResponse<Bytes>,
    state: State,
    outgoing: Arc<Outgoing>,
    /// What is left of the message that is being sent.
    rest: Bytes,
}

impl Reply {
    pub fn new(respond: SendResponse<Bytes>, outgoing: Arc<Outgoing>) -> Reply {
        Reply { respond, state: State::Before, outgoing, rest: Bytes::new() }
    }

    /// Begin to send a message; `poll_sent` says when it is with HTTP/2.
    pub fn send(&mut self, message: Bytes) -> Result<(), Gone> {
        if matches!(self.state, State::Before) {
            let stream = self.respond.send_response(status::head(), false).map_err(|_| Gone)?;
            self.state = State::Open(stream);
        }
        if let State::Open(stream) = &mut self.state {
            stream.reserve_capacity(message.len());
        }
        self.outgoing.add(message.len());
        self.rest = message;
        Ok(())
    }

    /// Whether the last message has been handed to HTTP/2 in full.
    pub fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let State::Open(stream) = &mut self.state else {
            return Poll::Ready(Ok(()));
        };
        while !self.rest.is_empty() {
            let mut room = stream.capacity();
            if room == 0 {
                room = match ready!(stream.poll_capacity(cx)) {
                    Some(Ok(room)) => room,
                    Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
                };
            }
            let part = self.rest.split_to(room.min(self.rest.len()));
            self.outgoing.remove(part.len());
            stream.send_data(part, false).map_err(|_| Gone)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Send a message and wait until HTTP/2 has it.
    pub async fn send_all(&mut self, message: Bytes) -> Result<(), Gone> {
        self.send(message)?;
        poll_fn(|cx| self.poll_sent(cx)).await
    }

    /// End the call: well, or with an error.
    pub fn end(&mut self, outcome: Result<(), &Error>) {
        // A client that is gone does not get it.
        match (&mut self.state, outcome) {
            (State::Before, Err(error)) => {
                let _ = self.respond.send_response(status::failed(error), true);
            }
            (State::Before, Ok(())) => {
                if let Ok(mut stream) = self.respond.send_response(status::head(), false) {
                    let _ = stream.send_trailers(status::well());
                }
            }
            (State::Open(stream), outcome) => {
                let _ = stream.send_trailers(outcome.map_or_else(status::trailers, |()| status::well()));
            }
            (State::Ended, _) => {}
        }
        self.state = State::Ended;
    }

    /// End it with a head that is more than an error.
    pub fn end_with(&mut self, response: http::Response<()>) {
        if matches!(self.state, State::Before) {
            let _ = self.respond.send_response(response, true);
        }
        self.state = State::Ended;
    }

    /// Whether the client gave the call up.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        match &mut self.state {
            State::Before => self.respond.poll_reset(cx).map(|_| Gone),
            State::Open(stream) => stream.poll_reset(cx).map(|_| Gone),
            State::Ended => Poll::Ready(Gone),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.outgoing.remove(self.rest.len());
    }
}
