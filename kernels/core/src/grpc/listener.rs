//! Where connections come from: TCP, or a socket file.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};

use super::authority::Lenient;
use super::connection;
use super::io::Io;
use crate::news::Level;
use crate::origin;

/// How long to wait when the process has no descriptor left for a connection.
const BACK_OFF: Duration = Duration::from_millis(50);

/// A socket that listens.
pub enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    /// Take over a listening socket.
    ///
    /// # Safety
    /// `descriptor` is an open socket that listens, and is nobody else's.
    pub unsafe fn from_descriptor(descriptor: RawFd, is_unix: bool) -> Listener {
        // SAFETY: the caller says so.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        if is_unix { Listener::Unix(descriptor.into()) } else { Listener::Tcp(descriptor.into()) }
    }

    /// Accept connections, for ever.
    pub async fn accept(self, io: Arc<Io>) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                each(
                    &io,
                    async || listener.accept().await,
                    |(socket, address)| {
                        let _ = socket.set_nodelay(true);
                        open(&io, socket, origin::peer(Some(address.ip())));
                    },
                )
                .await
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                let listener = UnixListener::from_std(listener)?;
                let accept = async || listener.accept().await.map(|(socket, _)| socket);
                each(&io, accept, |socket| open(&io, Lenient::new(socket), origin::peer(None))).await
            }
        }
    }
}

async fn each<S>(io: &Io, accept: impl AsyncFn() -> io::Result<S>, open: impl Fn(S)) -> io::Result<()> {
    let mut told = false;
    loop {
        match accept().await {
            Ok(socket) => {
                told = false;
                open(socket);
            }
            Err(error) => back_off(io, &error, &mut told).await,
        }
    }
}

fn open(io: &Arc<Io>, socket: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static, peer: u64) {
    tokio::task::spawn_local(connection::serve(Arc::clone(io), socket, peer));
}

/// Descriptors may be short; those who are connected are served, and the next connection waits in the kernel.
async fn back_off(io: &Io, error: &io::Error, told: &mut bool) {
    let is_short = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM));
    if !is_short {
        return; // of that one connection, which is gone again
    }
    if !*told {
        *told = true;
        let line = format!("connections wait: {error}; raise the limit of open files (ulimit -n)");
        io.shared.house.news.log(Level::Warning, line);
    }
    tokio::time::sleep(BACK_OFF).await;
}
