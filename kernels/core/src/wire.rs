//! Protocol Buffers, as much as the hot path needs: reading fields without copying, writing fields into one buffer.
//!
//! What counts as malformed is what protobuf's own parser says: a field of another wire type than declared is unknown and
//! skipped, groups nest to a bound, text is UTF-8.

use std::fmt;
use std::ops::{Deref, Range};

use bytes::Bytes;

/// The bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Text that shares the buffer it came in.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Text(Bytes);

impl Text {
    /// `bytes`, if they are UTF-8.
    pub fn new(bytes: Bytes) -> Result<Text, Malformed> {
        if std::str::from_utf8(&bytes).is_err() {
            return Err(Malformed);
        }
        Ok(Text(bytes))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text(Bytes::from(text.into_bytes()))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        // SAFETY: whoever makes a `Text` has checked, and nobody changes the bytes behind it.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, to)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, to)
    }
}

/// The content of one field.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Reader<'a>),
}

const MOST_NESTED: usize = 100;

/// Reads fields of one message, which is a range of `root`.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    root: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub fn new(root: &'a Bytes) -> Reader<'a> {
        Reader { root, at: 0, end: root.len() }
    }

    /// The next field of the message, groups left out; None at its end.
    pub fn next_field(&mut self) -> Result<Option<(u32, Field<'a>)>, Malformed> {
        loop {
            if self.at == self.end {
                return Ok(None);
            }
            let (number, kind) = self.tag()?;
            if kind == 3 {
                self.skip_group(number, 1)?;
                continue;
            }
            return Ok(Some((number, self.content(kind)?)));
        }
    }

    /// The bytes that are left.
    pub fn rest(&self) -> &'a [u8] {
        &self.root[self.at..self.end]
    }

    /// The same as a slice of the buffer, which is kept.
    pub fn shared(&self) -> Bytes {
        self.root.slice(self.at..self.end)
    }

    /// The same as text.
    pub fn text(&self) -> Result<Text, Malformed> {
        Text::new(self.shared())
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// A varint, as in packed fields.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let bytes = self.rest();
        if let Some(&first) = bytes.first()
            && first < 0x80
        {
            self.at += 1;
            return Ok(u64::from(first));
        }
        let mut value = 0u64;
        for (index, &byte) in bytes.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                // The tenth byte has one bit left.
                if index == 9 && byte > 1 {
                    return Err(Malformed);
                }
                self.at += index + 1;
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn tag(&mut self) -> Result<(u32, u32), Malformed> {
        let before = self.at;
        let tag = self.varint()?;
        let tag = u32::try_from(tag).map_err(|_| Malformed)?;
        if self.at - before > 5 || tag >> 3 == 0 {
            return Err(Malformed);
        }
        Ok((tag >> 3, tag & 7))
    }

    fn content(&mut self, kind: u32) -> Result<Field<'a>, Malformed> {
        match kind {
            0 => Ok(Field::Varint(self.varint()?)),
            1 => Ok(Field::Fixed64(u64::from_le_bytes(self.array()?))),
            2 => {
                let length = self.varint()?;
                let range = self.take(usize::try_from(length).map_err(|_| Malformed)?)?;
                Ok(Field::Bytes(Reader { root: self.root, at: range.start, end: range.end }))
            }
            5 => Ok(Field::Fixed32(u32::from_le_bytes(self.array()?))),
            _ => Err(Malformed),
        }
    }

    /// Fixed-size bytes, as in packed fields.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let range = self.take(N)?;
        self.root[range].try_into().map_err(|_| Malformed)
    }

    fn take(&mut self, length: usize) -> Result<Range<usize>, Malformed> {
        if length > self.end - self.at {
            return Err(Malformed);
        }
        self.at += length;
        Ok(self.at - length..self.at)
    }

    fn skip_group(&mut self, group: u32, depth: usize) -> Result<(), Malformed> {
        if depth > MOST_NESTED {
            return Err(Malformed);
        }
        loop {
            match self.tag()? {
                (number, 4) => {
                    return if number == group { Ok(()) } else { Err(Malformed) };
                }
                (number, 3) => self.skip_group(number, depth + 1)?,
                (_, kind) => {
                    self.content(kind)?;
                }
            }
        }
    }
}

/// How many bytes a varint takes.
pub fn varint_size(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// A field of bytes or text; nothing when it is empty and may be left out.
pub fn put_text(to: &mut Vec<u8>, number: u32, text: &str) {
    if !text.is_empty() {
        put_bytes(to, number, text.as_bytes());
    }
}

/// A field of bytes, also an empty one.
pub fn put_bytes(to: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_head(to, number, bytes.len());
    to.extend_from_slice(bytes);
}

/// What stands before the `size` bytes of a length-delimited field.
pub fn put_head(to: &mut Vec<u8>, number: u32, size: usize) {
    put_varint(to, u64::from(number << 3 | 2));
    put_varint(to, size as u64);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn varints_go_there_and_back() {
        for value in [0, 1, 127, 128, 300, 1 << 31, u64::from(u32::MAX), 1 << 63, u64::MAX] {
            let mut written = Vec::new();
            put_varint(&mut written, value);
            assert_eq!(written.len(), varint_size(value));
            let written = Bytes::from(written);
            let mut reader = Reader::new(&written);
            assert_eq!(reader.varint(), Ok(value));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn what_is_malformed() {
        let endless = [&[0x08][..], &[0x80; 20]].concat();
        let deep = [0x0b; 300].to_vec();
        let cases: [&[u8]; 8] = [&[0x80], &[0x00, 0x00], &[0x0a, 5, 1], &[0x0e], &[0x0c], &[0x09, 1, 2], &endless, &deep];
        for bytes in cases {
            let bytes = Bytes::copy_from_slice(bytes);
            let mut reader = Reader::new(&bytes);
            let outcome = loop {
                match reader.next_field() {
                    Ok(Some(_)) => {}
                    Ok(None) => break Ok(()),
                    Err(malformed) => break Err(malformed),
                }
            };
            assert_eq!(outcome, Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn groups_are_skipped() {
        let bytes = Bytes::from_static(&[0x1b, 0x08, 1, 0x23, 0x24, 0x1c, 0x10, 7]);
        let mut reader = Reader::new(&bytes);
        assert!(matches!(reader.next_field(), Ok(Some((2, Field::Varint(7))))));
        assert!(reader.next_field().unwrap().is_none());
    }
}
