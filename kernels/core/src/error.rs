//! The errors a request can end with. Messages are Triton's wherever Triton has them: clients match on the text.
//!
//! `Kind` has the names of the classes in `headrace.errors`, so that both sides mean the same.

use crate::clock::Nanos;
use crate::ledger::{Outcome, Refusal};

/// How long whoever is shed should stay away: until it is decided anew.
const SHED_RETRY: Nanos = 1_000_000_000;

/// gRPC's codes, which are also those of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

impl Code {
    /// The code of this number; UNKNOWN for one that Headrace has no use for.
    pub fn from_number(number: u8) -> Code {
        use Code::*;
        [Ok, Cancelled, Unknown, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists]
            .into_iter()
            .chain([ResourceExhausted, Unimplemented, Internal, Unavailable])
            .find(|code| *code as u8 == number)
            .unwrap_or(Unknown)
    }
}

/// What went wrong, by the name of its class in Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    RegionNotFound,
    RegionFailed,
    Unsupported,
    QueueFull,
    QueueTimeout,
    QueueClosed,
    Draining,
    CannotMeetDeadline,
    ClassShed,
    ReaderTooSlow,
    DeadlineExpired,
    Cancelled,
    Broken,
}

impl Kind {
    /// The name of the class.
    pub fn name(self) -> &'static str {
        match self {
            Kind::InvalidRequest => "InvalidRequest",
            Kind::ModelNotFound => "ModelNotFound",
            Kind::ModelNotReady => "ModelNotReady",
            Kind::RegionNotFound => "RegionNotFound",
            Kind::RegionFailed => "RegionFailed",
            Kind::Unsupported => "Unsupported",
            Kind::QueueFull => "QueueFull",
            Kind::QueueTimeout => "QueueTimeout",
            Kind::QueueClosed => "QueueClosed",
            Kind::Draining => "Draining",
            Kind::CannotMeetDeadline => "CannotMeetDeadline",
            Kind::ClassShed => "ClassShed",
            Kind::ReaderTooSlow => "ReaderTooSlow",
            Kind::DeadlineExpired => "DeadlineExpired",
            Kind::Cancelled => "Cancelled",
            Kind::Broken => "Broken",
        }
    }

    fn code(self) -> Code {
        match self {
            Kind::InvalidRequest => Code::InvalidArgument,
            Kind::ModelNotFound | Kind::RegionNotFound => Code::NotFound,
            Kind::Unsupported => Code::Unimplemented,
            Kind::ModelNotReady | Kind::QueueFull | Kind::QueueTimeout | Kind::QueueClosed | Kind::Draining => Code::Unavailable,
            Kind::CannotMeetDeadline | Kind::ClassShed | Kind::ReaderTooSlow => Code::ResourceExhausted,
            Kind::DeadlineExpired => Code::DeadlineExceeded,
            Kind::Cancelled => Code::Cancelled,
            Kind::RegionFailed | Kind::Broken => Code::Internal,
        }
    }

    fn outcome(self) -> Outcome {
        match self {
            Kind::InvalidRequest | Kind::ModelNotFound | Kind::RegionNotFound | Kind::Unsupported => Outcome::Invalid,
            Kind::DeadlineExpired | Kind::QueueTimeout => Outcome::Expired,
            Kind::QueueFull | Kind::QueueClosed | Kind::Draining => Outcome::Refused,
            Kind::CannotMeetDeadline | Kind::ClassShed | Kind::ReaderTooSlow => Outcome::Refused,
            Kind::Cancelled => Outcome::Cancelled,
            Kind::ModelNotReady | Kind::RegionFailed | Kind::Broken => Outcome::Failed,
        }
    }

    fn refusal(self) -> Refusal {
        match self {
            Kind::QueueFull => Refusal::QueueFull,
            Kind::QueueClosed => Refusal::QueueClosed,
            Kind::Draining => Refusal::Draining,
            Kind::CannotMeetDeadline => Refusal::CannotMeetDeadline,
            Kind::ClassShed => Refusal::ClassShed,
            Kind::ReaderTooSlow => Refusal::Other,
            _ => Refusal::None,
        }
    }
}

