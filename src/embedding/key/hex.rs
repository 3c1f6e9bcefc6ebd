//! Hexadecimal digits: lower case on the way out, either case on the way in.

use wide::bytemuck::cast;
use wide::{u8x16, u16x8};

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

/// 64 lower-case digits in half as much, as a few instructions make it of them; no two texts of digits
/// have the same. In numbers of 64 bits, the least that is hashed and compared at once.
///
/// Each sixteen bits are, less [`Self::OFFSET`], the [codes] of four digits: of two neighbours,
/// and of the two that stand [`LANES`] behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed([u64; 4]);

/// Digits that are read at once.
const LANES: usize = 16;

impl Packed {
    /// What the upper halves of the codes, which are all the same, come to when they are added up.
    const OFFSET: u16 = 0x7070_u16.wrapping_add(0x7070 << 4);

    /// `None` unless all of `digits` are lower-case digits.
    // Sixteen at a time, as this is on the way of every lookup; and neighbours are not joined, which
    // would take as many instructions again.
    //
    // Always: see `Compact::of`, of which this is half.
    #[inline(always)]
    pub(super) fn of(digits: &[u8; 64]) -> Option<Self> {
        let ([a, b, c, d], []) = digits.as_chunks::<LANES>() else { return None };
        let [a, b, c, d] = [a, b, c, d].map(|digits| codes(*digits));
        if (a | b | c | d).to_bitmask() != 0 {
            return None;
        }
        let ([first, second], [third, fourth]) = (join(a, b), join(c, d));
        Some(Self([first, second, third, fourth]))
    }

    /// Both halves, to be hashed as numbers.
    #[inline]
    pub(super) fn halves(&self) -> [u128; 2] {
        let [a, b, c, d] = self.0.map(u128::from);
        [b << 64 | a, d << 64 | c]
    }

    /// The value of the digit at this place.
    fn value(&self, at: usize) -> u8 {
        let pairs: [[u8; 2]; LANES] = cast(self.0);
        let pair = pairs[at / (2 * LANES) * (LANES / 2) + at % LANES / 2];
        let codes = u16::from_ne_bytes(pair).wrapping_sub(Self::OFFSET).to_ne_bytes()[at % 2];
        let code = if (at / LANES).is_multiple_of(2) { codes & 0xF } else { codes >> 4 };
        // Those of the numbers go up from 6, those of the letters down from 5.
        if code < 6 { 15 - code } else { code - 6 }
    }

    /// The byte that the two digits from `2 * at` on stand for.
    pub(super) fn byte(&self, at: usize) -> u8 {
        self.value(2 * at) << 4 | self.value(2 * at + 1)
    }

    /// The digits.
    pub(super) fn digits(&self) -> [u8; 64] {
        std::array::from_fn(|at| DIGITS[usize::from(self.value(at))])
    }
}

/// A code of each of `digits`: from 0x70 to 0x7F, each of another digit; with its top bit for what is
/// no lower-case digit.
// Range by range with saturation, after Geoff Langdale and Wojciech Muła, "Parsing hex numbers with
// validation", 2022, but so that the top bit says it all.
#[inline]
fn codes(digits: [u8; LANES]) -> u8x16 {
    let (digits, all) = (u8x16::new(digits), u8x16::splat);
    // What is below the range is above it after the subtraction; both get the top bit.
    let number = (digits - all(b'0')).saturating_add(all(0x80 - 10));
    let letter = (digits - all(b'a')).saturating_add(all(0x80 - 6));
    // Turns the codes of the letters round, to where no number's is.
    number.min(letter ^ all(0x0F))
}

/// The codes of two times sixteen digits.
#[inline]
fn join(lower: u8x16, upper: u8x16) -> [u64; 2] {
    // The halves of codes that are no constant come to lie side by side: none is lost, and to add the
    // same to all of them maps no two to one.
    let (lower, upper): (u16x8, u16x8) = (cast(lower), cast(upper));
    cast(lower + (upper << 4))
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

    fn bytes(digits: &[u8; 64]) -> Option<[u8; 32]> {
        let packed = Packed::of(digits)?;
        assert_eq!(packed.digits(), *digits);
        Some(std::array::from_fn(|at| packed.byte(at)))
    }

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
