//! Requests to another server: a `ModelInferRequest`, framed for gRPC, written once into a buffer of the right size.

use super::request::Parameter;
use super::response::{MAX_MESSAGE, framed};
use crate::error::{Error, Result};
use crate::wire::{put_bytes, put_head, put_text, put_varint, varint_size};

/// Where a tensor is, or goes, in shared memory of that server.
#[derive(Clone, Debug)]
pub struct Place {
    pub region: String,
    pub offset: i64,
    pub nbytes: i64,
}

/// An input.
#[derive(Debug)]
pub struct Given<'a> {
    pub name: &'a str,
    pub datatype: &'a str,
    pub shape: &'a [i64],
    /// As on the wire; ignored where the tensor has a place.
    pub data: &'a [u8],
    pub place: Option<&'a Place>,
}

/// A request to another server.
#[derive(Debug)]
pub struct Asking<'a> {
    pub model: &'a str,
    pub version: &'a str,
    pub id: &'a str,
    pub parameters: &'a [(String, Parameter)],
    pub inputs: &'a [Given<'a>],
    pub outputs: &'a [(String, Option<Place>)],
}

impl Asking<'_> {
    /// The message.
    ///
    /// # Errors
    /// It is larger than a message can be.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        put_text(&mut head, 1, self.model);
        put_text(&mut head, 2, self.version);
        put_text(&mut head, 3, self.id);
        for (name, value) in self.parameters {
            put_parameter(&mut head, 4, name, value);
        }
        let mut one = Vec::new();
        for input in self.inputs {
            one.clear();
            put_text(&mut one, 1, input.name);
            put_text(&mut one, 2, input.datatype);
            put_head(&mut one, 3, input.shape.iter().map(|size| varint_size(*size as u64)).sum());
            input.shape.iter().for_each(|size| put_varint(&mut one, *size as u64));
            put_place(&mut one, 4, input.place);
            put_bytes(&mut head, 5, &one);
        }
        for (name, place) in self.outputs {
            one.clear();
            put_text(&mut one, 1, name);
            put_place(&mut one, 2, place.as_ref());
            put_bytes(&mut head, 6, &one);
        }
        let raw = || self.inputs.iter().filter(|input| input.place.is_none()).map(|input| input.data);
        let size = head.len() + raw().map(|data| 1 + varint_size(data.len() as u64) + data.len()).sum::<usize>();
        if size > MAX_MESSAGE {
            let told =
                format!("a request of {size} bytes is larger than a message may be, {MAX_MESSAGE}; let it have fewer rows");
            return Err(Error::invalid(told));
        }
        let mut message = framed(size)?;
        message.extend_from_slice(&head);
        raw().for_each(|data| put_bytes(&mut message, 7, data));
        debug_assert_eq!(message.len(), 5 + size);
        Ok(message)
    }
}

fn put_place(to: &mut Vec<u8>, number: u32, place: Option<&Place>) {
    let Some(place) = place else { return };
    put_parameter(to, number, "shared_memory_region", &Parameter::String(place.region.clone().into()));
    put_parameter(to, number, "shared_memory_byte_size", &Parameter::Int(place.nbytes));
    if place.offset != 0 {
        put_parameter(to, number, "shared_memory_offset", &Parameter::Int(place.offset));
    }
}

/// An entry of the map of parameters that is field `number`.
fn put_parameter(to: &mut Vec<u8>, number: u32, name: &str, value: &Parameter) {
    const FIXED64: u64 = 1;
    let (mut choice, mut entry) = (Vec::new(), Vec::new());
    match value {
        Parameter::Bool(flag) => choice.extend_from_slice(&[1 << 3, u8::from(*flag)]),
        Parameter::Int(integer) => {
            put_varint(&mut choice, 2 << 3);
            put_varint(&mut choice, *integer as u64);
        }
        Parameter::String(text) => put_bytes(&mut choice, 3, text.as_bytes()),
        Parameter::Double(double) => {
            put_varint(&mut choice, 4 << 3 | FIXED64);
            choice.extend_from_slice(&double.to_le_bytes());
        }
    }
    put_text(&mut entry, 1, name);
    put_bytes(&mut entry, 2, &choice);
    put_bytes(to, number, &entry);
}
