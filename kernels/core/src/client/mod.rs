//! The other side of gRPC over HTTP/2: connections to a server, and unary calls on them.
//!
//! `connection` opens one, `call` is what goes over it and comes back, and `channel` makes calls one at a time, in the thread
//! that wants them: no other thread has to be woken on the way there or back.

pub mod call;
pub mod channel;
pub mod connection;

pub use channel::{Channel, Failure};
