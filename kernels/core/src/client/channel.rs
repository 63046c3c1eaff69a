//! Calls in the thread that makes them, one at a time.
//!
//! The caller drives the connection itself: it writes, sleeps until something comes, and reads. Between two calls nobody reads;
//! what came meanwhile – the end of the connection, a GOAWAY – is read before the next request is written.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::call::{self, Answer, Method};
use super::connection::{self, Opened};
use crate::clock::{Clock, Nanos};

/// How long to wait after a connection that was refused.
pub const AGAIN: Duration = Duration::from_millis(100);

/// How a call ended that was not answered well.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was sent, or the server said that it did not look at it: it has not run.
    Unsent(String),
    /// What was sent may have run.
    Lost(String),
    /// There was no answer in time. What was sent may run, or may have run.
    Late,
    /// The server's own error: gRPC's number, and its words.
    Answered { code: u8, message: String },
}

/// A server, and a connection to it that is opened when it is needed.
pub struct Channel {
    address: String,
    patience: Nanos,
    open: Option<Opened>,
    /// Whether the server has just said that it did not look at a request: asked again at once, it would say it again.
    is_leaving: bool,
    partial: Arc<AtomicUsize>,
    /// There until the end.
    runtime: Option<Runtime>,
}

impl Channel {
    /// `address`: `HOST:PORT` or `unix:PATH`; `patience`: how long a connection may take.
    pub fn new(address: &str, patience: Nanos) -> io::Result<Channel> {
        let runtime = Some(Builder::new_current_thread().enable_all().build()?);
        Ok(Channel { address: address.to_owned(), patience, open: None, is_leaving: false, partial: Arc::default(), runtime })
    }

    /// Call `path`, and wait until the instant `until` at the most. `message` has gRPC's five bytes before it.
    pub fn call(&mut self, path: &str, metadata: &[(String, String)], message: Bytes, until: Nanos) -> Result<Bytes, Failure> {
        let method = Method::of(&self.address, path).map_err(Failure::Unsent)?.with(metadata);
        let done = self.run(until, async |channel| channel.exchange(&method, message, until).await);
        let done = done.unwrap_or(Err(Failure::Late));
        if matches!(done, Err(Failure::Late | Failure::Lost(_))) {
            // A server that is silent cannot miss that, and nothing of this call can meet the next one.
            self.open = None;
        }
        let answer = done?;
        if answer.code == 0 { Ok(answer.payload) } else { Err(Failure::Answered { code: answer.code, message: answer.message }) }
    }

    /// Try to connect until it succeeds, or until that instant; the error says why it did not.
    pub fn connect(&mut self, until: Nanos) -> Result<(), String> {
        let mut why = "no time was left to connect".to_owned();
        let done = self.run(until, async |channel| {
            if std::mem::take(&mut channel.is_leaving) {
                tokio::time::sleep(AGAIN).await;
            }
            while let Err(error) = channel.opened().await {
                why = error;
                tokio::time::sleep(AGAIN).await;
            }
        });
        done.ok_or(why)
    }

    /// Let go of the connection.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// None if it takes longer than `until`.
    fn run<T>(&mut self, until: Nanos, work: impl AsyncFnOnce(&mut Channel) -> T) -> Option<T> {
        let left = u64::try_from(until - Clock::Monotonic.now()).ok().filter(|left| *left > 0)?;
        let runtime = self.runtime.take()?;
        let done = runtime.block_on(async { timeout(Duration::from_nanos(left), work(self)).await });
        self.runtime = Some(runtime);
        done.ok()
    }

    async fn exchange(&mut self, method: &Method, message: Bytes, until: Nanos) -> Result<Answer, Failure> {
        let partial = Arc::clone(&self.partial);
        let opened = self.opened().await.map_err(Failure::Unsent)?;
        let before = opened.written.load(Ordering::Relaxed);
        let request = method.request(Some(until - Clock::Monotonic.now()));
        let sender = opened.sender.clone();
        let mut answer = pin!(async { call::receive(call::send(sender, request, message).await?, partial).await });
        let connection = &mut opened.connection;
        let mut has_ended = false;
        let answered = poll_fn(|cx| {
            // What is to be sent is handed to the connection, which writes it, and may read the answer.
            if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                return Poll::Ready(answered);
            }
            has_ended = has_ended || Pin::new(&mut *connection).poll(cx).is_ready();
            answer.as_mut().poll(cx)
        });
        let answered = answered.await;
        let was_written = opened.written.load(Ordering::Relaxed) > before;
        answered.map_err(|error| self.failure(&error, was_written))
    }

    fn failure(&mut self, error: &h2::Error, was_written: bool) -> Failure {
        self.open = None;
        let why = format!("the connection to {} broke off: {error}", self.address);
        // HTTP/2 promises that a stream above the last one of a GOAWAY, or one that was refused, was not looked at; no other of
        // h2's errors of a stream is a GOAWAY from there.
        self.is_leaving = error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
        if self.is_leaving || !was_written { Failure::Unsent(why) } else { Failure::Lost(why) }
    }

    /// A connection that was there a moment ago.
    async fn opened(&mut self) -> Result<&mut Opened, String> {
        if let Some(opened) = &mut self.open {
            // Lets the runtime ask the kernel what has come; then the connection hears of its end, if it has ended.
            tokio::task::yield_now().await;
            let connection = &mut opened.connection;
            let has_ended = poll_fn(|cx| Poll::Ready(Pin::new(&mut *connection).poll(cx).is_ready())).await;
            if has_ended {
                self.open = None;
            }
        }
        if self.open.is_none() {
            let patience = Duration::from_nanos(self.patience.max(0) as u64);
            let opened = timeout(patience, connection::open(&self.address)).await;
            let opened = opened.map_err(|_| format!("no connection within {patience:?}"))?;
            self.open = Some(opened.map_err(|error| error.to_string())?);
        }
        self.open.as_mut().ok_or_else(String::new)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.open = None;
        if let Some(runtime) = self.runtime.take() {
            // Whoever still looks up a name is not waited for.
            runtime.shutdown_background();
        }
    }
}
