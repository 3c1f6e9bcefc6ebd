//! How a tier is made.

use std::fmt;
use std::time::Duration;

use embedding_cache::tier::{Tier, TierError, TierErrorKind};
use redis::{ConnectionInfo, IntoConnectionInfo};

use crate::connections::{Connections, Target};
use crate::error::{ConnectError, Kind, redacted};
use crate::tier::RedisTier;

/// Configures and makes a [`RedisTier`]; from [`RedisTier::builder`] or [`RedisTier::cluster`].
#[must_use]
pub struct RedisTierBuilder {
    addresses: Vec<String>,
    is_cluster: bool,
    prefix: String,
    #[cfg(feature = "tls")]
    root_certificate: Option<Vec<u8>>,
    timeout: Duration,
}

/// How long making the first connection may take.
const FIRST: Duration = Duration::from_secs(5);

impl RedisTierBuilder {
    pub(crate) fn new(addresses: Vec<String>, is_cluster: bool) -> Self {
        let timeout = Duration::from_millis(200);
        Self {
            addresses,
            is_cluster,
            prefix: "emb".into(),
            #[cfg(feature = "tls")]
            root_certificate: None,
            timeout,
        }
    }

    /// Begins every key and the name of the channel: caches with different ones share nothing. The
    /// default is `emb`. At most 64 bytes, and no `{`, which would put all keys of a cluster in one
    /// slot.
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// The certificate, in PEM, of who signs those of the servers, in place of the ones that the
    /// system and the web trust, for `rediss://`.
    #[cfg(feature = "tls")]
    pub fn root_certificate(self, pem: impl Into<Vec<u8>>) -> Self {
        Self { root_certificate: Some(pem.into()), ..self }
    }

    /// How long a connection, and the answer to a command, may take: 200 ms by default. Keep it below
    /// the [hard time-out](embedding_cache::tier::SecondTier::hard_timeout) of the cache, so that in a
    /// cluster the parts that answer are told from those that do not.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Connects, and asks for what the cache will need.
    ///
    /// # Errors
    ///
    /// - [`ConnectError::is_invalid_address`], [`ConnectError::is_invalid_prefix`];
    /// - [`ConnectError::is_unreachable`]: no server within 5 s;
    /// - [`ConnectError::is_refused`]: the password, or a right that is missing.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, or in one without timers.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has made nothing.
    pub async fn connect(self) -> Result<RedisTier, ConnectError> {
        let server = self.addresses.first().map(|address| redacted(address)).unwrap_or_default();
        let tier = self.lazy()?;
        let known = async {
            loop {
                match tier.namespace().await {
                    // The other connections as well: to make one may take longer than a request waits.
                    Ok(_) => return tier.warm().await,
                    // The first connection of a cluster takes more than one time-out.
                    Err(error) if error.kind() == TierErrorKind::Timeout => {}
                    Err(error) => return Err(error),
                }
            }
        };
        let within = tokio::time::timeout(FIRST, known).await;
        let late =
            || Err(TierError::new(TierErrorKind::Timeout, format!("nothing within {FIRST:?}")));
        match within.unwrap_or_else(|_| late()) {
            Ok(()) => Ok(tier),
            Err(cause) => Err(Kind::Server { server, cause }.into()),
        }
    }

    /// Connects when it is used first: for a process that is to start without its store.
    ///
    /// # Errors
    ///
    /// [`ConnectError::is_invalid_address`], [`ConnectError::is_invalid_prefix`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn lazy(self) -> Result<RedisTier, ConnectError> {
        const LONGEST: usize = 64;
        let prefix = self.prefix;
        let reason = if prefix.contains('{') {
            Some("has a {, which would put all keys of a cluster in one slot")
        } else {
            (prefix.len() > LONGEST).then_some("is longer than 64 bytes")
        };
        if let Some(reason) = reason {
            return Err(Kind::Prefix { prefix, reason }.into());
        }
        let infos = self
            .addresses
            .iter()
            .map(|address| connection_info(address))
            .collect::<Result<Vec<_>, _>>()?;
        let target = Target {
            infos,
            is_cluster: self.is_cluster,
            #[cfg(feature = "tls")]
            root_certificate: self.root_certificate,
            timeout: self.timeout,
        };
        let first = self.addresses.first().map(|address| redacted(address)).unwrap_or_default();
        let address = |error: redis::RedisError| Kind::Address {
            address: first.clone(),
            reason: error.to_string(),
        };
        let connections = Connections::new(target).map_err(address)?;
        Ok(RedisTier::new(prefix, connections))
    }
}

fn connection_info(address: &str) -> Result<ConnectionInfo, ConnectError> {
    let wrong = |reason: String| Kind::Address { address: redacted(address), reason };
    // The client says so as well, but not what to do.
    let is_tls = ["rediss:", "valkeys:"].iter().any(|scheme| address.starts_with(scheme));
    if is_tls && !cfg!(feature = "tls") {
        return Err(wrong("the feature `tls` is not built in".into()).into());
    }
    // What the client says of an address that it cannot read does not repeat it.
    let info = address.into_connection_info().map_err(|error| wrong(error.to_string()))?;
    let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    // A peer that is gone without a word is noticed after this.
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let tcp = tcp.set_user_timeout(Duration::from_secs(5));
    Ok(info.set_tcp_settings(tcp))
}

/// Without addresses, which may hold a password.
impl fmt::Debug for RedisTierBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.addresses.iter().map(|address| redacted(address)).collect();
        f.debug_struct("RedisTierBuilder")
            .field("servers", &servers)
            .field("is_cluster", &self.is_cluster)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
