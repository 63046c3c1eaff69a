//! The other side of gRPC over HTTP/2: a connection that comes back when it was lost, and calls of one method on it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;

use crate::clock::Nanos;

const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
const FRAME: u32 = 1 << 20;
const AGAIN: Duration = Duration::from_millis(100);
const CONNECTING: Duration = Duration::from_secs(10);
const MOST_GIVEN_UP: usize = 1 << 14;
const UNKNOWN: u8 = 2;
const UNAVAILABLE: u8 = 14;

/// A message with the prefix that gRPC wants.
pub fn framed(payload: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(payload.len() + 5);
    framed.put_u8(0);
    framed.put_u32(payload.len() as u32);
    framed.put_slice(payload);
    framed.freeze()
}

/// How a call ended.
pub struct Answer {
    pub code: u8,
    pub message: String,
    /// Of the first message; empty where it was not asked for.
    pub payload: Vec<u8>,
}

impl Answer {
    fn without(code: u8, message: impl Into<String>) -> Answer {
        Answer { code, message: message.into(), payload: Vec::new() }
    }

    fn of(headers: &HeaderMap, payload: Vec<u8>) -> Answer {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let code = text("grpc-status").and_then(|code| code.parse().ok()).unwrap_or(UNKNOWN);
        Answer { code, message: text("grpc-message").unwrap_or_default().to_owned(), payload }
    }

    fn lost(error: &h2::Error) -> Answer {
        Answer::without(UNAVAILABLE, error.to_string())
    }
}

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
    uri: Uri,
    headers: HeaderMap,
    line: Rc<Line>,
}

impl Caller {
    /// Connect, and stay so: when the connection is lost, it is opened again.
    pub async fn connect(address: &str, method: &str) -> Result<Caller, String> {
        let line = Rc::new(Line::default());
        let first = open(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
        tokio::task::spawn_local(keep(address.to_owned(), first, Rc::clone(&line)));
        // The task of the connection runs when this one waits next.
        tokio::task::yield_now().await;
        Ok(Caller { uri: uri_of(address, method)?, headers: headers(), line })
    }

    /// Send a message, and drop what comes back but for its code.
    pub async fn ask(&self, message: Bytes, left: Option<Nanos>) -> Asked {
        match self.send(message, left).await {
            Ok(response) => {
                let code = receive(response, false).await.unwrap_or_else(|error| Answer::lost(&error)).code;
                Asked { code, was_sent: true }
            }
            Err(answer) => Asked { code: answer.code, was_sent: false },
        }
    }

    /// Send a message, and give back what comes.
    pub async fn answer(&self, message: Bytes) -> Answer {
        match self.send(message, None).await {
            Ok(response) => receive(response, true).await.unwrap_or_else(|error| Answer::lost(&error)),
            Err(answer) => answer,
        }
    }

    async fn send(&self, message: Bytes, left: Option<Nanos>) -> Result<ResponseFuture, Answer> {
        let generation = self.line.generation.get();
        let Some(sender) = self.line.sender.borrow().clone() else {
            return Err(Answer::without(UNAVAILABLE, "not connected"));
        };
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(left) = left {
            request.headers_mut().insert("grpc-timeout", timeout(left));
        }
        let sent = async {
            let mut sender = sender.ready().await?;
            let (response, mut body) = sender.send_request(request, false)?;
            body.send_data(message, true)?;
            Ok::<_, h2::Error>(response)
        };
        sent.await.map_err(|error| {
            self.line.lose(generation);
            Answer::lost(&error)
        })
    }
}

async fn receive(response: ResponseFuture, keeps: bool) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let mut payload = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        if keeps {
            payload.extend_from_slice(&part);
        }
    }
    payload.drain(..payload.len().min(5));
    let trailers = body.trailers().await?;
    // An answer without messages has its status in its head.
    Ok(Answer::of(trailers.as_ref().unwrap_or(&head.headers), payload))
}

trait Socket: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket for S {}

type Opened = (SendRequest<Bytes>, h2::client::Connection<Box<dyn Socket>, Bytes>);

async fn open(address: &str) -> Result<Opened, String> {
    let connecting = async {
        let socket: Box<dyn Socket> = if let Some(path) = address.strip_prefix("unix:") {
            Box::new(UnixStream::connect(path).await.map_err(|error| error.to_string())?)
        } else {
            let socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            socket.set_nodelay(true).map_err(|error| error.to_string())?;
            Box::new(socket)
        };
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            // Answers may cross requests that were given up. h2 takes many of those for an attack, and closes the connection.
            .max_concurrent_reset_streams(MOST_GIVEN_UP)
            .max_local_error_reset_streams(None)
            .enable_push(false);
        builder.handshake(socket).await.map_err(|error| error.to_string())
    };
    tokio::time::timeout(CONNECTING, connecting).await.map_err(|_| "no answer".to_owned())?
}

async fn keep(address: String, first: Opened, line: Rc<Line>) {
    let mut opened = Ok(first);
    loop {
        match opened {
            Ok((sender, connection)) => {
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

fn uri_of(address: &str, method: &str) -> Result<Uri, String> {
    let host = if address.starts_with("unix:") { "localhost" } else { address };
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(host.parse::<Authority>().map_err(|_| format!("{address} is no HOST:PORT, and no unix:PATH"))?);
    parts.path_and_query = Some(method.parse::<PathAndQuery>().map_err(|_| format!("{method} is no method"))?);
    Uri::from_parts(parts).map_err(|error| error.to_string())
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("te", HeaderValue::from_static("trailers"));
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(http::header::USER_AGENT, HeaderValue::from_static(concat!("headrace-load/", env!("CARGO_PKG_VERSION"))));
    headers
}

/// A duration as gRPC writes it: at most eight digits and a unit.
fn timeout(left: Nanos) -> HeaderValue {
    let micros = left.max(1_000) / 1_000;
    let text = if micros < 100_000_000 { format!("{micros}u") } else { format!("{}m", (micros / 1_000).min(99_999_999)) };
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("99999999S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_eight_digits_at_the_most() {
        for (left, written) in [(20_000_000, "20000u"), (0, "1u"), (100_000_000_000, "100000m"), (i64::MAX, "99999999m")] {
            assert_eq!(timeout(left).to_str().unwrap_or_default(), written);
        }
    }
}
