//! Messages to requests, answers to messages. Reads what is written; whether it suits a model is for `validate`.

mod message;
mod request;
mod response;

pub use message::{Message, Value};
pub use request::{Input, Output, Parameter, Request, Sequence, decode, request_id_of};
pub use response::{Encoder, MAX_MESSAGE, Part, Wanted, failure, framed, refusal};
