//! One unary call: what goes out, and what comes back.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};

use crate::clock::{Clock, Nanos};
use crate::error::Code;
use crate::grpc::message::{Failed, Messages};
use crate::grpc::status;

/// A method of a server.
pub struct Method {
    uri: Uri,
    headers: HeaderMap,
}

impl Method {
    /// `/package.Service/Method` of the server at `HOST:PORT` or `unix:PATH`.
    pub fn of(address: &str, path: &str) -> Result<Method, String> {
        let host = if address.starts_with("unix:") { "localhost" } else { address };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(host.parse::<Authority>().map_err(|_| format!("{address} is no HOST:PORT, and no unix:PATH"))?);
        parts.path_and_query = Some(path.parse::<PathAndQuery>().map_err(|_| format!("{path} is no method"))?);
        let uri = Uri::from_parts(parts).map_err(|error| error.to_string())?;
        let mut headers = HeaderMap::new();
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(http::header::USER_AGENT, HeaderValue::from_static(concat!("headrace/", env!("CARGO_PKG_VERSION"))));
        Ok(Method { uri, headers })
    }

    /// What else goes along. Values that no header can have are left out.
    pub fn with(mut self, metadata: &[(String, String)]) -> Method {
        for (name, value) in metadata {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                self.headers.append(name, value);
            }
        }
        self
    }

    /// The head of a call that is given up when `left` is over.
    pub fn request(&self, left: Option<Nanos>) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(left) = left {
            request.headers_mut().insert("grpc-timeout", status::timeout(left));
        }
        request
    }
}

/// Hand a call to its connection; `message` has gRPC's five bytes before it. An error says that the connection takes no more.
pub async fn send(sender: SendRequest<Bytes>, request: Request<()>, message: Bytes) -> Result<ResponseFuture, h2::Error> {
    let mut sender = sender.ready().await?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(message, true)?;
    Ok(response)
}

/// How a server ended a call.
pub struct Answer {
    /// gRPC's number: those of other servers are not all in `Code`.
    pub code: u8,
    pub message: String,
    pub payload: Bytes,
}

impl Answer {
    pub fn without(code: Code, message: impl Into<String>) -> Answer {
        Answer { code: code as u8, message: message.into(), payload: Bytes::new() }
    }

    fn of(http: StatusCode, headers: &HeaderMap, payload: Option<Bytes>) -> Answer {
        let told = headers.get("grpc-status").and_then(|code| code.to_str().ok()).and_then(|code| code.parse().ok());
        let Some(code) = told else {
            return Answer::without(code_of(http), format!("the server answered with HTTP {http}, and nothing of gRPC"));
        };
        let message = headers.get("grpc-message").map(|text| status::percent_decoded(text.as_bytes())).unwrap_or_default();
        match payload {
            None if code == Code::Ok as u8 => Answer::without(Code::Internal, "the server answered well, and with no message"),
            payload => Answer { code, message, payload: payload.unwrap_or_default() },
        }
    }
}

/// What comes back; an error says that nothing more will. `partial` counts what has come of messages that are not complete.
pub async fn receive(response: ResponseFuture, partial: Arc<AtomicUsize>) -> Result<Answer, h2::Error> {
    let (head, body) = response.await?.into_parts();
    if head.headers.contains_key("grpc-status") {
        return Ok(Answer::of(head.status, &head.headers, None)); // an answer without messages has its status in its head
    }
    let mut messages = Messages::new(body, &head.headers, partial, Clock::Monotonic);
    let mut payload = None;
    loop {
        match poll_fn(|cx| messages.poll_next(cx)).await {
            Ok(Some(_)) if payload.is_some() => {
                return Ok(Answer::without(Code::Internal, "the server answered with more than one message"));
            }
            Ok(Some(message)) => payload = Some(message),
            Ok(None) => break,
            Err(Failed::Gone(error)) => return Err(error),
            Err(Failed::Told(error) | Failed::Encoding(error)) => return Ok(Answer::without(error.code, error.message)),
        }
    }
    let trailers = poll_fn(|cx| messages.poll_trailers(cx)).await?;
    Ok(Answer::of(head.status, trailers.as_ref().unwrap_or(&head.headers), payload))
}

/// What an answer that is none of gRPC's means: see "HTTP to gRPC Status Code Mapping" in the documentation of gRPC.
fn code_of(http: StatusCode) -> Code {
    match http.as_u16() {
        400 => Code::Internal,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}
