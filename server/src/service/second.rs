//! The second tier that the options ask for: on Redis, or in a directory.

use std::time::Duration;

use embedding_cache::tier::SecondTier;
use embedding_cache_disk::DiskTier;
use embedding_cache_redis::{ConnectError, RedisTier, RedisTierBuilder};

use crate::options::{OptionError, Options, RedisUrl};

/// The least time after which a tier has failed: the cache's own default.
const HARD_TIMEOUT: Duration = Duration::from_millis(250);

/// By how much a single connection gives up before the cache does, so that in a cluster the parts
/// that answer are told from those that do not.
const EARLIER: Duration = Duration::from_millis(50);

/// Connects to Redis or opens the directory, if one of them was asked for.
///
/// # Errors
///
/// A URL that cannot be read, a password that is refused, a certificate that is not there, a directory
/// that cannot be used.
pub(super) async fn open(options: &Options) -> Result<Option<SecondTier>, OptionError> {
    let hard_timeout = HARD_TIMEOUT.max(options.tier_deadline.saturating_mul(2));
    let tier = if !options.redis.is_empty() {
        redis(options, hard_timeout).await?
    } else if options.disk.is_some() {
        disk(options).await?
    } else {
        return Ok(None);
    };
    Ok(Some(tier.soft_deadline(options.tier_deadline).hard_timeout(hard_timeout)))
}

/// One that cannot be reached is connected to later: a server is not to depend on its second tier for
/// its start.
async fn redis(options: &Options, hard_timeout: Duration) -> Result<SecondTier, OptionError> {
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
    let second = SecondTier::new(tier);
    Ok(match &options.redis_secret {
        Some(secret) => second.authenticate(secret.expose()),
        None => second,
    })
}

/// Beside the executor, as it reads what a crash has left.
async fn disk(options: &Options) -> Result<SecondTier, OptionError> {
    let directory = options.disk.clone().unwrap_or_default();
    let builder = DiskTier::builder(directory).max_bytes(options.disk_mb << 20);
    let opened = tokio::task::spawn_blocking(move || builder.open()).await;
    let unusable = |problem: String| OptionError::new("--disk", problem);
    let tier = opened.map_err(|error| unusable(error.to_string()))?;
    tier.map(SecondTier::new).map_err(|error| unusable(error.to_string()))
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