/// How a request ends that is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The sentence for the client.
    pub message: String,
    pub code: Code,
    pub outcome: Outcome,
    pub refusal: Refusal,
    /// None for an error that came out of a model or a control call.
    pub kind: Option<Kind>,
    /// When it makes sense to try again, if that is known.
    pub retry_after: Option<Nanos>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        let (code, outcome, refusal) = (kind.code(), kind.outcome(), kind.refusal());
        Error { message: message.into(), code, outcome, refusal, kind: Some(kind), retry_after: None }
    }

    /// An error that Python raised: its code and sentence as they are.
    pub fn foreign(code: u8, message: String, outcome: u8) -> Error {
        let outcome = Outcome::from_number(outcome);
        Error { message, code: Code::from_number(code), outcome, refusal: Refusal::None, kind: None, retry_after: None }
    }

    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Kind::InvalidRequest, message)
    }

    /// An invariant that does not hold.
    pub fn broken(what: impl AsRef<str>) -> Error {
        Error::new(Kind::Broken, format!("{}; this is a bug in Headrace", what.as_ref()))
    }

    pub fn model_not_found(model: &str, version: Option<i64>, known: bool) -> Error {
        let tail = match version {
            Some(version) => format!(" version {version} is not found"),
            None if known => " has no available versions".to_owned(),
            None => " is not found".to_owned(),
        };
        Error::new(Kind::ModelNotFound, format!("Request for unknown model: '{model}'{tail}"))
    }

    pub fn model_not_ready(model: &str, version: i64) -> Error {
        let message = format!("Request for unknown model: '{model}' version {version} is not at ready state");
        Error::new(Kind::ModelNotReady, message)
    }

    pub fn region_not_found(region: &str) -> Error {
        Error::new(Kind::RegionNotFound, format!("Unable to find shared memory region: '{region}'"))
    }

    pub fn decoupled() -> Error {
        Error::new(Kind::Unsupported, "ModelInfer RPC doesn't support models with decoupled transaction policy")
    }

    pub fn queue_full(id: &str) -> Error {
        Error::new(Kind::QueueFull, format!("{}Exceeds maximum queue size", request_prefix(id)))
    }

    pub fn queue_timeout() -> Error {
        Error::new(Kind::QueueTimeout, "Request timeout expired")
    }

    pub fn queue_closed(id: &str) -> Error {
        let told = "Server is stopping, scheduler for model has stopped accepting new inference requests";
        Error::new(Kind::QueueClosed, format!("{}{told}", request_prefix(id)))
    }

    pub fn draining() -> Error {
        Error::new(Kind::Draining, "GRPC server is shutting down and has stopped accepting new requests.")
    }

    /// Predicted to finish `late_by` ns after its deadline, if it is known by how much.
    pub fn cannot_meet_deadline(late_by: Option<Nanos>) -> Error {
        let how_late = late_by.map_or_else(String::new, |late_by| format!("about {:.1} ms ", late_by as f64 / 1e6));
        let message = format!(
            "the request would finish {how_late}after its deadline; send it with a later deadline, or when the server is less busy"
        );
        Error { retry_after: late_by, ..Error::new(Kind::CannotMeetDeadline, message) }
    }

    /// Its class is refused at present, so that those before it are in time.
    pub fn class_shed(level: u32) -> Error {
        let message = format!(
            "class {level} is not taken at present: the latency budget of the classes before it burns; try again in {} s",
            SHED_RETRY / 1_000_000_000
        );
        Error { retry_after: Some(SHED_RETRY), ..Error::new(Kind::ClassShed, message) }
    }

    pub fn reader_too_slow(waiting: usize) -> Error {
        let message = format!(
            "{:.0} MiB of answers wait on this stream for their reader; read while the model answers, or ask for fewer answers \
             at a time",
            waiting as f64 / f64::from(1 << 20)
        );
        Error::new(Kind::ReaderTooSlow, message)
    }

    pub fn deadline_expired(model: &str) -> Error {
        Error::new(Kind::DeadlineExpired, format!("the deadline passed before model '{model}' could answer"))
    }

    pub fn cancelled() -> Error {
        Error::new(Kind::Cancelled, "")
    }
}

/// The words Triton puts before a message about one request.
pub fn request_prefix(id: &str) -> String {
    format!("[request id: {}] ", if id.is_empty() { "<id_unknown>" } else { id })
}
