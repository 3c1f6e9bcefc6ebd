//! Hexadecimal digits: lower case on the way out, either case on the way in.

/// The digits of `bytes`; `D` is twice `N`.
pub(super) fn digits<const N: usize, const D: usize>(bytes: &[u8; N]) -> [u8; D] {
    const { assert!(D == 2 * N) };
    let mut digits = [0; D];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xF)];
    }
    digits
}

/// The bytes that lower-case `digits` stand for, if that is what they are.
#[inline]
pub(super) fn bytes(digits: &[u8; 64]) -> Option<[u8; 32]> {
    // An upper-case letter has this bit clear, a lower-case one and a number have it set. Looked at
    // eight bytes at a time, as this is on the way of every lookup.
    const LOWER: u64 = 0x2020_2020_2020_2020;
    let (words, _) = digits.as_chunks::<8>();
    let all = words.iter().fold(LOWER, |all, word| all & u64::from_ne_bytes(*word));
    if all != LOWER {
        return None;
    }
    let mut bytes = [0; 32];
    const_hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some(bytes)
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// What `digit` stands for.
pub(super) fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back_and_nothing_else_is_a_digit() {
        for byte in 0..=u8::MAX {
            let [high, low] = digits(&[byte]);
            assert_eq!(format!("{byte:02x}").as_bytes(), [high, low]);
            assert_eq!(value(high).unwrap() << 4 | value(low).unwrap(), byte);
            let expected = char::from(byte).to_digit(16).map(|value| value as u8);
            assert_eq!(value(byte), expected);
        }
    }
}
