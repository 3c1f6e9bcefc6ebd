//! The second tier on Redis that the options ask for.

use std::time::Duration;

use embedding_cache::tier::SecondTier;
use embedding_cache_redis::{ConnectError, RedisTier, RedisTierBuilder};

use crate::options::{OptionError, Options, RedisUrl};

/// The least time after which Redis has failed: the cache's own default.
const HARD_TIMEOUT: Duration = Duration::from_millis(250);

/// By how much a single connection gives up before the cache does, so that in a cluster the parts
/// that answer are told from those that do not.
const EARLIER: Duration = Duration::from_millis(50);

/// Connects, unless no Redis was asked for. One that cannot be reached is connected to later: a server
/// is not to depend on its cache's second tier for its start.
///
/// # Errors
///
/// A URL that cannot be read, a password that is refused, a certificate that is not there.
pub(super) async fn connect(options: &Options) -> Result<Option<SecondTier>, OptionError> {
    if options.redis.is_empty() {
        return Ok(None);
    }
    let hard_timeout = HARD_TIMEOUT.max(options.redis_deadline.saturating_mul(2));
    let certificate = certificate(options)?;
    let builder = || builder(options, hard_timeout - EARLIER, certificate.as_deref());
    let tier = match builder().connect().await {
        Ok(tier) => tier,
        Err(error) if error.is_unreachable() => {
            tracing::warn!(%error, "Redis cannot be reached yet");
            builder().lazy().map_err(wrong)?
        }
        Err(error) => return Err(wrong(error)),
    };
    let mut second =
        SecondTier::new(tier).soft_deadline(options.redis_deadline).hard_timeout(hard_timeout);
    if let Some(secret) = &options.redis_secret {
        second = second.authenticate(secret.expose());
    }
    Ok(Some(second))
}

fn certificate(options: &Options) -> Result<Option<Vec<u8>>, OptionError> {
    let Some(path) = &options.redis_ca else { return Ok(None) };
    let unreadable = |error| {
        OptionError::new("--redis-ca", format!("{} cannot be read: {error}", path.display()))
    };
    std::fs::read(path).map(Some).map_err(unreadable)
}

fn builder(options: &Options, timeout: Duration, certificate: Option<&[u8]>) -> RedisTierBuilder {
    let builder = match options.redis.as_slice() {
        [one] => RedisTier::builder(one.expose()),
        nodes => RedisTier::cluster(nodes.iter().map(RedisUrl::expose)),
    };
    let builder = builder.prefix(&options.redis_prefix).timeout(timeout);
    match certificate {
        Some(pem) => builder.root_certificate(pem),
        None => builder,
    }
}

fn wrong(error: ConnectError) -> OptionError {
    let option = if error.is_invalid_prefix() { "--redis-prefix" } else { "--redis" };
    OptionError::new(option, error.to_string())
}
