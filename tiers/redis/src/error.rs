//! Why a tier could not be made, and how errors of the client are told.

use embedding_cache::tier::{TierError, TierErrorKind};
use redis::{ErrorKind, RedisError};

/// Why a [`RedisTier`](crate::RedisTier) could not be made. Names the server, never a password.
///
/// ```
/// # use embedding_cache_redis::RedisTier;
/// let error = RedisTier::builder("http://cache:6379").lazy().unwrap_err();
/// assert!(error.is_invalid_address());
/// ```
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ConnectError(#[from] Kind);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error("{address} is no address of a server: {reason}")]
    Address { address: String, reason: String },
    #[error("the prefix {prefix:?} {reason}")]
    Prefix { prefix: String, reason: &'static str },
    #[error("{server}: {cause}")]
    Server { server: String, cause: TierError },
}

impl ConnectError {
    /// The address cannot be read, or what it asks for is not built in.
    #[must_use]
    pub fn is_invalid_address(&self) -> bool {
        matches!(self.0, Kind::Address { .. })
    }

    /// The prefix may not be used.
    #[must_use]
    pub fn is_invalid_prefix(&self) -> bool {
        matches!(self.0, Kind::Prefix { .. })
    }

    /// The server refused the name or the password, or does not allow a command that is needed.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(&self.0, Kind::Server { cause, .. } if cause.kind() == TierErrorKind::Refused)
    }

    /// The server could not be reached, or did not answer in time.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(
            &self.0,
            Kind::Server { cause, .. }
                if matches!(cause.kind(), TierErrorKind::Connection | TierErrorKind::Timeout)
        )
    }
}

/// What the cache is told of an error of the client.
pub(crate) fn tier_error(error: RedisError) -> TierError {
    let refused = matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "NOPERMISSION"));
    let kind = if refused || error.kind() == ErrorKind::AuthenticationFailed {
        TierErrorKind::Refused
    } else if error.is_timeout() {
        TierErrorKind::Timeout
    } else if error.is_io_error()
        || error.is_connection_refusal()
        || error.is_connection_dropped()
        || matches!(error.kind(), ErrorKind::ClusterConnectionNotFound)
    {
        TierErrorKind::Connection
    } else {
        TierErrorKind::Other
    };
    TierError::new(kind, error)
}

/// An address without what stands before the `@`, or after a `?`.
pub(crate) fn redacted(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let host = host.split(['?', '#']).next().unwrap_or(host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for address in [
            "redis://:hunter2@host:1/0",
            "redis://name:hunter2@host:1/0",
            "redis://name:hunter2@more@host:1/0",
            "name:hunter2@host:1/0",
            "redis://host:1/0?password=hunter2",
        ] {
            let shown = redacted(address);
            assert!(!shown.contains("hunter2") && shown.contains("host:1/0"), "{shown}");
        }
    }
}
