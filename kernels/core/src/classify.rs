//! The classification extension: the likeliest classes of an output instead of its values.

use std::cmp::Ordering;
use std::fmt::Write;

use crate::datatype::Datatype;
use crate::error::{Error, Result};

const MOST_ELEMENTS: usize = 1_000_000;

/// Whether an output of this datatype can be classified.
pub fn check(datatype: Datatype) -> Result<()> {
    use Datatype::*;
    match datatype {
        Uint8 | Uint16 | Uint32 | Uint64 | Int8 | Int16 | Int32 | Int64 | Fp32 | Fp64 => Ok(()),
        Bool | Fp16 | Bf16 | Bytes => {
            let told = format!("class result not available for output due to unsupported type '{}'", datatype.name());
            Err(Error::invalid(told))
        }
    }
}

/// The `count` largest elements of each row, the largest first, as BYTES on the wire; and how many a row gave.
///
/// Each is `<value>:<index>` or `<value>:<index>:<label>`. Of equals, the one with the lower index comes first.
pub fn top(datatype: Datatype, data: &[u8], rows: usize, count: usize, labels: &[String]) -> Result<(Vec<u8>, usize)> {
    check(datatype)?;
    let elements = data.len() / datatype.size();
    if elements > MOST_ELEMENTS {
        return Err(Error::invalid("classification output tensor too large"));
    }
    let width = elements.checked_div(rows).unwrap_or(0);
    let kept = count.min(width);
    let mut told = Told { wire: Vec::new(), text: String::new(), labels };
    macro_rules! integers {
        ($type:ty) => {
            told.rows(data, width, kept, |bytes| <$type>::from_le_bytes(bytes), <$type>::cmp, |to, value| write!(to, "{value}"))
        };
    }
    macro_rules! floats {
        ($type:ty) => {
            told.rows(
                data,
                width,
                kept,
                |bytes| <$type>::from_le_bytes(bytes),
                nan_last,
                |to, value| {
                    if value.is_finite() { write!(to, "{value:.6}") } else { write!(to, "{}", value.to_string().to_lowercase()) }
                },
            )
        };
    }
    match datatype {
        Datatype::Uint8 => integers!(u8),
        Datatype::Uint16 => integers!(u16),
        Datatype::Uint32 => integers!(u32),
        Datatype::Uint64 => integers!(u64),
        Datatype::Int8 => integers!(i8),
        Datatype::Int16 => integers!(i16),
        Datatype::Int32 => integers!(i32),
        Datatype::Int64 => integers!(i64),
        Datatype::Fp32 => floats!(f32),
        _ => floats!(f64),
    }
    Ok((told.wire, kept))
}

/// The order numpy sorts in: what is no number stands behind all that are.
fn nan_last<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    let is_nan = |value: &T| value.partial_cmp(value).is_none();
    a.partial_cmp(b).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
}

struct Told<'a> {
    wire: Vec<u8>,
    text: String,
    labels: &'a [String],
}

impl Told<'_> {
    fn rows<T, const N: usize>(
        &mut self,
        data: &[u8],
        width: usize,
        kept: usize,
        read: impl Fn([u8; N]) -> T,
        order: impl Fn(&T, &T) -> Ordering,
        print: impl Fn(&mut String, &T) -> std::fmt::Result,
    ) {
        if kept == 0 {
            return;
        }
        for row in data.chunks_exact(width * N) {
            let mut ranked: Vec<(usize, T)> = row.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).enumerate().collect();
            // Stable, and the largest first: equals keep their order.
            ranked.sort_by(|(_, a), (_, b)| order(b, a));
            for (index, value) in &ranked[..kept] {
                self.text.clear();
                // Writing to a string cannot fail.
                let _ = print(&mut self.text, value);
                let _ = write!(self.text, ":{index}");
                if let Some(label) = self.labels.get(*index).filter(|label| !label.is_empty()) {
                    let _ = write!(self.text, ":{label}");
                }
                self.wire.extend_from_slice(&(self.text.len() as u32).to_le_bytes());
                self.wire.extend_from_slice(self.text.as_bytes());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn words(wire: &[u8]) -> Vec<String> {
        let (mut at, mut found) = (0, Vec::new());
        while at < wire.len() {
            let length = u32::from_le_bytes(wire[at..at + 4].try_into().unwrap()) as usize;
            found.push(String::from_utf8(wire[at + 4..at + 4 + length].to_vec()).unwrap());
            at += 4 + length;
        }
        found
    }

    #[test]
    fn the_largest_first_with_labels() {
        let values: Vec<u8> = [0.5f32, 2.0, f32::NAN, f32::INFINITY, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let labels = ["cat", "", "owl"].map(str::to_owned);
        let (wire, kept) = top(Datatype::Fp32, &values, 1, 9, &labels).unwrap();
        assert_eq!(words(&wire), ["nan:2:owl", "inf:3", "2.000000:1", "2.000000:4", "0.500000:0:cat"]);
        assert_eq!(kept, 5);
    }

    #[test]
    fn rows_apart_and_none_at_all() {
        assert_eq!(words(&top(Datatype::Uint8, &[1, 2, 4, 3], 2, 1, &[]).unwrap().0), ["2:1", "4:0"]);
        assert_eq!(top(Datatype::Uint8, &[], 0, 3, &[]).unwrap(), (Vec::new(), 0));
        assert_eq!(top(Datatype::Uint8, &[], 2, 3, &[]).unwrap(), (Vec::new(), 0));
        assert!(top(Datatype::Fp16, &[0, 0], 1, 1, &[]).is_err());
    }
}
