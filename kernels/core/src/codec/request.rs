//! A request, out of a message. The order of the checks, the codes and the words are those of `headrace.protocol.codec`.

use bytes::Bytes;

use super::message::{Contents, InputTensor, Message, RequestedOutput, Value, Values};
use super::response::MAX_MESSAGE;
use crate::clock::Nanos;
use crate::error::{Error, Result, request_prefix};
use crate::origin::Origin;
use crate::regions::{Regions, Window};
use crate::wire::Text;

/// What a model is told beside its tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    Bool(bool),
    Int(i64),
    Double(f64),
    String(Text),
}

/// The place of a request in a sequence of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    pub id: Parameter,
    pub start: bool,
    pub end: bool,
}

/// A tensor as it came: nothing checked, little-endian and row-major, BYTES length-prefixed.
#[derive(Clone, Debug)]
pub struct Input {
    pub name: Text,
    pub datatype: Text,
    pub shape: Vec<i64>,
    pub data: Bytes,
}

/// An output that is asked for, and how: the likeliest `classes` of it (0: its values), written to a window.
#[derive(Clone, Debug)]
pub struct Output {
    pub name: Text,
    pub classes: i64,
    pub placed: Option<Window>,
}

/// One inference call. See `headrace.request.Request`.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub model: Text,
    pub version: i64,
    pub id: Text,
    pub parameters: Vec<(Text, Parameter)>,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    pub deadline: Option<Nanos>,
    pub timeout: Nanos,
    pub priority: u64,
    pub sequence: Option<Sequence>,
    pub wants_empty_final: bool,
    pub received: Nanos,
    pub decoded: Nanos,
    pub origin: Origin,
}

/// A `ModelInferRequest`; stamps, deadline and origin are left to the transport.
///
/// `forwarded` are parameters out of the call's headers. They win: whoever sets headers on the way is trusted more.
pub fn decode(bytes: &Bytes, regions: &Regions, forwarded: &[(Text, Parameter)]) -> Result<Request> {
    let message = Message::read(bytes)
        .map_err(|_| Error::invalid(format!("the {} bytes received are not a ModelInferRequest message", bytes.len())))?;
    let version = decode_version(&message.version)?;
    let mut request = Request { version, ..Request::default() };
    decode_parameters(&message.parameters, &mut request)?;
    for (name, value) in forwarded {
        request.parameters.retain(|(known, _)| known != name);
        request.parameters.push((name.clone(), value.clone()));
    }
    request.inputs = decode_inputs(&message.model, &message.id, message.inputs, &message.raw, regions)?;
    request.outputs = decode_outputs(&message.id, message.outputs, regions)?;
    request.model = message.model;
    request.id = message.id;
    Ok(request)
}

/// The id in a message that could not be decoded into a request; empty if it is no such message.
pub fn request_id_of(bytes: &Bytes) -> Text {
    let Ok(message) = Message::read(bytes) else {
        return Text::default();
    };
    message.id
}

/// A version as the protocol writes it; empty is 0, the default.
fn decode_version(text: &str) -> Result<i64> {
    if text.is_empty() {
        return Ok(0);
    }
    let trimmed = text.trim_start();
    let digits = trimmed.trim_start_matches(['+', '-']);
    let signs = trimmed.len() - digits.len();
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    let number = (signs <= 1 && (1..=20).contains(&count)).then(|| digits[..count].parse::<i64>().ok()).flatten();
    let Some(number) = number else {
        return Err(Error::invalid(format!(
            "failed to get model version from specified version string '{text}' (details: stol), version should be an integral \
             value > 0"
        )));
    };
    if number == 0 || trimmed.starts_with('-') {
        let told = format!("invalid model version specified '{text}' , version should be an integral value > 0");
        return Err(Error::invalid(told));
    }
    Ok(number)
}

const EMPTY_FINAL: &str = "triton_enable_empty_final_response";

