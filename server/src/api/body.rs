//! The body of a request: read within its limits, and inflated.

use std::io::Read as _;
use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt as _;

use crate::error::ApiError;
use crate::limits::{ByteBudget, Reserved};

/// What is set aside for a body before any of it has come, whatever length it claims.
const FIRST_RESERVE: usize = 256 << 10;

/// The steps in which the budget is asked while a body comes.
const STEP: usize = 64 << 10;

/// Compressed bodies over this are inflated beside the executor.
const INFLATED_INLINE: usize = 16 << 10;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
}

/// What the headers alone give away.
///
/// # Errors
///
/// The body would not be read: its type, its coding, or the length that it claims.
pub(super) fn check(headers: &HeaderMap, limit: usize) -> Result<(Coding, Option<u64>), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Err(ApiError::ContentType("missing".into()));
    };
    let text = value.to_str().unwrap_or("unreadable");
    let essence = text.split(';').next().unwrap_or(text).trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::ContentType(text.chars().take(100).collect()));
    }
    let coding = match headers.get(CONTENT_ENCODING).map(|value| value.to_str()) {
        None => Coding::Identity,
        Some(Ok(coding)) if coding.eq_ignore_ascii_case("identity") => Coding::Identity,
        Some(Ok(coding)) if coding.eq_ignore_ascii_case("gzip") => Coding::Gzip,
        Some(other) => {
            let coding = other.unwrap_or("unreadable").chars().take(100).collect();
            return Err(ApiError::ContentEncoding(coding));
        }
    };
    let claimed = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if claimed.is_some_and(|bytes: u64| bytes > limit as u64) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    Ok((coding, claimed))
}

/// A body, and the bytes of the budget that it takes.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    pub(super) reserved: Reserved,
}

/// The whole body, or an error as soon as it is longer than `limit`: at most that and one frame is
/// ever held.
///
/// # Errors
///
/// It is too long, there is no room for it, or it broke off.
pub(super) async fn read(
    mut body: Body,
    claimed: Option<u64>,
    limit: usize,
    budget: &Arc<ByteBudget>,
) -> Result<Whole, ApiError> {
    let mut reserved = budget.try_reserve(0).ok_or(ApiError::NoRoom)?;
    let mut whole: Option<Vec<u8>> = None;
    let mut first: Option<Bytes> = None;
    let reserve = claimed.map_or(0, |n| usize::try_from(n).unwrap_or(limit)).min(FIRST_RESERVE);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::BodyBroken(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        let held = whole.as_ref().map_or(first.as_ref().map_or(0, Bytes::len), Vec::len);
        let length = held + data.len();
        if length > limit {
            return Err(ApiError::BodyTooLarge { limit });
        }
        if length > reserved.bytes() && !reserved.try_resize(length.next_multiple_of(STEP)) {
            return Err(ApiError::NoRoom);
        }
        match (&mut whole, first.take()) {
            // A body of one frame is used where it lies.
            (None, None) => first = Some(data),
            (None, Some(start)) => {
                let mut buffer = Vec::with_capacity(reserve.max(length));
                buffer.extend_from_slice(&start);
                buffer.extend_from_slice(&data);
                whole = Some(buffer);
            }
            (Some(buffer), _) => buffer.extend_from_slice(&data),
        }
    }
    let bytes = whole.map(Bytes::from).or(first).unwrap_or_default();
    Ok(Whole { bytes, reserved })
}

/// The body as it was before it was compressed.
///
/// # Errors
///
/// It is no gzip, is longer than `limit`, or there is no room for it.
pub(super) async fn inflate(mut whole: Whole, limit: usize) -> Result<Whole, ApiError> {
    // Nobody knows how long it will be; what it does not take is given back at once.
    if !whole.reserved.try_resize(whole.bytes.len() + limit) {
        return Err(ApiError::NoRoom);
    }
    let compressed = whole.bytes;
    let work = move || {
        let mut inflated = Vec::new();
        let mut decoder = MultiGzDecoder::new(&*compressed).take(limit as u64 + 1);
        match decoder.read_to_end(&mut inflated) {
            Err(error) => Err(ApiError::Gzip(error.to_string())),
            Ok(_) if inflated.len() > limit => Err(ApiError::BodyTooLarge { limit }),
            Ok(_) => Ok(Bytes::from(inflated)),
        }
    };
    let bytes = if whole.reserved.bytes() - limit <= INFLATED_INLINE {
        work()?
    } else {
        let joined = tokio::task::spawn_blocking(work).await;
        joined.map_err(|error| ApiError::Gzip(error.to_string()))??
    };
    whole.reserved.try_resize(bytes.len());
    Ok(Whole { bytes, reserved: whole.reserved })
}
