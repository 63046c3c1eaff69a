//! gRPC over HTTP/2: one I/O thread, one task a connection, one future a call inside its connection's task.
//!
//! The way of a call: `connection` accepts it, `message` reads its messages, `infer` or `stream` pushes them into a queue, or
//! `control` hands them to Python; what comes back lies in a mailbox (`io`) and is written with a `status`. Whatever is
//! dropped on the way – a call, a connection, the thread – cancels what it had asked for.

mod authority;
mod connection;
mod control;
mod infer;
mod io;
mod link;
mod listener;
pub(crate) mod message;
mod paced;
mod reply;
mod server;
pub(crate) mod status;
mod stream;

pub use control::{Call, Calls};
pub use listener::Listener;
pub use server::{Forwarding, Options, Server, StreamWindow};
