//! The client against servers that refuse, break off, are late or leave: what it says of each call, and what the server got.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener as Listener, TcpStream as Stream};
use std::pin::pin;
use std::sync::mpsc::{Receiver, channel};
use std::task::Poll;
use std::thread::{JoinHandle, spawn};

use bytes::Bytes;
use futures_util::future::select;
use h2::Reason;
use h2::server::{Connection, SendResponse, handshake};
use headrace_core::client::{Channel, Failure};
use headrace_core::clock::{Clock, Nanos};
use headrace_core::codec::framed;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

const METHOD: &str = "/a.Service/Method";
const SECOND: Nanos = 1_000_000_000;
const SHORTLY: Nanos = SECOND / 20;

fn after(nanos: Nanos) -> Nanos {
    Clock::Monotonic.now() + nanos
}

fn message(payload: &[u8]) -> Bytes {
    let mut message = framed(payload.len()).unwrap();
    message.extend_from_slice(payload);
    message.into()
}

fn call(channel: &mut Channel, payload: &[u8]) -> Result<Bytes, Failure> {
    channel.call(METHOD, &[], message(payload), after(20 * SECOND))
}

fn answered(code: u8, message: &str) -> Result<Bytes, Failure> {
    Err(Failure::Answered { code, message: message.to_owned() })
}

/// What `script` does with a listener, in a thread of its own, and a channel to it.
fn serving<F: Future<Output = ()>>(script: impl FnOnce(TcpListener) -> F + Send + 'static) -> (Channel, JoinHandle<()>) {
    let (told, hear) = channel();
    let thread = spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            script(listener).await;
        });
    });
    (Channel::new(&hear.recv().unwrap().to_string(), 5 * SECOND).unwrap(), thread)
}

type Came = (Request<Bytes>, SendResponse<Bytes>);

/// The next call, with all that was sent; None when the connection is over.
async fn next<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S, Bytes>) -> Option<Came> {
    let (request, respond) = connection.accept().await?.ok()?;
    let (head, mut body) = request.into_parts();
    let mut whole = Vec::new();
    let all = async {
        while let Some(Ok(part)) = body.data().await {
            body.flow_control().release_capacity(part.len()).unwrap();
            whole.extend_from_slice(&part);
        }
    };
    select(pin!(all), pin!(until_closed(connection))).await;
    Some((Request::from_parts(head, whole.into()), respond))
}

/// Reads and writes, until there is nobody to read from and write to.
async fn until_closed<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S, Bytes>) {
    let _ = poll_fn(|cx| connection.poll_closed(cx)).await;
}

/// Writes what there is to write, and no more.
async fn write<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S, Bytes>) {
    let _ = poll_fn(|cx| Poll::Ready(connection.poll_closed(cx))).await;
}

fn trailers(code: &'static str, words: &'static str) -> HeaderMap {
    let told = [("grpc-status", code), ("grpc-message", words)];
    told.into_iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
}

fn answer(mut respond: SendResponse<Bytes>, messages: &[Bytes], trailers: HeaderMap) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    messages.iter().for_each(|message| stream.send_data(message.clone(), false).unwrap());
    stream.send_trailers(trailers).unwrap();
}

/// Gives back what comes, until the connection is over.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S, Bytes>) {
    while let Some((request, respond)) = next(connection).await {
        answer(respond, &[request.into_body()], trailers("0", ""));
    }
}

