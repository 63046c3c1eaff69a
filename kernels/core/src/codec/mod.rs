//! Messages to requests, answers to messages. Reads what is written; whether it suits a model is for `validate`.

mod asking;
mod message;
mod request;
mod response;

pub use asking::{Asking, Given, Place};
pub use message::{Answer, Message, Value};
pub use request::{Input, Output, Parameter, Request, Sequence, decode, request_id_of};
pub use response::{Encoder, MAX_MESSAGE, Part, Wanted, failure, framed, refusal};
