//! The server: an I/O thread from start to close, and what other threads share with it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use regex_lite::Regex;
use tokio::sync::oneshot;

use super::control::Calls;
use super::io::{Inbox, Io};
use super::listener::Listener;
use crate::clock::Nanos;
use crate::codec::Parameter;
use crate::error::{Error, Result};
use crate::news::Level;
use crate::queue::House;
use crate::regions::Regions;
use crate::routes::Routes;
use crate::wire::Text;

/// How long connections without calls may take to say goodbye.
const LINGER: Duration = Duration::from_millis(500);

/// The bounds of one stream; see `headrace.transport.streams.Window`.
#[derive(Clone, Copy, Debug)]
pub struct StreamWindow {
    pub requests: usize,
    pub unsent: usize,
    pub flood: usize,
}

/// Takes the headers that become parameters out of those of a call.
pub struct Forwarding {
    pattern: Option<Regex>,
}

const RESERVED: [&str; 7] =
    ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output"];

impl Forwarding {
    /// `pattern` is found anywhere in a header's name; empty forwards nothing. The error says why it is none.
    pub fn new(pattern: &str) -> std::result::Result<Forwarding, String> {
        let pattern = if pattern.is_empty() { None } else { Some(Regex::new(pattern).map_err(|error| error.to_string())?) };
        Ok(Forwarding { pattern })
    }

    /// Values of a header that comes twice are joined by commas.
    pub fn parameters(&self, headers: &HeaderMap) -> Result<Vec<(Text, Parameter)>> {
        let Some(pattern) = &self.pattern else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for name in headers.keys().map(http::HeaderName::as_str) {
            // What ends in -bin is bytes, which no parameter carries; the others are between gRPC and us.
            if name.ends_with("-bin") || name.starts_with("grpc-") || matches!(name, "te" | "content-type") {
                continue;
            }
            if !pattern.is_match(name) {
                continue;
            }
            if RESERVED.contains(&name) || name.starts_with("triton_") {
                let told = format!("Header '{name}' is reserved for Triton usage and cannot be forwarded.");
                return Err(Error::invalid(told));
            }
            let values = headers.get_all(name).iter().filter_map(|value| std::str::from_utf8(value.as_bytes()).ok());
            let value = values.collect::<Vec<_>>().join(",");
            found.push((Text::from(name.to_owned()), Parameter::String(Text::from(value))));
        }
        Ok(found)
    }
}

/// What a server is told.
pub struct Options {
    pub methods: HashSet<String>,
    pub dialogues: HashSet<String>,
    pub forwarding: Forwarding,
    pub window: StreamWindow,
}

/// What the I/O thread and everybody else know.
pub struct Shared {
    pub house: Arc<House>,
    pub routes: Arc<Routes>,
    pub regions: Arc<Regions>,
    pub inbox: Arc<Inbox>,
    pub calls: Arc<Calls>,
    pub methods: HashSet<String>,
    pub dialogues: HashSet<String>,
    pub options: Tuned,
    is_accepting: AtomicBool,
}

/// The part of the options that calls look at.
pub struct Tuned {
    pub forwarding: Forwarding,
    pub window: StreamWindow,
}

impl Shared {
    /// Whether requests are taken.
    pub fn check_accepting(&self) -> Result<()> {
        if self.is_accepting.load(Ordering::Acquire) { Ok(()) } else { Err(Error::draining()) }
    }
}

/// A server that listens.
pub struct Server {
    shared: Arc<Shared>,
    thread: Mutex<Option<(oneshot::Sender<Nanos>, JoinHandle<()>)>>,
}

impl Server {
    /// Begin to serve. Fails where the machine has no thread or no poller left.
    pub fn start(
        listener: Listener,
        house: Arc<House>,
        routes: Arc<Routes>,
        regions: Arc<Regions>,
        options: Options,
    ) -> std::io::Result<Server> {
        let Options { methods, dialogues, forwarding, window } = options;
        let shared = Arc::new(Shared {
            house,
            routes,
            regions,
            inbox: Arc::default(),
            calls: Arc::default(),
            methods,
            dialogues,
            options: Tuned { forwarding, window },
            is_accepting: AtomicBool::new(true),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("headrace-io".to_owned()).spawn(move || {
            let tasks = tokio::task::LocalSet::new();
            let io = Io::new(Arc::clone(&its));
            tasks.block_on(&runtime, run(io, listener, stopped));
            // What is still open is dropped here, and cancels what it had asked for.
            drop(tasks);
            its.calls.close();
        })?;
        Ok(Server { shared, thread: Mutex::new(Some((stop, thread))) })
    }

    /// The control calls, for threads of Python.
    pub fn calls(&self) -> Arc<Calls> {
        Arc::clone(&self.shared.calls)
    }

    /// Refuse new requests; those that run go on.
    pub fn stop_accepting(&self) {
        self.shared.is_accepting.store(false, Ordering::Release);
    }

    /// Say goodbye to every connection, wait until `deadline` for the calls that run, then end the rest. Once.
    pub fn close(&self, deadline: Nanos) {
        self.stop_accepting();
        if let Some((stop, thread)) = self.thread.lock().take() {
            let _ = stop.send(deadline);
            if thread.join().is_err() {
                self.shared.house.news.log(Level::Error, "the I/O thread panicked; this is a bug in Headrace".to_owned());
            }
        }
    }
}

async fn run(io: Arc<Io>, listener: Listener, stopped: oneshot::Receiver<Nanos>) {
    tokio::task::spawn_local(Arc::clone(&io).flush());
    let accepting = tokio::task::spawn_local(listener.accept(Arc::clone(&io)));
    let deadline = stopped.await.unwrap_or(0);
    accepting.abort();
    // Otherwise the socket would be closed only when the task is next looked at.
    let _ = accepting.await;
    io.is_finishing.store(true, Ordering::Release);
    io.wake_all();
    let left = Duration::from_nanos(deadline.saturating_sub(io.shared.house.clock.now()).max(0) as u64);
    let _ = tokio::time::timeout(left, until(&io, |io| io.calls.load(Ordering::Acquire) == 0)).await;
    let _ = tokio::time::timeout(LINGER.min(left), until(&io, |io| io.connections.lock().is_empty())).await;
}

async fn until(io: &Io, holds: impl Fn(&Io) -> bool) {
    loop {
        let ended = io.ended.notified();
        if holds(io) {
            return;
        }
        ended.await;
    }
}
