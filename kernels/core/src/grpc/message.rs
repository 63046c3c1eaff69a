//! Messages of a call: frames of HTTP/2 in, whole messages out, decompressed.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use crate::clock::{Clock, Nanos};
use crate::codec::MAX_MESSAGE;
use crate::error::{Code, Error};
use crate::ledger::{Outcome, Refusal};

/// Bytes of messages that are not complete yet, of all calls: more are refused.
const MOST_PARTIAL: usize = 4 << 30;

/// Why there is no message.
pub enum Failed {
    /// The other side is gone.
    Gone(h2::Error),
    /// It gets this.
    Told(Error),
    /// It asked for an encoding that is not known.
    Encoding(Error),
}

enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Unknown(String),
}

/// Reads the messages of one call.
pub struct Messages {
    body: h2::RecvStream,
    encoding: Encoding,
    chunks: VecDeque<Bytes>,
    held: usize,
    /// Of the message that is being read: whether it is compressed, and its size.
    head: Option<(bool, usize)>,
    /// Of all calls.
    partial: Arc<AtomicUsize>,
    clock: Clock,
    /// When the first bytes of the last message came.
    pub received: Nanos,
    /// The same of the one that is being read, and when the last bytes came at all.
    begun: Nanos,
    came: Nanos,
}

impl Messages {
    pub fn new(body: h2::RecvStream, headers: &HeaderMap, partial: Arc<AtomicUsize>, clock: Clock) -> Messages {
        let encoding = match headers.get("grpc-encoding").map(|name| name.as_bytes()) {
            None | Some(b"identity") => Encoding::Identity,
            Some(b"gzip") => Encoding::Gzip,
            Some(b"deflate") => Encoding::Deflate,
            Some(other) => Encoding::Unknown(String::from_utf8_lossy(other).into_owned()),
        };
        let (chunks, (received, begun, came)) = (VecDeque::new(), (0, 0, 0));
        Messages { body, encoding, chunks, held: 0, head: None, partial, clock, received, begun, came }
    }

    /// What stands behind the messages, once there are no more; None when nothing does.
    pub fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        self.body.poll_trailers(cx)
    }

    /// The next message; None when the other side has no more.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Failed>> {
        loop {
            if let Some(message) = self.complete()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    // It is ours now; h2 may take as much again.
                    let _ = self.body.flow_control().release_capacity(chunk.len());
                    self.hold(chunk)?;
                }
                Some(Err(error)) => return Poll::Ready(Err(Failed::Gone(error))),
                None if self.held == 0 && self.head.is_none() => return Poll::Ready(Ok(None)),
                None => {
                    return Poll::Ready(Err(told(Code::Internal, "the message of the call ends too soon")));
                }
            }
        }
    }

    fn hold(&mut self, chunk: Bytes) -> Result<(), Failed> {
        self.came = self.clock.now();
        if self.held == 0 && self.head.is_none() {
            self.begun = self.came;
        }
        self.held += chunk.len();
        if self.partial.fetch_add(chunk.len(), Ordering::Relaxed) + chunk.len() > MOST_PARTIAL {
            return Err(told(Code::ResourceExhausted, "too many large messages arrive at once; try again later"));
        }
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<Option<Bytes>, Failed> {
        let (is_compressed, size) = match self.head {
            Some(head) => head,
            None if self.held < 5 => return Ok(None),
            None => {
                let mut head = self.take(5);
                let (flag, size) = (head.get_u8(), head.get_u32() as usize);
                if size > MAX_MESSAGE {
                    let told_ = format!("a message of {size} bytes is larger than the most there may be, {MAX_MESSAGE}");
                    return Err(told(Code::ResourceExhausted, &told_));
                }
                *self.head.insert((flag != 0, size))
            }
        };
        if self.held < size {
            return Ok(None);
        }
        self.head = None;
        let message = self.take(size);
        // What is left came with the last bytes of this one.
        (self.received, self.begun) = (self.begun, self.came);
        if is_compressed { self.decompress(&message).map(Some) } else { Ok(Some(message)) }
    }

    /// `size` bytes of what is held: without copying if they came in one piece.
    fn take(&mut self, size: usize) -> Bytes {
        self.held -= size;
        self.partial.fetch_sub(size, Ordering::Relaxed);
        if let Some(first) = self.chunks.front_mut() {
            if first.len() == size {
                return self.chunks.pop_front().unwrap_or_default();
            }
            if first.len() > size {
                return first.split_to(size);
            }
        }
        let mut whole = BytesMut::with_capacity(size);
        while whole.len() < size {
            let Some(chunk) = self.chunks.front_mut() else {
                break;
            };
            let wanted = (size - whole.len()).min(chunk.len());
            whole.extend_from_slice(&chunk.split_to(wanted));
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        whole.freeze()
    }

    fn decompress(&self, message: &Bytes) -> Result<Bytes, Failed> {
        let mut plain = Vec::new();
        let most = MAX_MESSAGE as u64 + 1;
        let read = match &self.encoding {
            Encoding::Gzip => flate2::read::GzDecoder::new(&message[..]).take(most).read_to_end(&mut plain),
            Encoding::Deflate => flate2::read::ZlibDecoder::new(&message[..]).take(most).read_to_end(&mut plain),
            Encoding::Identity => {
                return Err(told(Code::Internal, "a message is compressed, and no encoding was named"));
            }
            Encoding::Unknown(name) => {
                let message = format!("messages in the encoding '{name}' cannot be read; gzip and deflate can");
                return Err(Failed::Encoding(error(Code::Unimplemented, &message)));
            }
        };
        if read.is_err() {
            return Err(told(Code::Internal, "a message cannot be decompressed"));
        }
        if plain.len() > MAX_MESSAGE {
            return Err(told(Code::ResourceExhausted, "a message is too large once it is decompressed"));
        }
        Ok(plain.into())
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.partial.fetch_sub(self.held, Ordering::Relaxed);
    }
}

fn told(code: Code, message: &str) -> Failed {
    Failed::Told(error(code, message))
}

/// An error of the call itself: no request came out of it.
fn error(code: Code, message: &str) -> Error {
    Error { message: message.to_owned(), code, outcome: Outcome::Invalid, refusal: Refusal::None, kind: None, retry_after: None }
}
