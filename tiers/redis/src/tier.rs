//! The tier itself: keys and commands.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use embedding_cache::tier::{
    BoxFuture, Lookup, Namespace, Scope, Tier, TierEntry, TierError, TierErrorKind, TierKey,
};
use futures_util::future::join_all;
use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, RedisResult};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::builder::RedisTierBuilder;
use crate::connections::{Connected, Connections};
use crate::error::tier_error;
use crate::subscription;

/// A [`Tier`] on a Redis or Valkey server, or a cluster of them.
///
/// A key is `PREFIX:ec1:` and the 41 bytes of the [`TierKey`]; the nonces stand in the hash
/// `PREFIX:ec1:gen`, and what is invalidated is published on the channel `PREFIX:ec1:inv`. It needs the
/// commands `GET`, `MGET`, `SET`, `HGETALL`, `HSET`, `HSETNX`, `PUBLISH` and `SUBSCRIBE`, and in a
/// cluster `CLUSTER SLOTS`.
///
/// Dropped, it closes its connections.
pub struct RedisTier {
    prefix: String,
    connections: Connections,
    /// Wakes who waits for changes; keeps one if nobody does.
    changed: Arc<Notify>,
    /// Whether a task listens.
    listening: AtomicBool,
    listener: std::sync::Mutex<Option<AbortHandle>>,
}

impl RedisTier {
    /// Starts to configure a tier on the server at `address`: `redis://[NAME[:PASSWORD]@]HOST[:PORT][/DB]`,
    /// `rediss://` with the feature `tls`, or `redis+unix:///PATH`.
    pub fn builder(address: impl Into<String>) -> RedisTierBuilder {
        RedisTierBuilder::new(vec![address.into()], false)
    }

    /// Starts to configure a tier on the cluster that these servers are of; the others are found by
    /// it. Names and passwords are those of the first address.
    pub fn cluster(addresses: impl IntoIterator<Item: Into<String>>) -> RedisTierBuilder {
        RedisTierBuilder::new(addresses.into_iter().map(Into::into).collect(), true)
    }

    pub(crate) fn new(prefix: String, connections: Connections) -> Self {
        Self {
            prefix,
            connections,
            changed: Arc::default(),
            listening: AtomicBool::new(false),
            listener: std::sync::Mutex::default(),
        }
    }

    fn name(&self, rest: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), b":ec1:", rest].concat()
    }

    fn key(&self, key: &TierKey) -> Vec<u8> {
        self.name(&key.to_bytes())
    }

    /// Runs a command where writes go.
    async fn write<T: FromRedisValue>(&self, command: Cmd) -> Result<T, TierError> {
        let answer = match self.connections.get() {
            Connected::Single { mut write, .. } => command.query_async(&mut write).await,
            Connected::Cluster(mut cluster) => command.query_async(&mut cluster).await,
        };
        answer.map_err(tier_error)
    }

    async fn namespace_now(&self) -> Result<Namespace, TierError> {
        for _ in 0..2 {
            let mut all = redis::cmd("HGETALL");
            all.arg(self.name(b"gen"));
            let fields: Vec<(Vec<u8>, Vec<u8>)> = self.write(all).await?;
            let fields = fields.iter().map(|(name, nonce)| (&name[..], &nonce[..]));
            if let Some(namespace) = Namespace::from_fields(fields) {
                return Ok(namespace);
            }
            // The first process here, or the store has lost it. Of two that come to it at once, the
            // first wins for both.
            let mut first = redis::cmd("HSETNX");
            first.arg(self.name(b"gen")).arg(Namespace::BASE_FIELD).arg(&nonce()?);
            let _: i64 = self.write(first).await?;
        }
        Err(TierError::new(TierErrorKind::Other, "the base is not one, and cannot be set"))
    }

    async fn invalidate_now(&self, scope: Scope) -> Result<(), TierError> {
        let field = scope.field();
        let mut set = redis::cmd("HSET");
        set.arg(self.name(b"gen")).arg(&field).arg(&nonce()?);
        let _: i64 = self.write(set).await?;
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.name(b"inv")).arg(&field);
        // Who does not hear of it polls.
        let _: Result<i64, TierError> = self.write(publish).await;
        Ok(())
    }

    /// Reads something over every connection, so that it is there.
    pub(crate) async fn warm(&self) -> Result<(), TierError> {
        // In a cluster they are in many slots, and so with every server.
        let names = (0..64_u8).map(|number| self.name(&[number]));
        let found = match self.connections.get() {
            Connected::Single { reads, .. } => {
                let nothing = self.name(&[]);
                join_all(reads.map(|connection| get(connection, nothing.clone()))).await
            }
            Connected::Cluster(cluster) => {
                join_all(names.map(|name| get(cluster.clone(), name))).await
            }
        };
        let failed = found.into_iter().find_map(|found| match found {
            Lookup::Failed(error) => Some(error),
            _ => None,
        });
        failed.map_or(Ok(()), Err)
    }

    /// Starts to listen, unless a task does.
    fn listen(&self) {
        if self.listening.swap(true, Relaxed) {
            return;
        }
        let channel = format!("{}:ec1:inv", self.prefix);
        let target = self.connections.target.clone();
        let task =
            tokio::spawn(subscription::listen(target, channel, Arc::downgrade(&self.changed)));
        if let Ok(mut listener) = self.listener.lock() {
            *listener = Some(task.abort_handle());
        }
    }
}

