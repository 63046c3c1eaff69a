//! Where a request comes from: who asks, and within which trace. The reference is `headrace.protocol.origin`.

use std::net::IpAddr;

use http::HeaderMap;

/// Who asks, and within which trace; zeros where nobody said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// A pseudonym.
    pub client: u64,
    pub trace_high: u64,
    pub trace_low: u64,
    /// The span that this request is a part of.
    pub span: u64,
    /// Of rows that a graph sent on: the request they belong to, and the ledger's number of its version.
    pub parent: u64,
    pub parent_model: u32,
    pub trace_flags: u8,
    /// A `Context`.
    pub context: u8,
}

/// Whether a request said of which trace it is a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Context {
    None = 0,
    Given = 1,
    /// It could not be understood, and is ignored.
    Malformed = 2,
}

impl Origin {
    /// What the headers of a call say; `peer` is the pseudonym of whoever has the connection.
    pub fn of(headers: &HeaderMap, peer: u64) -> Origin {
        let client = headers.get("x-headrace-client").map_or(peer, |name| pseudonym(name.as_bytes()));
        let mut given = headers.get_all("traceparent").iter();
        let Some(text) = given.next() else {
            return Origin { client, ..Origin::default() };
        };
        let only = if given.next().is_none() { parse(text.as_bytes()) } else { None };
        let Some((trace_high, trace_low, span, trace_flags)) = only else {
            return Origin { client, context: Context::Malformed as u8, ..Origin::default() };
        };
        Origin { client, trace_high, trace_low, span, trace_flags, context: Context::Given as u8, ..Origin::default() }
    }
}

/// A `traceparent` of W3C Trace Context: both halves of the trace id, the span, the flags.
fn parse(text: &[u8]) -> Option<(u64, u64, u64, u8)> {
    let text = std::str::from_utf8(text.get(..55)?).ok().filter(|_| text.len() == 55 || text[55] == b'-')?;
    let mut parts = text.split('-');
    let mut hex = |digits: usize| {
        let part = parts.next().filter(|part| part.len() == digits)?;
        let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_hex { u128::from_str_radix(part, 16).ok() } else { None }
    };
    let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    if version == 0xff || trace == 0 || span == 0 {
        return None;
    }
    Some(((trace >> 64) as u64, trace as u64, span as u64, flags as u8))
}

/// The pseudonym of a client: the same name has the same one, everywhere and always. It is never 0.
pub fn pseudonym(name: &[u8]) -> u64 {
    // FNV-1a, mixed so that similar names are far apart.
    let mut hash =
        name.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)).max(1)
}

/// The pseudonym of whoever has a connection from this address; of one through a socket file, None.
pub fn peer(address: Option<IpAddr>) -> u64 {
    address.map_or_else(|| pseudonym(b"unix"), |address| pseudonym(address.to_canonical().to_string().as_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of(text: &'static str) -> Origin {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(text));
        Origin::of(&headers, 7)
    }

    #[test]
    fn a_trace_is_taken_over() {
        let origin = of(GOOD);
        assert_eq!((origin.trace_high, origin.trace_low), (0x4bf9_2f35_77b3_4da6, 0xa3ce_929d_0e0e_4736));
        assert_eq!((origin.span, origin.trace_flags, origin.context), (0x00f0_67aa_0ba9_02b7, 1, Context::Given as u8));
        assert_eq!(origin.client, 7);
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        assert_eq!(of("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes").context, Context::Given as u8);
    }

    #[test]
    fn what_is_malformed_is_ignored_and_told() {
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
        ] {
            assert_eq!(of(wrong), Origin { client: 7, context: Context::Malformed as u8, ..Origin::default() }, "{wrong}");
        }
    }

    #[test]
    fn a_client_is_who_it_says_or_where_it_is() {
        let mut headers = HeaderMap::new();
        assert_eq!(Origin::of(&headers, peer(Some("127.0.0.1".parse().unwrap()))).client, pseudonym(b"127.0.0.1"));
        assert_eq!(peer(Some("::ffff:127.0.0.1".parse().unwrap())), pseudonym(b"127.0.0.1"));
        headers.insert("x-headrace-client", HeaderValue::from_static("till-4"));
        assert_eq!(Origin::of(&headers, 7).client, pseudonym(b"till-4"));
        assert_eq!(pseudonym(b"till-4"), 0x940c_4a89_c2a4_e4fd, "as in Python");
    }
}
