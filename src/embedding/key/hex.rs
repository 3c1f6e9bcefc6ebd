//! Hexadecimal digits: lower case on the way out, either case on the way in.

use wide::{i16x8, u8x16, u16x8};

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
// Sixteen at a time, as this is on the way of every lookup. Range by range with saturation, after
// Geoff Langdale and Wojciech Muła, "Parsing hex numbers with validation", 2022.
//
// Always: see `Compact::of`, of which this is half.
#[inline(always)]
pub(super) fn bytes(digits: &[u8; 64]) -> Option<[u8; 32]> {
    let ([a, b, c, d], []) = digits.as_chunks::<16>() else { return None };
    let [a, b, c, d] = [a, b, c, d].map(|digits| values(*digits));
    // What is over 15 gets its top bit.
    let over = (a | b | c | d).saturating_add(u8x16::splat(0x80 - 16));
    if over.to_bitmask() != 0 {
        return None;
    }
    let mut bytes = [0; 32];
    let ([first, second], []) = bytes.as_chunks_mut::<16>() else { return None };
    *first = u8x16::narrow_i16x8(pairs(a), pairs(b)).to_array();
    *second = u8x16::narrow_i16x8(pairs(c), pairs(d)).to_array();
    Some(bytes)
}

/// What each of `digits` stands for: more than 15 for what is no lower-case digit.
#[inline]
fn values(digits: [u8; 16]) -> u8x16 {
    let (digits, all) = (u8x16::new(digits), u8x16::splat);
    // The ten numbers go to the top of the range, and down by six, which takes everything below
    // them out of the top sixteen; what was above them came in at the bottom.
    let number = (digits + all(0xFF - b'9')).saturating_sub(all(6)) - all(0xF0);
    let letter = (digits - all(b'a')).saturating_add(all(10));
    number.min(letter)
}

/// The byte of each pair of `values`, the high half before the low one.
#[inline]
fn pairs(values: u8x16) -> i16x8 {
    let (pairs, _) = values.as_array().as_chunks::<2>();
    let pairs = u16x8::new(std::array::from_fn(|at| u16::from_le_bytes(pairs[at])));
    // `low << 8 | high`, times this: the upper half is `low + (high << 4)`.
    let bytes: u16x8 = (pairs * u16x8::splat(0x1001)) >> 8;
    bytes.cast_signed()
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

    /// Digit by digit.
    fn plainly(digits: &[u8; 64]) -> Option<[u8; 32]> {
        let value = |digit: u8| value(digit).filter(|_| !digit.is_ascii_uppercase());
        let (mut bytes, (pairs, _)) = ([0; 32], digits.as_chunks());
        for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = value(high)? << 4 | value(low)?;
        }
        Some(bytes)
    }

    #[test]
    fn lower_case_digits_are_read_at_every_place_and_nothing_else_is() {
        let mut digits = *b"0123456789abcdeffedcba98765432100f1e2d3c4b5a69788796a5b4c3d2e1f0";
        assert_eq!(bytes(&digits), plainly(&digits));
        assert_eq!(bytes(&digits).unwrap()[..4], [0x01, 0x23, 0x45, 0x67]);
        // Miri gets one place of each sixteen, and few bytes.
        let (places, bytes_between) = if cfg!(miri) { (21, 51) } else { (1, 1) };
        for at in (0..64).step_by(places) {
            let digit = digits[at];
            for byte in (0..=u8::MAX).step_by(bytes_between) {
                digits[at] = byte;
                let read = bytes(&digits);
                assert_eq!(read, plainly(&digits), "{byte} at {at}");
                assert_eq!(read.is_some(), matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            }
            digits[at] = digit;
        }
    }

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