#[test]
fn what_goes_out_and_comes_back() {
    let (mut channel, server) = serving(async |listener| {
        let mut connection = handshake(listener.accept().await.unwrap().0).await.unwrap();
        let (request, respond) = next(&mut connection).await.unwrap();
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(request.uri().path(), METHOD);
        assert_eq!(header("te").unwrap(), "trailers");
        assert_eq!(header("content-type").unwrap(), "application/grpc");
        assert_eq!(header("traceparent").unwrap(), "00-a-b-01");
        assert_eq!(header("tracestate"), None, "no header has such a value");
        let left: u64 = header("grpc-timeout").unwrap().trim_end_matches('u').parse().unwrap();
        assert!((1..=20_000_000).contains(&left));
        answer(respond, &[request.into_body()], trailers("0", ""));
        echo(&mut connection).await;
    });
    let metadata =
        [("traceparent", "00-a-b-01"), ("tracestate", "a=\n")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(channel.call(METHOD, &metadata, message(b"abc"), after(20 * SECOND)), Ok(Bytes::from_static(b"abc")));
    // Larger than any window, each way; then again over the same connection.
    for size in [0, 3 << 20, 1] {
        let payload: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        assert!(call(&mut channel, &payload).unwrap() == payload, "{size} bytes are not those that were sent");
    }
    channel.close();
    server.join().unwrap();
}

#[test]
fn a_socket_file() {
    let path = std::env::temp_dir().join(format!("headrace-client-{}", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let address = format!("unix:{}", path.display());
    let server = spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            listener.set_nonblocking(true).unwrap();
            let socket = UnixListener::from_std(listener).unwrap().accept().await.unwrap().0;
            echo(&mut handshake(socket).await.unwrap()).await;
        });
    });
    let mut channel = Channel::new(&address, SECOND).unwrap();
    assert_eq!(call(&mut channel, b"abc"), Ok(Bytes::from_static(b"abc")));
    drop(channel);
    server.join().unwrap();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn errors_of_the_server() {
    let (mut channel, server) = serving(async |listener| {
        let mut connection = handshake(listener.accept().await.unwrap().0).await.unwrap();
        let (_, mut respond) = next(&mut connection).await.unwrap();
        let mut head = Response::new(());
        head.headers_mut().extend(trailers("9", "100 %25 of caf%C3%A9"));
        respond.send_response(head, true).unwrap();
        let (_, respond) = next(&mut connection).await.unwrap();
        answer(respond, &[message(b"abc")], trailers("14", "it leaves"));
        let (_, mut respond) = next(&mut connection).await.unwrap();
        respond.send_response(Response::builder().status(503).body(()).unwrap(), true).unwrap();
        let (_, respond) = next(&mut connection).await.unwrap();
        answer(respond, &[], trailers("0", ""));
        let (_, respond) = next(&mut connection).await.unwrap();
        answer(respond, &[message(b"a"), message(b"b")], trailers("0", ""));
        let (_, respond) = next(&mut connection).await.unwrap();
        answer(respond, &[message(b"abc").slice(..6)], trailers("0", ""));
        echo(&mut connection).await;
    });
    assert_eq!(call(&mut channel, b""), answered(9, "100 % of café"));
    assert_eq!(call(&mut channel, b""), answered(14, "it leaves"));
    let told = "the server answered with HTTP 503 Service Unavailable, and nothing of gRPC";
    assert_eq!(call(&mut channel, b""), answered(14, told));
    assert_eq!(call(&mut channel, b""), answered(13, "the server answered well, and with no message"));
    assert_eq!(call(&mut channel, b""), answered(13, "the server answered with more than one message"));
    assert_eq!(call(&mut channel, b""), answered(13, "the message of the call ends too soon"));
    assert_eq!(call(&mut channel, b"abc"), Ok(Bytes::from_static(b"abc")), "all that over one connection");
    channel.close();
    server.join().unwrap();
}

#[test]
fn who_is_not_there_was_sent_nothing() {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut channel = Channel::new(&address, SHORTLY).unwrap();
    // It is there, and says nothing: not even that it speaks HTTP/2.
    assert_eq!(call(&mut channel, b"abc"), Err(Failure::Unsent("no connection within 50ms".to_owned())));
    assert_eq!(channel.call(METHOD, &[], message(b""), after(SHORTLY / 10)), Err(Failure::Late));
    let hangs_up = spawn(move || {
        drop(listener.accept().unwrap().0); // of the calls that gave up
        drop(listener.accept().unwrap().0);
        drop(listener.accept().unwrap().0);
    });
    assert!(matches!(call(&mut channel, b"abc"), Err(Failure::Unsent(_))));
    hangs_up.join().unwrap();
    assert!(matches!(call(&mut channel, b"abc"), Err(Failure::Unsent(words)) if words.contains("refused")));
    assert!(channel.connect(after(SHORTLY)).unwrap_err().contains("refused"));
    assert_eq!(channel.call(METHOD, &[], message(b""), after(0)), Err(Failure::Late), "its time is over");
    let mut nowhere = Channel::new("no address", SECOND).unwrap();
    assert!(matches!(call(&mut nowhere, b""), Err(Failure::Unsent(words)) if words.contains("no HOST:PORT")));
    let later = spawn(move || {
        // Nobody can see whether it was tried before; but it is there only now.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind(&address).await.unwrap();
            echo(&mut handshake(listener.accept().await.unwrap().0).await.unwrap()).await;
        });
    });
    channel.connect(after(20 * SECOND)).unwrap();
    assert_eq!(call(&mut channel, b"abc"), Ok(Bytes::from_static(b"abc")));
    channel.close();
    later.join().unwrap();
}

#[test]
fn a_connection_that_ended_while_nobody_used_it_is_not_used_again() {
    let (told, gone): (_, Receiver<()>) = channel();
    let (mut channel, server) = serving(async move |listener| {
        for leaves in [true, false, false] {
            let mut connection = handshake(listener.accept().await.unwrap().0).await.unwrap();
            let (request, respond) = next(&mut connection).await.unwrap();
            answer(respond, &[request.into_body()], trailers("0", ""));
            if leaves {
                connection.graceful_shutdown();
            }
            write(&mut connection).await;
            if leaves {
                told.send(()).unwrap();
                until_closed(&mut connection).await;
            } else {
                drop(connection);
                told.send(()).unwrap();
            }
        }
    });
    for payload in [b"a", b"b", b"c"] {
        assert_eq!(call(&mut channel, payload), Ok(Bytes::from_static(payload)));
        gone.recv().unwrap();
    }
    channel.close();
    server.join().unwrap();
}

