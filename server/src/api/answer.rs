//! The body of an answer, written straight from the shared vectors into one buffer.

use base64::Engine as _;
use base64::engine::Simd;
use base64::engine::general_purpose::PAD;
use embedding_cache::EmbeddingVector;

use crate::request::Encoding;

/// Components that are turned into bytes at a time: a multiple of three floats is a multiple of
/// three bytes, so the base64 of the parts joins to that of the whole.
const PART: usize = 384;

/// The most characters of a component in decimal (`-1.17549435e-38` and a comma, rounded up).
const DECIMAL: usize = 16;

/// What the fixed parts of an item take, generously.
const ITEM: usize = 64;

/// The most bytes that an answer takes with so many vectors, of so many components together.
pub(crate) fn most_bytes(
    model: &str,
    vectors: usize,
    components: usize,
    encoding: Encoding,
) -> usize {
    let vector_bytes = match encoding {
        Encoding::Base64 => components.saturating_mul(4).div_ceil(3) * 4,
        Encoding::Float => components.saturating_mul(DECIMAL),
    };
    // A character of a name can take six in JSON.
    vector_bytes.saturating_add((ITEM + 8) * vectors + 6 * model.len() + 256)
}

/// The whole answer: `vectors` in order, in `encoding`.
pub(crate) fn write(
    model: &str,
    vectors: &[EmbeddingVector],
    encoding: Encoding,
    tokens: u64,
) -> Vec<u8> {
    let components: usize = vectors.iter().map(|vector| vector.dimensions()).sum();
    let mut out = Vec::with_capacity(most_bytes(model, vectors.len(), components, encoding));
    out.extend_from_slice(br#"{"object":"list","data":["#);
    let engine = Simd::standard(PAD);
    for (index, vector) in vectors.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(br#"{"object":"embedding","index":"#);
        out.extend_from_slice(index.to_string().as_bytes());
        out.extend_from_slice(br#","embedding":"#);
        match encoding {
            Encoding::Base64 => write_base64(&engine, vector, &mut out),
            Encoding::Float => write_decimal(vector, &mut out),
        }
        out.push(b'}');
    }
    out.extend_from_slice(br#"],"model":"#);
    out.extend_from_slice(serde_json::Value::from(model).to_string().as_bytes());
    let usage = format!(r#","usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#);
    out.extend_from_slice(usage.as_bytes());
    out
}

/// The shortest decimals that give back the same floats.
fn write_decimal(vector: &[f32], out: &mut Vec<u8>) {
    let mut decimal = ryu::Buffer::new();
    out.push(b'[');
    for (i, x) in vector.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        // Every vector was checked to be finite; JSON has no way to write another.
        out.extend_from_slice(decimal.format_finite(*x).as_bytes());
    }
    out.push(b']');
}

/// The base64 of the components as little-endian floats, which is what OpenAI's clients decode.
fn write_base64(engine: &Simd, vector: &[f32], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut bytes = [0_u8; PART * 4];
    for part in vector.chunks(PART) {
        for (four, x) in bytes.chunks_exact_mut(4).zip(part) {
            four.copy_from_slice(&x.to_le_bytes());
        }
        let bytes = &bytes[..part.len() * 4];
        let start = out.len();
        out.resize(start + bytes.len().div_ceil(3) * 4, 0);
        // The space is exactly what base64 with padding takes.
        let written = engine.encode_slice(bytes, &mut out[start..]).unwrap_or(0);
        out.truncate(start + written);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_give_back_the_very_floats() {
        for dimensions in [1, 2, 3, 4, 383, 384, 385, 768, 1000] {
            let vector: EmbeddingVector = (0..dimensions)
                .map(|i| (i as f32 - 3.0) * 1e-3_f32.powi(i % 12) / 7.0)
                .chain([f32::MAX, f32::MIN_POSITIVE, -0.0, 1e-45])
                .collect();
            let vectors = [vector.clone(), EmbeddingVector::from([1.0])];

            let json = write("a\"b", &vectors, Encoding::Float, 9);
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let floats = json["data"][0]["embedding"].as_array().unwrap();
            let floats: Vec<f32> = floats.iter().map(|x| x.to_string().parse().unwrap()).collect();
            assert_eq!(vector, floats);
            assert_eq!(json["model"], "a\"b");
            assert_eq!(json["usage"]["prompt_tokens"], 9);

            let json = write("m", &vectors, Encoding::Base64, 9);
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let text = json["data"][0]["embedding"].as_str().unwrap();
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            let floats: Vec<f32> =
                bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(vector, floats);
            assert_eq!(json["data"][1]["index"], 1);
        }
    }

    #[test]
    fn the_buffer_never_grows() {
        let vector: EmbeddingVector = std::iter::repeat_n(-1.175_494_4e-38, 768).collect();
        for encoding in [Encoding::Float, Encoding::Base64] {
            let out = write("model", &vec![vector.clone(); 100], encoding, u64::MAX);
            assert!(out.len() <= out.capacity() && out.capacity() < 2 * out.len(), "{encoding:?}");
        }
    }
}
