//! Clients of gRPC's C library that come over a socket file name its path, percent-encoded, as the authority of their calls
//! (`:authority: run%2Fheadrace.sock`). That is none: the crate `http` refuses it, and so does h2 each such call. Nobody needs
//! it, so a `%` in it becomes a `.` on its way in.
//!
//! Frames are followed byte by byte, and only header blocks are looked into. An authority that is compressed is not seen; those
//! who compress it name a host.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: usize = 24;
const HEADERS: u8 = 1;
/// The name as a literal of HPACK: its length, then its letters.
const NAME: &[u8] = b"\x0a:authority";

#[derive(Clone, Copy, Debug)]
enum Place {
    /// So many letters of the name have come.
    Name(usize),
    /// Its value is next.
    Length,
    /// So many bytes of the value are left.
    Value(usize),
}

/// Follows frames and mends authorities.
#[derive(Debug)]
struct Mender {
    preface: usize,
    head: Vec<u8>,
    payload: usize,
    place: Place,
}

impl Mender {
    fn new() -> Mender {
        Mender { preface: PREFACE, head: Vec::with_capacity(9), payload: 0, place: Place::Name(0) }
    }

    fn mend(&mut self, mut bytes: &mut [u8]) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &mut bytes[skipped..];
        while !bytes.is_empty() {
            if self.payload == 0 {
                self.head.push(bytes[0]);
                bytes = &mut bytes[1..];
                if let [a, b, c, ..] = self.head[..]
                    && self.head.len() == 9
                {
                    self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
                    self.place = Place::Name(0);
                    if self.payload == 0 {
                        self.head.clear();
                    }
                }
                continue;
            }
            let (mine, rest) = bytes.split_at_mut(self.payload.min(bytes.len()));
            if self.head[3] == HEADERS {
                mine.iter_mut().for_each(|byte| self.look(byte));
            }
            self.payload -= mine.len();
            if self.payload == 0 {
                self.head.clear();
            }
            bytes = rest;
        }
    }

    fn look(&mut self, byte: &mut u8) {
        self.place = match self.place {
            Place::Name(seen) if *byte == NAME[seen] && seen + 1 == NAME.len() => Place::Length,
            Place::Name(seen) if *byte == NAME[seen] => Place::Name(seen + 1),
            Place::Name(_) => Place::Name(usize::from(*byte == NAME[0])),
            // Above 0x7f it is compressed; 0x7f says that it is longer than any path.
            Place::Length if (1..0x7f).contains(byte) => Place::Value(*byte as usize),
            Place::Length => Place::Name(0),
            Place::Value(left) => {
                if *byte == b'%' {
                    *byte = b'.';
                }
                if left == 1 { Place::Name(0) } else { Place::Value(left - 1) }
            }
        };
    }
}

/// A connection whose calls may have such an authority.
pub struct Lenient<S> {
    inner: S,
    mender: Mender,
}

impl<S> Lenient<S> {
    pub fn new(inner: S) -> Lenient<S> {
        Lenient { inner, mender: Mender::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        this.mender.mend(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = (payload.len() as u32).to_be_bytes();
        [&size[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn authorities_are_mended_and_nothing_else() {
        let header = b"@\x0a:authority\x0ctmp%2Fa.sock\x40\x02te\x04%2F%";
        let data = b"\x0a:authority\x0ctmp%2Fa.sock";
        let sent = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, b""), &frame(HEADERS, header), &frame(0, data)].concat();
        let wanted = String::from_utf8_lossy(&sent).replacen("tmp%2Fa.sock", "tmp.2Fa.sock", 1);
        for size in [1, 2, 7, sent.len()] {
            let mut mender = Mender::new();
            let mut got = sent.clone();
            got.chunks_mut(size).for_each(|chunk| mender.mend(chunk));
            assert_eq!(String::from_utf8_lossy(&got), wanted);
        }
    }
}
