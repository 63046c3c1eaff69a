//! The data plane of Headrace: sockets and HTTP/2, the V2 codec, the queue, gathering and scattering. It decides nothing:
//! what to take, whom to refuse and what to run is told to it. Python is not known here.
//!
//! A request's way: `grpc` (bytes → message) → `codec` (message → request) → `routes` → `queue::push` (`validate`,
//! `admission`) → `queue::turn`, `queue::take` → `batch::gather` … `batch::reply` (`codec`: answer → bytes) → `grpc` → the
//! `ledger`, written by whoever settles (`entry`). The other way round, `client` asks other servers, and `load` many times at once.

pub mod admission;
pub mod batch;
pub mod buffer;
pub mod classify;
pub mod client;
pub mod clock;
pub mod codec;
pub mod datatype;
pub mod entry;
pub mod error;
pub mod expiry;
pub mod faults;
pub mod grpc;
pub mod ledger;
pub mod load;
pub mod news;
pub mod origin;
pub mod padding;
pub mod queue;
pub mod regions;
pub mod ring;
pub mod routes;
pub mod spec;
pub mod validate;
mod waiting;
pub mod wire;
