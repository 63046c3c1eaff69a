//! How gRPC says how a call ended, and how long it may take.

use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::clock::Nanos;
use crate::error::Error;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The head of an answer that has messages.
pub fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC);
    response
}

/// What stands behind the messages of a call that went well.
pub fn well() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

/// What stands behind the messages of one that did not.
pub fn trailers(error: &Error) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", HeaderValue::from(error.code as u16));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(&error.message)) {
        trailers.insert("grpc-message", message);
    }
    if let Some(after) = error.retry_after {
        // Clients that retry go by it.
        trailers.insert("grpc-retry-pushback-ms", HeaderValue::from((after / 1_000_000).clamp(1, i64::from(i32::MAX))));
    }
    trailers
}

/// A whole answer without messages.
pub fn failed(error: &Error) -> Response<()> {
    let mut response = head();
    response.headers_mut().extend(trailers(error));
    response
}

/// The answer to a call in an encoding that is not known, which tells those that are.
pub fn with_encodings(mut response: Response<()>) -> Response<()> {
    response.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity,deflate,gzip"));
    response
}

/// The answer to what is no gRPC at all.
pub fn not_grpc() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// Whether a call is gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The deadline of a call that was received now; None if it has none, or one that nobody understands.
pub fn deadline(headers: &HeaderMap, now: Nanos) -> Option<Nanos> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let unit: i64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return None,
    };
    Some(now.saturating_add(digits.parse::<i64>().ok()?.saturating_mul(unit)))
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_a_header() {
        assert_eq!(percent_encoded("100 % of caf\u{e9}\n"), "100 %25 of caf%C3%A9%0A");
    }

    #[test]
    fn timeouts() {
        let at = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            deadline(&headers, 5)
        };
        assert_eq!(at("1n"), Some(6));
        assert_eq!(at("20m"), Some(20_000_005));
        assert_eq!(at("99999999H"), Some(i64::MAX));
        for wrong in ["", "m", "123456789m", "1x", "-1m", "+1m"] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }
}
