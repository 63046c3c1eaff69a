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

/// A duration as `grpc-timeout` has it: at most eight digits and a unit.
pub fn timeout(left: Nanos) -> HeaderValue {
    let micros = left.max(1_000) / 1_000;
    let text = if micros < 100_000_000 { format!("{micros}u") } else { format!("{}m", (micros / 1_000).min(99_999_999)) };
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("99999999S"))
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

/// What `percent_encoded` was given. What is no such text stays as it is.
pub fn percent_decoded(encoded: &[u8]) -> String {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let [first, tail @ ..] = rest {
        let written = match tail {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        decoded.push(written.map_or(*first, |(high, low)| (16 * high + low) as u8));
        rest = if written.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(decoded).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_a_header() {
        let (said, written) = ("100 % of caf\u{e9}\n", "100 %25 of caf%C3%A9%0A");
        assert_eq!(percent_encoded(said), written);
        assert_eq!(percent_decoded(written.as_bytes()), said);
        for unwritten in ["50 %", "%", "%4", "%zz", "%+1"] {
            assert_eq!(percent_decoded(unwritten.as_bytes()), unwritten);
        }
        assert_eq!(percent_decoded(b"%FF"), "\u{fffd}");
    }

    #[test]
    fn timeouts_have_eight_digits_at_the_most() {
        for (left, written) in [(20_000_000, "20000u"), (0, "1u"), (100_000_000_000, "100000m"), (i64::MAX, "99999999m")] {
            assert_eq!(timeout(left).to_str().unwrap_or_default(), written);
        }
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
