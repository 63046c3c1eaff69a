//! The V2 datatypes.

/// A datatype by its V2 name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bf16,
    Bytes,
}

use Datatype::*;

const ALL: [(Datatype, &str, usize); 14] = [
    (Bool, "BOOL", 1),
    (Uint8, "UINT8", 1),
    (Uint16, "UINT16", 2),
    (Uint32, "UINT32", 4),
    (Uint64, "UINT64", 8),
    (Int8, "INT8", 1),
    (Int16, "INT16", 2),
    (Int32, "INT32", 4),
    (Int64, "INT64", 8),
    (Fp16, "FP16", 2),
    (Fp32, "FP32", 4),
    (Fp64, "FP64", 8),
    (Bf16, "BF16", 2),
    (Bytes, "BYTES", 0),
];

impl Datatype {
    pub fn named(name: &str) -> Option<Datatype> {
        ALL.iter().find(|(_, known, _)| *known == name).map(|(datatype, _, _)| *datatype)
    }

    pub fn name(self) -> &'static str {
        ALL[self as usize].1
    }

    /// Bytes of an element; 0 for BYTES, whose elements have each their own.
    pub fn size(self) -> usize {
        ALL[self as usize].2
    }
}

/// A shape the way messages print it: `[1,2048]`.
pub fn format_shape(shape: &[i64]) -> String {
    let sizes: Vec<String> = shape.iter().map(i64::to_string).collect();
    format!("[{}]", sizes.join(","))
}

/// The product of sizes that are not negative, in decimal: exact, however large.
pub fn product(shape: &[i64], times: u64) -> String {
    const BASE: u128 = 1_000_000_000_000_000_000;
    let mut digits = vec![1u128];
    for factor in shape.iter().map(|size| *size as u64).chain([times]) {
        let mut carry = 0;
        for digit in &mut digits {
            let whole = *digit * u128::from(factor) + carry;
            *digit = whole % BASE;
            carry = whole / BASE;
        }
        while carry > 0 {
            digits.push(carry % BASE);
            carry /= BASE;
        }
    }
    while digits.len() > 1 && digits.last() == Some(&0) {
        digits.pop();
    }
    let (most, rest) = digits.split_last().map_or((0, &[][..]), |(most, rest)| (*most, rest));
    rest.iter().rev().fold(most.to_string(), |told, digit| format!("{told}{digit:018}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for (index, (datatype, name, size)) in ALL.iter().enumerate() {
            assert_eq!(*datatype as usize, index);
            assert_eq!((datatype.name(), datatype.size()), (*name, *size));
            assert_eq!(Datatype::named(name), Some(*datatype));
        }
        assert_eq!(Datatype::named("STRING"), None);
    }

    #[test]
    fn products_are_exact() {
        assert_eq!(product(&[], 4), "4");
        assert_eq!(product(&[3, 0, i64::MAX], 4), "0");
        assert_eq!(product(&[2, i64::MAX], 4), "73786976294838206456");
        assert_eq!(product(&[1 << 62; 4], 8), "3618502788666131106986593281521497120414687020801267626233049500247285301248");
    }
}