/// 16 random bytes.
fn nonce() -> Result<[u8; 16], TierError> {
    let mut nonce = [0; 16];
    let failed = |error: getrandom::Error| TierError::new(TierErrorKind::Other, error.to_string());
    getrandom::fill(&mut nonce).map_err(failed)?;
    Ok(nonce)
}

fn lookup(found: RedisResult<Option<Vec<u8>>>) -> Lookup {
    match found {
        Ok(Some(value)) => Lookup::Found(value),
        Ok(None) => Lookup::Absent,
        Err(error) => Lookup::Failed(tier_error(error)),
    }
}

async fn get(mut connection: impl ConnectionLike, key: Vec<u8>) -> Lookup {
    let mut command = redis::cmd("GET");
    command.arg(key);
    lookup(command.query_async(&mut connection).await)
}

/// `SET`, with a life if there is one.
fn set(key: Vec<u8>, entry: &TierEntry) -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg(key).arg(&entry.value[..]);
    if let Some(life) = entry.life {
        // 0 would be an error; and a server counts in signed milliseconds from 1970.
        let millis = u64::try_from(life.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 52);
        command.arg("PX").arg(millis);
    }
    command
}

impl Tier for RedisTier {
    fn get_many<'a>(&'a self, keys: &'a [TierKey]) -> BoxFuture<'a, Vec<Lookup>> {
        Box::pin(async move {
            let names = keys.iter().map(|key| self.key(key));
            match self.connections.get() {
                Connected::Single { reads, .. } => {
                    let [first, second] = reads;
                    let mut connection = if self.connections.turn() == 0 { first } else { second };
                    let mut command = redis::cmd("MGET");
                    names.for_each(|name| {
                        command.arg(name);
                    });
                    let found: RedisResult<Vec<Option<Vec<u8>>>> =
                        command.query_async(&mut connection).await;
                    match found {
                        Ok(found) => found.into_iter().map(|found| lookup(Ok(found))).collect(),
                        Err(error) => {
                            let error = tier_error(error);
                            keys.iter().map(|_| Lookup::Failed(error.clone())).collect()
                        }
                    }
                }
                // At once, not as one command: keys of a batch are in many slots, and one of a slot
                // without a server must not take the others along.
                Connected::Cluster(cluster) => {
                    join_all(names.map(|name| get(cluster.clone(), name))).await
                }
            }
        })
    }

    fn set_many<'a>(
        &'a self,
        entries: &'a [TierEntry],
    ) -> BoxFuture<'a, Vec<Result<(), TierError>>> {
        Box::pin(async move {
            let commands = entries.iter().map(|entry| set(self.key(&entry.key), entry));
            match self.connections.get() {
                Connected::Single { mut write, .. } => {
                    let mut pipeline = redis::pipe();
                    commands.for_each(|command| {
                        pipeline.add_command(command);
                    });
                    // One that is refused (no memory left, say) fails alone.
                    pipeline.ignore_errors();
                    let results: RedisResult<Vec<RedisResult<()>>> =
                        pipeline.query_async(&mut write).await;
                    match results {
                        Ok(results) => {
                            results.into_iter().map(|result| result.map_err(tier_error)).collect()
                        }
                        Err(error) => vec![Err(tier_error(error)); entries.len()],
                    }
                }
                Connected::Cluster(cluster) => {
                    let set = |command: Cmd| {
                        let mut cluster = cluster.clone();
                        async move { command.query_async::<()>(&mut cluster).await }
                    };
                    let results = join_all(commands.map(set)).await;
                    results.into_iter().map(|result| result.map_err(tier_error)).collect()
                }
            }
        })
    }

    fn namespace(&self) -> BoxFuture<'_, Result<Namespace, TierError>> {
        Box::pin(self.namespace_now())
    }

    fn invalidate(&self, scope: Scope) -> BoxFuture<'_, Result<(), TierError>> {
        Box::pin(self.invalidate_now(scope))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.listen();
            self.changed.notified().await;
        })
    }

    /// Of a cluster 256 neighbouring slots.
    fn bucket(&self, key: &TierKey) -> u8 {
        if !self.connections.target.is_cluster {
            return 0;
        }
        (slot(&self.key(key)) / 256) as u8
    }

    fn reset(&self) {
        self.connections.renew();
    }
}

/// The slot of a key: by what stands between the first `{` and the next `}`, if that is something.
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % 16_384
}

impl Drop for RedisTier {
    fn drop(&mut self) {
        if let Ok(Some(listener)) = self.listener.lock().as_deref() {
            listener.abort();
        }
    }
}

/// Without addresses, which may hold a password.
impl fmt::Debug for RedisTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTier")
            .field("prefix", &self.prefix)
            .field("is_cluster", &self.connections.target.is_cluster)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::slot;

    #[test]
    fn slots_are_those_of_the_specification() {
        // From the specification of the cluster, and `CLUSTER KEYSLOT`.
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(slot(b"foo{}{bar}"), slot(b"foo{}{bar}"));
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
    }
}
