//! Answers to messages: `ModelInferResponse` for a call, `ModelStreamInferResponse` for a stream, each written once, with
//! the five bytes that gRPC wants before a message, into a buffer of the right size.
//!
//! Tensors always go as raw contents, one entry an output in the same order; empty for one in shared memory.

use bytes::Bytes;

use crate::datatype::Datatype;
use crate::error::{Error, Result};
use crate::wire::{put_bytes, put_head, put_text, put_varint, varint_size};

/// The most bytes a gRPC message may have.
pub const MAX_MESSAGE: usize = i32::MAX as usize;

const FINAL: &str = "triton_final_response";

/// The values of one output for one request.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Row-major, little-endian; or what is on the wire already.
    Raw(&'a [u8]),
    /// BYTES: element i is `data[offsets[i]..offsets[i + 1]]`.
    Elements { offsets: &'a [i64], data: &'a [u8] },
    /// Elsewhere: in shared memory.
    Nothing,
}

impl Part<'_> {
    pub fn size(&self) -> usize {
        match self {
            Part::Raw(bytes) => bytes.len(),
            Part::Elements { offsets, .. } => match offsets {
                [first, .., last] => (last - first) as usize + 4 * (offsets.len() - 1),
                _ => 0,
            },
            Part::Nothing => 0,
        }
    }

    pub fn write(&self, to: &mut Vec<u8>) {
        match self {
            Part::Raw(bytes) => to.extend_from_slice(bytes),
            Part::Elements { offsets, data } => {
                for element in offsets.windows(2) {
                    let element = &data[element[0] as usize..element[1] as usize];
                    to.extend_from_slice(&(element.len() as u32).to_le_bytes());
                    to.extend_from_slice(element);
                }
            }
            Part::Nothing => {}
        }
    }
}

/// One output of an answer.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub name: &'a str,
    pub datatype: Datatype,
    /// The first dimension, where it is not the one of `shape`.
    pub rows: Option<i64>,
    pub shape: &'a [i64],
    pub part: Part<'a>,
}

impl Wanted<'_> {
    fn sizes(&self) -> impl Iterator<Item = i64> + '_ {
        self.rows.into_iter().chain(self.shape.iter().skip(usize::from(self.rows.is_some())).copied())
    }

    fn packed_size(&self) -> usize {
        self.sizes().map(|size| varint_size(size as u64)).sum()
    }

    fn size(&self) -> usize {
        field_size(self.name.len()) + field_size(self.datatype.name().len()) + field_size(self.packed_size())
    }

    fn write(&self, to: &mut Vec<u8>) {
        put_head(to, 5, self.size());
        put_bytes(to, 1, self.name.as_bytes());
        put_bytes(to, 2, self.datatype.name().as_bytes());
        put_head(to, 3, self.packed_size());
        for size in self.sizes() {
            put_varint(to, size as u64);
        }
    }
}

/// A length-delimited field of a number below 16.
fn field_size(length: usize) -> usize {
    1 + varint_size(length as u64) + length
}

/// Encodes the answers of one version. `stream`: each is flagged as the last of its request or not.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    pub model: &'a str,
    pub version: &'a str,
    pub stream: bool,
}

impl Encoder<'_> {
    /// One answer, framed for gRPC.
    pub fn encode(&self, id: &str, outputs: &[Wanted<'_>], is_final: bool) -> Result<Bytes> {
        let tensors: usize = outputs.iter().map(|output| output.part.size()).sum();
        if tensors > MAX_MESSAGE {
            let told = format!("Response has byte size {tensors} which exceeds gRPC's byte size limit {MAX_MESSAGE}.");
            return Err(Error::invalid(told));
        }
        let texts = [self.model, self.version, id].iter().map(|text| optional_size(text)).sum::<usize>();
        let described = outputs.iter().map(|output| field_size(output.size()) + field_size(output.part.size()));
        let flag = if self.stream { flag_size() } else { 0 };
        let body = texts + described.sum::<usize>() + flag;
        let message = if self.stream { field_size(body) } else { body };
        let mut to = framed(message)?;
        if self.stream {
            put_head(&mut to, 2, body);
        }
        put_text(&mut to, 1, self.model);
        put_text(&mut to, 2, self.version);
        put_text(&mut to, 3, id);
        if self.stream {
            put_flag(&mut to, is_final);
        }
        for output in outputs {
            output.write(&mut to);
        }
        for output in outputs {
            put_head(&mut to, 6, output.part.size());
            output.part.write(&mut to);
        }
        debug_assert_eq!(to.len(), 5 + message);
        Ok(to.into())
    }
}

/// The error of a request of a stream that was not scheduled: nothing but its id goes with it.
pub fn refusal(error: &Error, id: &str) -> Bytes {
    in_stream(error, |to| put_text(to, 3, id))
}

/// The error of one that was; it is its last answer, and has the version that was asked for.
pub fn failure(error: &Error, model: &str, version: i64, id: &str) -> Bytes {
    in_stream(error, |to| {
        put_text(to, 1, model);
        if version != 0 {
            put_text(to, 2, &version.to_string());
        }
        put_text(to, 3, id);
        put_flag(to, true);
    })
}

/// A message of a stream with an error in it. Small, whatever happened: sentences are bounded.
fn in_stream(error: &Error, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let (mut response, mut message) = (Vec::new(), vec![0; 5]);
    write(&mut response);
    put_text(&mut message, 1, &error.message);
    put_bytes(&mut message, 2, &response);
    let size = (message.len() - 5) as u32;
    message[1..5].copy_from_slice(&size.to_be_bytes());
    message.into()
}

/// A buffer for a message of this size, with gRPC's head in it: not compressed, so many bytes.
pub fn framed(size: usize) -> Result<Vec<u8>> {
    if size > MAX_MESSAGE {
        let told = format!("Response has byte size {size} which exceeds gRPC's byte size limit {MAX_MESSAGE}.");
        return Err(Error::invalid(told));
    }
    let mut to = Vec::with_capacity(5 + size);
    to.push(0);
    to.extend_from_slice(&(size as u32).to_be_bytes());
    Ok(to)
}

fn optional_size(text: &str) -> usize {
    if text.is_empty() { 0 } else { field_size(text.len()) }
}

fn flag_size() -> usize {
    field_size(field_size(FINAL.len()) + field_size(2))
}

/// The parameter that says whether this is the last answer of its request.
fn put_flag(to: &mut Vec<u8>, is_final: bool) {
    put_head(to, 4, field_size(FINAL.len()) + field_size(2));
    put_text(to, 1, FINAL);
    put_bytes(to, 2, &[0x08, u8::from(is_final)]);
}
