//! What a second tier has to do.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::key::TierKey;
use super::namespace::{Namespace, Scope};

/// A future in a box: beside a hundred microseconds of a network a box for each batch is nothing.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A store that keeps bytes under [`TierKey`]s.
///
/// Every method answers for each key by itself, as a cluster fails in parts. It need not bound its
/// time, retry, count or log: the cache gives up after its hard time-out, and is the only place where
/// an error is swallowed. Calls come from several tasks at once. Every future may be dropped at any
/// `.await`; a write may then have happened or not.
///
/// # Examples
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::Mutex;
/// use embedding_cache::tier::{
///     BoxFuture, Lookup, Namespace, Scope, Tier, TierEntry, TierError, TierKey,
/// };
///
/// /// In memory, for a test.
/// #[derive(Default)]
/// struct Map {
///     values: Mutex<HashMap<TierKey, Vec<u8>>>,
///     nonces: Mutex<HashMap<String, [u8; 16]>>,
/// }
///
/// impl Tier for Map {
///     fn get_many<'a>(&'a self, keys: &'a [TierKey]) -> BoxFuture<'a, Vec<Lookup>> {
///         let values = self.values.lock().unwrap();
///         let found = keys.iter().map(|key| match values.get(key) {
///             Some(value) => Lookup::Found(value.clone()),
///             None => Lookup::Absent,
///         });
///         let found = found.collect();
///         Box::pin(async { found })
///     }
///
///     fn set_many<'a>(
///         &'a self,
///         entries: &'a [TierEntry],
///     ) -> BoxFuture<'a, Vec<Result<(), TierError>>> {
///         let mut values = self.values.lock().unwrap();
///         values.extend(entries.iter().map(|entry| (entry.key, entry.value.clone())));
///         Box::pin(async { vec![Ok(()); entries.len()] })
///     }
///
///     fn namespace(&self) -> BoxFuture<'_, Result<Namespace, TierError>> {
///         let mut nonces = self.nonces.lock().unwrap();
///         nonces.entry(Namespace::BASE_FIELD.into()).or_insert([1; 16]); // a random number
///         let fields = nonces.iter().map(|(name, nonce)| (name.as_bytes(), &nonce[..]));
///         let namespace = Namespace::from_fields(fields).expect("there is a base");
///         Box::pin(async { Ok(namespace) })
///     }
///
///     fn invalidate(&self, scope: Scope) -> BoxFuture<'_, Result<(), TierError>> {
///         self.nonces.lock().unwrap().insert(scope.field(), [2; 16]); // another random number
///         Box::pin(async { Ok(()) })
///     }
/// }
/// ```
pub trait Tier: Send + Sync + 'static {
    /// What is stored under each of `keys`, in their order; at most 256.
    fn get_many<'a>(&'a self, keys: &'a [TierKey]) -> BoxFuture<'a, Vec<Lookup>>;

    /// Stores each of `entries`, at most 64, in place of what is there; a result for each in their
    /// order.
    fn set_many<'a>(
        &'a self,
        entries: &'a [TierEntry],
    ) -> BoxFuture<'a, Vec<Result<(), TierError>>>;

    /// The nonces as they are in the store now. A store without a base draws one at random and keeps
    /// it; of two processes that do so at once, one wins for both.
    fn namespace(&self) -> BoxFuture<'_, Result<Namespace, TierError>>;

    /// Draws the nonce of `scope` anew, at random: never from a count, which would begin again.
    fn invalidate(&self, scope: Scope) -> BoxFuture<'_, Result<(), TierError>>;

    /// Ends when another process has invalidated something, or may have without this one hearing of
    /// it (the connection was lost). The default never does: then it is noticed by polling.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Which part of the store `key` is in, of at most 256 that fail each by itself.
    fn bucket(&self, _key: &TierKey) -> u8 {
        0
    }

    /// Drops connections and builds them anew. Does not wait.
    fn reset(&self) {}
}

/// A tier that several caches of a process share, or that the process keeps a handle to.
impl<T: Tier + ?Sized> Tier for Arc<T> {
    fn get_many<'a>(&'a self, keys: &'a [TierKey]) -> BoxFuture<'a, Vec<Lookup>> {
        (**self).get_many(keys)
    }

    fn set_many<'a>(
        &'a self,
        entries: &'a [TierEntry],
    ) -> BoxFuture<'a, Vec<Result<(), TierError>>> {
        (**self).set_many(entries)
    }

    fn namespace(&self) -> BoxFuture<'_, Result<Namespace, TierError>> {
        (**self).namespace()
    }

    fn invalidate(&self, scope: Scope) -> BoxFuture<'_, Result<(), TierError>> {
        (**self).invalidate(scope)
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        (**self).changed()
    }

    fn bucket(&self, key: &TierKey) -> u8 {
        (**self).bucket(key)
    }

    fn reset(&self) {
        (**self).reset();
    }
}

/// What a tier found under a key.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// These bytes.
    Found(Vec<u8>),
    /// Nothing.
    Absent,
    /// Nobody knows.
    Failed(TierError),
}

/// What a tier is to store.
#[derive(Clone, PartialEq, Eq)]
pub struct TierEntry {
    /// Under which key.
    pub key: TierKey,
    /// The bytes.
    pub value: Vec<u8>,
    /// For how long from now; `None` is for as long as there is room.
    pub life: Option<Duration>,
}

impl fmt::Debug for TierEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TierEntry")
            .field("key", &self.key)
            .field("bytes", &self.value.len())
            .field("life", &self.life)
            .finish()
    }
}

/// Why a tier failed, as its metrics tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TierErrorKind {
    /// It did not answer in time.
    Timeout,
    /// There is no connection.
    Connection,
    /// It does not let this process in, or not do this.
    Refused,
    /// Anything else.
    Other,
}

/// A failure of a tier.
///
/// ```
/// # use embedding_cache::tier::{TierError, TierErrorKind};
/// let error = TierError::new(TierErrorKind::Connection, "connection refused");
/// assert_eq!(error.kind(), TierErrorKind::Connection);
/// assert_eq!(error.to_string(), "the second tier cannot be reached: connection refused");
/// ```
#[derive(Debug, Clone)]
pub struct TierError {
    kind: TierErrorKind,
    cause: Arc<dyn Error + Send + Sync>,
}

impl TierError {
    /// A failure of this kind. `cause` must not hold a secret: it is shown.
    pub fn new(kind: TierErrorKind, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, cause: Arc::from(cause.into()) }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> TierErrorKind {
        self.kind
    }
}

impl fmt::Display for TierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            TierErrorKind::Timeout => "did not answer in time",
            TierErrorKind::Connection => "cannot be reached",
            TierErrorKind::Refused => "refused",
            TierErrorKind::Other => "failed",
        };
        write!(f, "the second tier {what}: {}", self.cause)
    }
}

impl Error for TierError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}
