//! `ModelInferRequest` and `ModelInferResponse` as they are written: fields, nothing judged. Tensors and names are slices of the buffer.

use bytes::Bytes;

use crate::wire::{Field, Malformed, Reader, Text};

/// An `InferParameter`: which of its choices is set.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    #[default]
    Unset,
    Bool(bool),
    Int64(i64),
    String(Text),
    Double(f64),
    Uint64(u64),
}

pub type Values = Vec<(Text, Value)>;

/// Typed contents, each field as the bytes its elements have in memory; BYTES elements length-prefixed, as on the wire.
#[derive(Debug, Default)]
pub struct Contents {
    pub fields: [Vec<u8>; 8],
}

#[derive(Debug, Default)]
pub struct InputTensor {
    pub name: Text,
    pub datatype: Text,
    pub shape: Vec<i64>,
    pub parameters: Values,
    pub contents: Option<Box<Contents>>,
}

#[derive(Debug, Default)]
pub struct RequestedOutput {
    pub name: Text,
    pub parameters: Values,
}

#[derive(Debug, Default)]
pub struct Message {
    pub model: Text,
    pub version: Text,
    pub id: Text,
    pub parameters: Values,
    pub inputs: Vec<InputTensor>,
    pub outputs: Vec<RequestedOutput>,
    pub raw: Vec<Bytes>,
}

impl Message {
    pub fn read(bytes: &Bytes) -> Result<Message, Malformed> {
        let (mut message, mut reader) = (Message::default(), Reader::new(bytes));
        while let Some((number, field)) = reader.next_field()? {
            let Field::Bytes(inner) = field else { continue };
            match number {
                1 => message.model = inner.text()?,
                2 => message.version = inner.text()?,
                3 => message.id = inner.text()?,
                4 => read_entry(inner, &mut message.parameters)?,
                5 => message.inputs.push(read_input(inner)?),
                6 => message.outputs.push(read_output(inner)?),
                7 => message.raw.push(inner.shared()),
                _ => {}
            }
        }
        Ok(message)
    }
}

/// A `ModelInferResponse`. An output is written like an input.
#[derive(Debug, Default)]
pub struct Answer {
    pub version: Text,
    pub outputs: Vec<InputTensor>,
    pub raw: Vec<Bytes>,
}

impl Answer {
    pub fn read(bytes: &Bytes) -> Result<Answer, Malformed> {
        let (mut answer, mut reader) = (Answer::default(), Reader::new(bytes));
        while let Some((number, field)) = reader.next_field()? {
            let Field::Bytes(inner) = field else { continue };
            match number {
                2 => answer.version = inner.text()?,
                5 => answer.outputs.push(read_input(inner)?),
                6 => answer.raw.push(inner.shared()),
                _ => {}
            }
        }
        Ok(answer)
    }
}

fn read_input(mut reader: Reader<'_>) -> Result<InputTensor, Malformed> {
    let mut input = InputTensor::default();
    while let Some((number, field)) = reader.next_field()? {
        match (number, field) {
            (1, Field::Bytes(inner)) => input.name = inner.text()?,
            (2, Field::Bytes(inner)) => input.datatype = inner.text()?,
            (3, Field::Varint(size)) => input.shape.push(size as i64),
            (3, Field::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    input.shape.push(packed.varint()? as i64);
                }
            }
            (4, Field::Bytes(inner)) => read_entry(inner, &mut input.parameters)?,
            (5, Field::Bytes(inner)) => read_contents(inner, input.contents.get_or_insert_default())?,
            _ => {}
        }
    }
    Ok(input)
}

fn read_output(mut reader: Reader<'_>) -> Result<RequestedOutput, Malformed> {
    let mut output = RequestedOutput::default();
    while let Some((number, field)) = reader.next_field()? {
        match (number, field) {
            (1, Field::Bytes(inner)) => output.name = inner.text()?,
            (2, Field::Bytes(inner)) => read_entry(inner, &mut output.parameters)?,
            _ => {}
        }
    }
    Ok(output)
}

/// One entry of a map from names to parameters; the last entry of a name counts.
fn read_entry(mut reader: Reader<'_>, values: &mut Values) -> Result<(), Malformed> {
    let (mut key, mut value) = (Text::default(), Value::Unset);
    while let Some((number, field)) = reader.next_field()? {
        match (number, field) {
            (1, Field::Bytes(inner)) => key = inner.text()?,
            (2, Field::Bytes(inner)) => read_value(inner, &mut value)?,
            _ => {}
        }
    }
    match values.iter_mut().find(|(name, _)| *name == key) {
        Some((_, known)) => *known = value,
        None => values.push((key, value)),
    }
    Ok(())
}

fn read_value(mut reader: Reader<'_>, value: &mut Value) -> Result<(), Malformed> {
    while let Some((number, field)) = reader.next_field()? {
        match (number, field) {
            (1, Field::Varint(bits)) => *value = Value::Bool(bits != 0),
            (2, Field::Varint(bits)) => *value = Value::Int64(bits as i64),
            (3, Field::Bytes(inner)) => *value = Value::String(inner.text()?),
            (4, Field::Fixed64(bits)) => *value = Value::Double(f64::from_bits(bits)),
            (5, Field::Varint(bits)) => *value = Value::Uint64(bits),
            _ => {}
        }
    }
    Ok(())
}

fn read_contents(mut reader: Reader<'_>, contents: &mut Contents) -> Result<(), Malformed> {
    while let Some((number, field)) = reader.next_field()? {
        let Some(to) = (number as usize).checked_sub(1).and_then(|index| contents.fields.get_mut(index)) else {
            continue;
        };
        match (number, field) {
            (1..=5, Field::Varint(bits)) => put_integer(number, bits, to),
            (1..=5, Field::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    put_integer(number, packed.varint()?, to);
                }
            }
            (6, Field::Fixed32(bits)) => to.extend_from_slice(&bits.to_le_bytes()),
            (7, Field::Fixed64(bits)) => to.extend_from_slice(&bits.to_le_bytes()),
            (6 | 7, Field::Bytes(packed)) => {
                if !packed.rest().len().is_multiple_of(if number == 6 { 4 } else { 8 }) {
                    return Err(Malformed);
                }
                to.extend_from_slice(packed.rest());
            }
            (8, Field::Bytes(element)) => {
                let length = u32::try_from(element.rest().len()).map_err(|_| Malformed)?;
                to.extend_from_slice(&length.to_le_bytes());
                to.extend_from_slice(element.rest());
            }
            _ => {}
        }
    }
    Ok(())
}

/// One element of the integer field of this number, in the width it has in memory.
fn put_integer(number: u32, bits: u64, to: &mut Vec<u8>) {
    match number {
        1 => to.push(u8::from(bits != 0)),
        2 | 4 => to.extend_from_slice(&(bits as u32).to_le_bytes()),
        _ => to.extend_from_slice(&bits.to_le_bytes()),
    }
}
