//! A socket that is read so many times at a stretch.
//!
//! An instance thread that drives a connection to write its answers reads what has come, too, since HTTP/2 does both in one. A
//! client that sends without end – pings, say, whose answers it takes – would keep it there for ever. On the I/O thread, tokio
//! sees to that.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads of a stretch: as many as tokio allows a task.
const READS: usize = 128;

/// How many reads are left.
#[derive(Clone, Default)]
pub struct Pace(Arc<AtomicUsize>);

impl Pace {
    /// A new stretch begins.
    pub fn begin(&self) {
        self.0.store(READS, Ordering::Relaxed);
    }

    fn pass(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// See the head of this file. When a stretch is over, its reader is woken for another.
pub struct Paced<S> {
    socket: S,
    pace: Pace,
}

impl<S> Paced<S> {
    pub fn new(socket: S) -> (Paced<S>, Pace) {
        let pace = Pace::default();
        pace.begin();
        (Paced { socket, pace: pace.clone() }, pace)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.pace.pass() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, all: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::super::link::tests::Counter;
    use super::*;

    #[test]
    fn an_endless_sender_is_read_by_stretches() {
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut cx = Context::from_waker(&waker);
        let (mut socket, pace) = Paced::new(tokio::io::repeat(7));
        for stretch in 1..=2 {
            pace.begin();
            let mut reads = 0;
            while Pin::new(&mut socket).poll_read(&mut cx, &mut ReadBuf::new(&mut [0; 8])).is_ready() {
                reads += 1;
            }
            assert_eq!((reads, counter.0.load(Ordering::Relaxed)), (READS, stretch));
        }
    }
}
