//! Connections: two for reads and one for writes to a single server, or those of a cluster; made anew
//! when the cache asks for it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClient, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::{Client, ConnectionInfo, RedisResult};

/// To whom to connect, and how.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) infos: Vec<ConnectionInfo>,
    pub(crate) is_cluster: bool,
    #[cfg(feature = "tls")]
    pub(crate) root_certificate: Option<Vec<u8>>,
    pub(crate) timeout: Duration,
}

impl Target {
    /// A client of one server, the `number`-th of those that are known.
    pub(crate) fn client(&self, number: usize) -> RedisResult<Client> {
        let info = self.infos[number % self.infos.len()].clone();
        #[cfg(feature = "tls")]
        if let Some(certificates) = self.certificates() {
            return Client::build_with_tls(info, certificates);
        }
        Client::open(info)
    }

    #[cfg(feature = "tls")]
    fn certificates(&self) -> Option<redis::TlsCertificates> {
        let root_cert = Some(self.root_certificate.clone()?);
        Some(redis::TlsCertificates { client_tls: None, root_cert })
    }

    fn connect(&self) -> RedisResult<Connected> {
        if self.is_cluster {
            let mut builder = ClusterClient::builder(self.infos.clone())
                .retries(1)
                .min_retry_wait(10)
                .max_retry_wait(50)
                .connection_timeout(self.timeout)
                .response_timeout(self.timeout)
                .overall_response_timeout(Some(self.timeout));
            if let Some(info) = self.infos.first() {
                builder = builder.tcp_settings(info.tcp_settings().clone());
            }
            #[cfg(feature = "tls")]
            if let Some(certificates) = self.certificates() {
                builder = builder.certs(certificates);
            }
            let client = builder.build()?;
            // Connects in the background: a server that is gone holds nobody up here.
            let config = ClusterConfig::new();
            return Ok(Connected::Cluster(client.get_pending_async_connection_with_config(config)));
        }
        let manager = || {
            let config = ConnectionManagerConfig::new()
                .set_number_of_retries(0)
                .set_connection_timeout(Some(self.timeout))
                .set_response_timeout(Some(self.timeout));
            ConnectionManager::new_lazy_with_config(self.client(0)?, config)
        };
        Ok(Connected::Single { reads: [manager()?, manager()?], write: manager()? })
    }
}

/// A clone is another handle to the same connections.
#[derive(Clone)]
pub(crate) enum Connected {
    Single { reads: [ConnectionManager; 2], write: ConnectionManager },
    Cluster(ClusterConnection),
}

pub(crate) struct Connections {
    pub(crate) target: Target,
    connected: Mutex<Connected>,
    /// When they were made anew last.
    renewed: Mutex<Option<Instant>>,
    /// Whose turn it is to read.
    turn: AtomicUsize,
}

/// The parts of a cluster fail one after the other, and each asks for new connections.
const SHORTEST_LIFE: Duration = Duration::from_millis(500);

impl Connections {
    pub(crate) fn new(target: Target) -> RedisResult<Self> {
        // Rustls takes the process's provider; where that has none yet, it gets one.
        #[cfg(feature = "tls")]
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connected = Mutex::new(target.connect()?);
        Ok(Self { target, connected, renewed: Mutex::default(), turn: AtomicUsize::new(0) })
    }

    pub(crate) fn get(&self) -> Connected {
        // Nothing panics while it is held.
        self.connected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of the connection to read from.
    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Relaxed) % 2
    }

    /// Makes all of them anew. What is under way on the old ones ends on them.
    pub(crate) fn renew(&self) {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed.is_some_and(|at| at.elapsed() < SHORTEST_LIFE) {
            return;
        }
        *renewed = Some(Instant::now());
        // It could be made before, so it can be now; if not, the old ones stay.
        if let Ok(new) = self.target.connect() {
            let old = std::mem::replace(
                &mut *self.connected.lock().unwrap_or_else(PoisonError::into_inner),
                new,
            );
            drop(old);
        }
    }
}