#[test]
fn what_was_received_and_not_answered_is_lost() {
    let (mut channel, server) = serving(async |listener| {
        let mut connection = handshake(listener.accept().await.unwrap().0).await.unwrap();
        assert_eq!(next(&mut connection).await.unwrap().0.into_body(), message(b"abc"));
        drop(connection);
        echo(&mut handshake(listener.accept().await.unwrap().0).await.unwrap()).await;
    });
    assert!(matches!(call(&mut channel, b"abc"), Err(Failure::Lost(words)) if words.contains("127.0.0.1")));
    assert_eq!(call(&mut channel, b"abc"), Ok(Bytes::from_static(b"abc")));
    channel.close();
    server.join().unwrap();
}

#[test]
fn a_late_answer_meets_nobody() {
    let (mut channel, server) = serving(async |listener| {
        let mut connection = handshake(listener.accept().await.unwrap().0).await.unwrap();
        let (request, respond) = next(&mut connection).await.unwrap();
        // The client is gone, which ends the call here.
        until_closed(&mut connection).await;
        answer_late(respond, request.into_body());
        echo(&mut handshake(listener.accept().await.unwrap().0).await.unwrap()).await;
    });
    assert_eq!(channel.call(METHOD, &[], message(b"late"), after(2 * SHORTLY)), Err(Failure::Late));
    assert_eq!(call(&mut channel, b"abc"), Ok(Bytes::from_static(b"abc")));
    channel.close();
    server.join().unwrap();
}

fn answer_late(mut respond: SendResponse<Bytes>, message: Bytes) {
    if let Ok(mut stream) = respond.send_response(Response::new(()), false) {
        let _ = stream.send_data(message, true);
    }
}

/// A server that says these bytes once a request has come, and then no more.
fn saying(listener: &Listener, after_request: &[&[u8]]) {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let (mut socket, _) = listener.accept().unwrap();
    let mut preface = [0; 24];
    socket.read_exact(&mut preface).unwrap();
    socket.write_all(&SETTINGS).unwrap();
    while frame_of(&mut socket) != 0 {} // DATA, the whole of it
    after_request.iter().for_each(|bytes| socket.write_all(bytes).unwrap());
    socket.shutdown(Shutdown::Write).unwrap();
    let _ = socket.read_to_end(&mut Vec::new());
}

/// Reads a frame; its kind.
fn frame_of(socket: &mut Stream) -> u8 {
    let mut head = [0; 9];
    socket.read_exact(&mut head).unwrap();
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    socket.read_exact(&mut payload).unwrap();
    head[3]
}

fn goaway(last: u8, reason: Reason) -> Vec<u8> {
    let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, last];
    frame.extend_from_slice(&u32::from(reason).to_be_bytes());
    frame
}

fn reset(reason: Reason) -> Vec<u8> {
    let mut frame = vec![0, 0, 4, 3, 0, 0, 0, 0, 1];
    frame.extend_from_slice(&u32::from(reason).to_be_bytes());
    frame
}

#[test]
fn what_a_server_says_it_did_not_look_at_was_not_run() {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let mut channel = Channel::new(&listener.local_addr().unwrap().to_string(), SECOND).unwrap();
    let cases = [
        (goaway(0, Reason::NO_ERROR), true),
        (goaway(0, Reason::ENHANCE_YOUR_CALM), true),
        (reset(Reason::REFUSED_STREAM), true),
        (goaway(1, Reason::NO_ERROR), false), // it looked at ours, and then the connection ends
        (reset(Reason::CANCEL), false),
        (reset(Reason::INTERNAL_ERROR), false),
        (vec![0xff; 9], false), // no frame at all
        (Vec::new(), false),
    ];
    let said: Vec<Vec<u8>> = cases.iter().map(|(frames, _)| frames.clone()).collect();
    let server = spawn(move || said.iter().for_each(|frames| saying(&listener, &[frames])));
    for (frames, is_unsent) in cases {
        let failure = call(&mut channel, b"abc").unwrap_err();
        assert_eq!(matches!(failure, Failure::Unsent(_)), is_unsent, "{frames:?}: {failure:?}");
        assert_eq!(matches!(failure, Failure::Lost(_)), !is_unsent, "{frames:?}: {failure:?}");
    }
    server.join().unwrap();
}

#[test]
fn a_server_that_leaves_still_answers_what_it_has() {
    let (mut channel, server) = serving(async |listener| {
        for _ in 0..2 {
            let mut connection = handshake(listener.accept().await.unwrap().0).await.unwrap();
            let (request, respond) = next(&mut connection).await.unwrap();
            connection.graceful_shutdown();
            answer(respond, &[request.into_body()], trailers("0", ""));
            assert!(next(&mut connection).await.is_none());
        }
    });
    for payload in [b"a", b"b"] {
        assert_eq!(call(&mut channel, payload), Ok(Bytes::from_static(payload)));
    }
    channel.close();
    server.join().unwrap();
}