fn decode_parameters(given: &Values, request: &mut Request) -> Result<()> {
    let (mut id, mut start, mut end, mut timeout, mut priority) = (None, false, false, 0, 0i128);
    for (key, value) in given {
        match (&**key, value) {
            ("sequence_id", Value::Int64(number)) => id = (*number != 0).then_some(Parameter::Int(*number)),
            ("sequence_id", Value::String(text)) => id = (!text.is_empty()).then(|| Parameter::String(text.clone())),
            ("sequence_id", _) => return Err(wrong_type(key, "int64_param or string_param")),
            ("sequence_start", Value::Bool(flag)) => start = *flag,
            ("sequence_end", Value::Bool(flag)) => end = *flag,
            ("sequence_start" | "sequence_end", _) => return Err(wrong_type(key, "bool_param")),
            ("priority", Value::Int64(level)) => priority = i128::from(*level),
            ("priority", Value::Uint64(level)) => priority = i128::from(*level),
            ("priority", _) => return Err(wrong_type(key, "int64_param or uint64_param")),
            ("timeout", Value::Int64(microseconds)) => timeout = *microseconds,
            ("timeout", _) => return Err(wrong_type(key, "int64_param")),
            (EMPTY_FINAL, Value::Bool(flag)) => request.wants_empty_final = *flag,
            (EMPTY_FINAL, _) => return Err(wrong_type(key, "bool_param")),
            (name, _) if name.starts_with("triton_") => {
                return Err(Error::invalid(format!(
                    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting \
                     with 'triton_' are allowed: {EMPTY_FINAL}"
                )));
            }
            (_, Value::Bool(flag)) => request.parameters.push((key.clone(), Parameter::Bool(*flag))),
            (_, Value::Int64(number)) => request.parameters.push((key.clone(), Parameter::Int(*number))),
            (_, Value::Double(number)) => request.parameters.push((key.clone(), Parameter::Double(*number))),
            (_, Value::String(text)) => request.parameters.push((key.clone(), Parameter::String(text.clone()))),
            (_, Value::Uint64(_) | Value::Unset) => {
                return Err(wrong_type(key, "int64_param, bool_param, or string_param"));
            }
        }
    }
    request.priority =
        u64::try_from(priority).map_err(|_| Error::invalid("invalid value for 'priority', expected value >= 0."))?;
    if !(0..=i64::MAX / 1000).contains(&timeout) {
        let told = format!("invalid value for 'timeout', expected microseconds >= 0, got {timeout}.");
        return Err(Error::invalid(told));
    }
    request.timeout = timeout * 1000;
    request.sequence = id.map(|id| Sequence { id, start, end });
    Ok(())
}

fn wrong_type(key: &str, expected: &str) -> Error {
    Error::invalid(format!("invalid value type for '{key}' parameter, expected {expected}."))
}

fn decode_inputs(model: &str, id: &str, given: Vec<InputTensor>, raw: &[Bytes], regions: &Regions) -> Result<Vec<Input>> {
    let mut inputs: Vec<Input> = Vec::with_capacity(given.len());
    let mut placed: Vec<(usize, Window)> = Vec::new();
    let mut contents = raw.iter();
    for tensor in given {
        let name = tensor.name;
        if inputs.iter().any(|known| known.name == name) {
            return Err(Error::invalid(format!("{}input '{name}' already exists in request", request_prefix(id))));
        }
        let what = || format!("'{name}' for model '{model}'");
        let data = if let Some(placement) = placement_of(&tensor.parameters, &name)? {
            if tensor.contents.is_some() {
                let told = format!("unexpected 'content' provided when using shared memory for input tensor {}", what());
                return Err(Error::invalid(told));
            }
            placed.push((inputs.len(), regions.window(placement.region, placement.offset, placement.byte_size)?));
            Bytes::new()
        } else if let Some(typed) = tensor.contents {
            if !raw.is_empty() {
                let told = format!("contents field must not be specified when using raw_input_contents for {}", what());
                return Err(Error::invalid(told));
            }
            typed_contents(*typed, &tensor.datatype, what)?
        } else {
            let missing = || Error::invalid(format!("unable to find data for input tensor {} in request.", what()));
            contents.next().cloned().ok_or_else(missing)?
        };
        inputs.push(Input { name, datatype: tensor.datatype, shape: tensor.shape, data });
    }
    let size = placed.iter().fold(0u64, |sum, (_, window)| sum.saturating_add(window.byte_size()));
    if size > MAX_MESSAGE as u64 {
        let told = format!("the inputs in shared memory have {size} bytes, a request may have {MAX_MESSAGE}");
        return Err(Error::invalid(told));
    }
    for (index, window) in placed {
        inputs[index].data = window.read()?;
    }
    Ok(inputs)
}

/// Each field of typed contents: the datatype messages call it, those it may carry, and the width of its elements.
const TYPED: [(&str, &[&str], usize); 8] = [
    ("BOOL", &["BOOL"], 1),
    ("INT32", &["INT8", "INT16", "INT32"], 4),
    ("INT64", &["INT64"], 8),
    ("UINT32", &["UINT8", "UINT16", "UINT32"], 4),
    ("UINT64", &["UINT64"], 8),
    ("FP32", &["FP32"], 4),
    ("FP64", &["FP64"], 8),
    ("BYTES", &["BYTES"], 0),
];

