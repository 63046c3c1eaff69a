//! One connection: a task that reads and writes its frames and drives its calls, each a future inside this task.
//!
//! So an answer needs no wake of its own: the letters of a batch wake the tasks of their connections, and each writes all of
//! them at once.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use h2::server::{Connection as Http2, SendResponse};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::infer::Head;
use super::io::Io;
use super::link::{Drive, Link};
use super::message::Messages;
use super::paced::{Pace, Paced};
use super::reply::Reply;
use super::{control, infer, status, stream};
use crate::error::{Error, Kind};
use crate::faults;
use crate::news::Level;

/// Windows: what a client may send before it hears from us. The defaults of 64 KiB would stop every larger tensor.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const FRAME: u32 = 1 << 20;
const MOST_STREAMS: u32 = 4096;
const MOST_HEADERS: u32 = 64 << 10;
/// What HTTP/2 keeps of a call's answer before it is written.
const SEND_BUFFER: usize = 1 << 20;
const HANDSHAKE: Duration = Duration::from_secs(20);
/// How often a connection is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_PATIENCE: Duration = Duration::from_secs(20);
/// Unsent bytes of answers of one connection: above the first, no further call is taken from it; above the second, answers
/// become errors.
const UNSENT: usize = 64 << 20;
const MOST_UNSENT: usize = 512 << 20;

type Served = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a client has asked for and does not read.
#[derive(Default)]
pub struct Outgoing {
    unsent: AtomicUsize,
}

