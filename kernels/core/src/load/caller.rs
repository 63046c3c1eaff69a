//! Many calls of one method at once, over a connection that comes back when it was lost.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use tokio::sync::Notify;

use crate::client::call::{self, Answer, Method};
use crate::client::channel::AGAIN;
use crate::client::connection::{self, Opened};
use crate::clock::Nanos;
use crate::error::Code;

const CONNECTING: Duration = Duration::from_secs(10);

/// What became of a request.
#[derive(Clone, Copy)]
pub struct Asked {
    pub code: u8,
    /// Whether it left: where there is no connection, or it is closing, it does not.
    pub was_sent: bool,
}

/// The connection of a caller, which may come and go.
#[derive(Default)]
struct Line {
    sender: RefCell<Option<SendRequest<Bytes>>>,
    /// Which connection it is, counted from the first.
    generation: Cell<u64>,
    lost: Notify,
}

impl Line {
    /// This connection takes no more requests: those it has are let to their end, and another is opened.
    fn lose(&self, generation: u64) {
        if self.generation.get() == generation && self.sender.borrow_mut().take().is_some() {
            self.lost.notify_one();
        }
    }
}

/// Calls one method over one connection.
pub struct Caller {
    method: Method,
    line: Rc<Line>,
    partial: Arc<AtomicUsize>,
}

impl Caller {
    /// Connect, and stay so: when the connection is lost, it is opened again.
    pub async fn connect(address: &str, path: &str) -> Result<Caller, String> {
        let method = Method::of(address, path)?;
        let first = open(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
        let line = Rc::new(Line::default());
        tokio::task::spawn_local(keep(address.to_owned(), first, Rc::clone(&line)));
        // The task of the connection runs when this one waits next.
        tokio::task::yield_now().await;
        Ok(Caller { method, line, partial: Arc::default() })
    }

    /// Send a message, and drop what comes back but for its code.
    pub async fn ask(&self, message: Bytes, left: Option<Nanos>) -> Asked {
        let Some(response) = self.send(message, left).await else {
            return Asked { code: Code::Unavailable as u8, was_sent: false };
        };
        let answer = call::receive(response, Arc::clone(&self.partial)).await;
        let code = answer.unwrap_or_else(|_| Answer::without(Code::Unavailable, "")).code;
        Asked { code, was_sent: true }
    }

    async fn send(&self, message: Bytes, left: Option<Nanos>) -> Option<ResponseFuture> {
        let generation = self.line.generation.get();
        let sender = self.line.sender.borrow().clone()?;
        let sent = call::send(sender, self.method.request(left), message).await;
        sent.inspect_err(|_| self.line.lose(generation)).ok()
    }
}

async fn open(address: &str) -> Result<Opened, String> {
    let opened = tokio::time::timeout(CONNECTING, connection::open(address)).await.map_err(|_| "no answer".to_owned())?;
    opened.map_err(|error| error.to_string())
}

async fn keep(address: String, first: Opened, line: Rc<Line>) {
    let mut opened = Ok(first);
    loop {
        match opened {
            Ok(Opened { sender, connection, .. }) => {
                let generation = line.generation.get() + 1;
                line.generation.set(generation);
                *line.sender.borrow_mut() = Some(sender);
                let its = Rc::clone(&line);
                tokio::task::spawn_local(async move {
                    let _ = connection.await;
                    its.lose(generation);
                });
                line.lost.notified().await;
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
        opened = open(&address).await;
    }
}