/// Typed contents in their raw form, so that everything after this line knows one form only.
fn typed_contents(contents: Contents, datatype: &str, what: impl Fn() -> String) -> Result<Bytes> {
    let mut given = contents.fields.into_iter().zip(TYPED).filter(|(field, _)| !field.is_empty());
    let Some((field, (told, carries, width))) = given.next() else {
        return Ok(Bytes::new());
    };
    if given.next().is_some() {
        return Err(Error::invalid(format!(
            "unexpected explicit tensor data for input tensor {}, binary data was already supplied.",
            what()
        )));
    }
    if !carries.contains(&datatype) {
        return Err(Error::invalid(format!(
            "unexpected explicit tensor data for input tensor {} of type '{told}', expected datatype '{datatype}'",
            what()
        )));
    }
    let kept = match datatype {
        "INT8" | "UINT8" => 1,
        "INT16" | "UINT16" => 2,
        _ => width,
    };
    if kept == width {
        return Ok(field.into());
    }
    // Triton takes the low bytes and does not look at the rest.
    Ok(field.chunks_exact(width).flat_map(|element| &element[..kept]).copied().collect::<Vec<u8>>().into())
}

fn decode_outputs(id: &str, given: Vec<RequestedOutput>, regions: &Regions) -> Result<Vec<Output>> {
    let mut outputs: Vec<Output> = Vec::with_capacity(given.len());
    for wanted in given {
        let name = wanted.name;
        if outputs.iter().any(|known| known.name == name) {
            return Err(Error::invalid(format!("{}output '{name}' already exists in request", request_prefix(id))));
        }
        let placement = placement_of(&wanted.parameters, &name)?;
        let classes = classes_of(&wanted.parameters)?;
        if placement.is_some() && classes.is_some() {
            return Err(Error::invalid("output can't set both 'shared_memory_region' and 'classification'"));
        }
        let placed = placement.map(|place| regions.window(place.region, place.offset, place.byte_size)).transpose()?;
        outputs.push(Output { name, classes: classes.unwrap_or(0), placed });
    }
    for (index, one) in outputs.iter().enumerate() {
        for other in &outputs[index + 1..] {
            if let (Some(first), Some(second)) = (&one.placed, &other.placed)
                && first.overlaps(second)
            {
                let told = format!("outputs '{}' and '{}' overlap in shared memory", one.name, other.name);
                return Err(Error::invalid(told));
            }
        }
    }
    Ok(outputs)
}

fn classes_of(parameters: &Values) -> Result<Option<i64>> {
    match find(parameters, "classification") {
        None => Ok(None),
        Some(Value::Int64(count)) if *count > 0 => Ok(Some(*count)),
        Some(Value::Int64(_)) => Err(Error::invalid("invalid value for 'classification' parameter, expected >= 0")),
        Some(_) => Err(Error::invalid("invalid value type for 'classification' parameter, expected int64_param")),
    }
}

struct Placement<'a> {
    region: &'a str,
    offset: i64,
    byte_size: i64,
}

/// What the parameters of a tensor say of shared memory.
fn placement_of<'a>(parameters: &'a Values, tensor: &str) -> Result<Option<Placement<'a>>> {
    if parameters.is_empty() {
        return Ok(None);
    }
    let wrong = |key: &str, expected: &str| {
        Error::invalid(format!(
            "invalid value type for 'shared_memory_{key}' parameter for tensor '{tensor}', expected {expected}."
        ))
    };
    let region = match find(parameters, "shared_memory_region") {
        None => None,
        Some(Value::String(name)) => Some(&**name),
        Some(_) => return Err(wrong("region", "string_param")),
    };
    let number = |key: &'static str| match find(parameters, &format!("shared_memory_{key}")) {
        None => Ok(None),
        Some(Value::Int64(number)) => Ok(Some(*number)),
        Some(_) => Err(wrong(key, "int64_param")),
    };
    let Some(region) = region else {
        for key in ["offset", "byte_size"] {
            if find(parameters, &format!("shared_memory_{key}")).is_some() {
                return Err(Error::invalid(format!(
                    "'shared_memory_{key}' can not be specified without 'shared_memory_region' parameter for tensor '{tensor}'"
                )));
            }
        }
        return Ok(None);
    };
    let offset = number("offset")?.unwrap_or(0);
    let byte_size = number("byte_size")?.ok_or_else(|| {
        Error::invalid(format!(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor '{tensor}'"
        ))
    })?;
    Ok(Some(Placement { region, offset, byte_size }))
}

fn find<'a>(parameters: &'a Values, key: &str) -> Option<&'a Value> {
    parameters.iter().find(|(name, _)| &**name == key).map(|(_, value)| value)
}