impl Outgoing {
    pub fn add(&self, bytes: usize) {
        self.unsent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn remove(&self, bytes: usize) {
        self.unsent.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether an answer of so many bytes may wait, too. One always may.
    pub fn has_room(&self, bytes: usize) -> bool {
        let unsent = self.unsent.load(Ordering::Relaxed);
        unsent == 0 || unsent + bytes <= MOST_UNSENT
    }

    pub fn too_slow(&self) -> Error {
        let message = format!(
            "{} MiB of answers wait on this connection for their reader; read them, or ask for fewer at a time",
            self.unsent.load(Ordering::Relaxed) >> 20
        );
        Error::new(Kind::ReaderTooSlow, message)
    }
}

/// An answer that is counted for its connection as long as this lives.
pub struct Held {
    outgoing: Arc<Outgoing>,
    bytes: usize,
}

impl Held {
    pub fn new(outgoing: &Arc<Outgoing>, bytes: usize) -> Held {
        outgoing.add(bytes);
        Held { outgoing: Arc::clone(outgoing), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.outgoing.remove(self.bytes);
    }
}

/// Serve a connection to its end; `peer` is the pseudonym of who has it.
pub async fn serve(io: Arc<Io>, socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: u64) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(MOST_HEADERS)
        // Clients whose deadlines pass together give up hundreds of calls at once. h2 takes twenty for an attack.
        .max_pending_accept_reset_streams(MOST_STREAMS as usize)
        .max_send_buffer_size(SEND_BUFFER);
    let link = Arc::new(Link::default());
    let open = Open::new(&io, &link);
    let (socket, pace) = Paced::new(socket);
    let Ok(Ok(mut http2)) = tokio::time::timeout(HANDSHAKE, builder.handshake(socket)).await else { return };
    let ping = Ping::new(&io, http2.ping_pong());
    let (calls, outgoing) = (FuturesUnordered::new(), Arc::default());
    link.set(Box::new(Connection { io, http2, calls, outgoing, ping, pace, peer, is_ending: false }));
    poll_fn(|cx| link.poll(cx)).await;
    drop(open);
}

/// Counts a connection for as long as it is open.
struct Open {
    io: Arc<Io>,
    link: Arc<Link>,
    id: u64,
}

impl Open {
    fn new(io: &Arc<Io>, link: &Arc<Link>) -> Open {
        Open { id: io.enter(link), io: Arc::clone(io), link: Arc::clone(link) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.link.clear();
        self.io.leave(self.id);
    }
}

struct Connection<S> {
    io: Arc<Io>,
    http2: Http2<S, Bytes>,
    calls: FuturesUnordered<Served>,
    outgoing: Arc<Outgoing>,
    ping: Ping,
    pace: Pace,
    peer: u64,
    is_ending: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Drive for Connection<S> {
    /// Ready when the connection is over. Its calls are dropped with it then, and so is what they asked for.
    fn drive(&mut self, cx: &mut Context<'_>, is_task: bool) -> Poll<()> {
        if self.io.is_finishing.load(Ordering::Acquire) && !self.is_ending {
            self.is_ending = true;
            self.http2.graceful_shutdown();
        }
        self.pace.begin();
        loop {
            while let Poll::Ready(Some(())) = self.calls.poll_next_unpin(cx) {}
            // New calls are for the task; and a client that has enough to read has to read first: what it asks meanwhile stays
            // with HTTP/2, and then with the client.
            if !is_task || self.outgoing.unsent.load(Ordering::Relaxed) > UNSENT {
                if self.http2.poll_closed(cx).is_ready() {
                    return Poll::Ready(());
                }
                break;
            }
            match self.http2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.take_call(request, respond),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        if is_task { self.ping.poll(cx) } else { Poll::Pending }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    fn take_call(&mut self, request: Request<h2::RecvStream>, respond: SendResponse<Bytes>) {
        let call = serve_call(Arc::clone(&self.io), request, respond, Arc::clone(&self.outgoing), self.peer);
        self.calls.push(Box::pin(call));
    }
}

/// Counts a call for as long as it lasts.
struct UnderWay(Arc<Io>);

impl UnderWay {
    fn new(io: &Arc<Io>) -> UnderWay {
        io.calls.fetch_add(1, Ordering::AcqRel);
        UnderWay(Arc::clone(io))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
        self.0.ended.notify_waiters();
    }
}

async fn serve_call(
    io: Arc<Io>,
    request: Request<h2::RecvStream>,
    respond: SendResponse<Bytes>,
    outgoing: Arc<Outgoing>,
    peer: u64,
) {
    let received = io.shared.house.clock.now();
    let _under_way = UnderWay::new(&io);
    let mut reply = Reply::new(respond, Arc::clone(&outgoing));
    let (head, body) = request.into_parts();
    if !status::is_grpc(&head.headers) {
        return reply.end_with(status::not_grpc());
    }
    let messages = Messages::new(body, &head.headers, Arc::clone(&io.partial), io.shared.house.clock.clone());
    let path = head.uri.path();
    let served = async {
        match path {
            "/inference.GRPCInferenceService/ModelInfer" => {
                let head = Head::of(&io, &head.headers, received, peer);
                infer::infer(&io, head, messages, &mut reply, &outgoing).await;
            }
            "/inference.GRPCInferenceService/ModelStreamInfer" => {
                let head = Head::of(&io, &head.headers, received, peer);
                stream::serve(&io, head, messages, &mut reply, &outgoing).await;
            }
            method if io.shared.methods.contains(method) => control::call(&io, method, messages, &mut reply).await,
            method if io.shared.dialogues.contains(method) => control::converse(&io, method, messages, &mut reply).await,
            method => reply.end(Err(&Error::new(Kind::Unsupported, format!("there is no method {method}")))),
        }
    };
    if let Err(panic) = AssertUnwindSafe(served).catch_unwind().await {
        let error = Error::broken(format!("a call of {path} panicked: {}", faults::said(&*panic)));
        io.shared.house.news.log(Level::Error, error.message.clone());
        reply.end(Err(&error));
    }
}

/// Asks the other side now and then whether it is there.
struct Ping {
    pinger: Option<h2::PingPong>,
    next: Pin<Box<Sleep>>,
    is_out: bool,
    io: Arc<Io>,
}

impl Ping {
    fn new(io: &Arc<Io>, pinger: Option<h2::PingPong>) -> Ping {
        Ping { pinger, next: Box::pin(tokio::time::sleep(PING_EVERY)), is_out: false, io: Arc::clone(io) }
    }

    /// Ready when the other side is gone.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pinger) = &mut self.pinger else {
            return Poll::Pending;
        };
        if self.is_out && pinger.poll_pong(cx).is_ready() {
            self.is_out = false;
            self.next.as_mut().reset(Instant::now() + PING_EVERY);
        }
        while self.next.as_mut().poll(cx).is_ready() {
            if self.is_out {
                self.io.shared.house.news.log(Level::Debug, "a connection that does not answer any more is closed".to_owned());
                return Poll::Ready(());
            }
            self.is_out = pinger.send_ping(h2::Ping::opaque()).is_ok();
            self.next.as_mut().reset(Instant::now() + PING_PATIENCE);
            let _ = pinger.poll_pong(cx);
        }
        Poll::Pending
    }
}
