//! Real servers, on free ports and in temporary folders, ended by the test that began them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use embedding_cache::tier::SecondTier;
use embedding_cache::{CacheKey, EmbeddingCache};
use embedding_cache_redis::RedisTier;
use tempfile::TempDir;

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Redis,
    Valkey,
}

pub(crate) const ENGINES: [Engine; 2] = [Engine::Redis, Engine::Valkey];

impl Engine {
    fn program(self) -> PathBuf {
        let (variable, name) = match self {
            Self::Redis => ("REDIS_SERVER", "redis-server"),
            Self::Valkey => ("VALKEY_SERVER", "valkey-server"),
        };
        if let Some(path) = std::env::var_os(variable) {
            return path.into();
        }
        let in_path = std::env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = std::env::split_paths(&in_path).collect();
        // Where the step of the checks puts it.
        places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/valkey"));
        let found = places.into_iter().map(|place| place.join(name)).find(|path| path.is_file());
        found.unwrap_or_else(|| {
            panic!("no {name}: set {variable}, or run .ci/run 67, which installs it")
        })
    }
}

/// A server. Killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    engine: Engine,
    arguments: Vec<String>,
    folder: TempDir,
}

impl Server {
    pub(crate) fn start(engine: Engine) -> Self {
        Self::start_with(engine, &[])
    }

    pub(crate) fn start_with(engine: Engine, arguments: &[&str]) -> Self {
        let arguments: Vec<String> =
            arguments.iter().map(|&argument| argument.to_owned()).collect();
        // Another program may take the port before the server does.
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let port = free_port();
            let child = launch(engine, port, folder.path(), &arguments);
            let mut server = Self { child, port, engine, arguments: arguments.clone(), folder };
            if server.is_up() {
                return server;
            }
        }
        panic!("{engine:?} does not start")
    }

    /// Waits until it answers; `false` if it has ended.
    fn is_up(&mut self) -> bool {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            // A server that asks for a password answers as well.
            if self.command(&["PING"]).is_some_and(|answer| answer.starts_with(['+', '-'])) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// What it answers to a command, at most a second later; the first line or so.
    pub(crate) fn command(&self, words: &[&str]) -> Option<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes += &format!("${}\r\n{word}\r\n", word.len());
        }
        stream.write_all(bytes.as_bytes()).ok()?;
        let mut answer = vec![0; 1 << 16];
        let read = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..read]).into_owned())
    }

    pub(crate) fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn signal(&self, signal: &str) {
        let status =
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Stops it where it stands: connections stay open, and nothing comes.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Ends it as an operator would.
    pub(crate) fn stop(&mut self) {
        self.command(&["SHUTDOWN", "NOSAVE"]);
        self.child.wait().unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// After a kill: the same server, without its data.
    pub(crate) fn restart(&mut self) {
        self.child = launch(self.engine, self.port, self.folder.path(), &self.arguments);
        assert!(self.is_up(), "it does not start again");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Also of one that is frozen.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(engine: Engine, port: u16, folder: &Path, arguments: &[String]) -> Child {
    Command::new(engine.program())
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(folder)
        .args(["--appendonly", "no", "--loglevel", "warning"])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A port that is free, as is the one of the bus of a cluster, 10,000 above.
fn free_port() -> u16 {
    for _ in 0..1000 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let low = 20_000 + port % 25_000;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(low) && free(low + 10_000) {
            return low;
        }
    }
    panic!("no port is free")
}

/// Three primaries with a replica each.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
}

impl Cluster {
    pub(crate) fn start(engine: Engine) -> Self {
        let arguments = [
            "--cluster-enabled",
            "yes",
            "--cluster-config-file",
            "nodes.conf",
            "--cluster-node-timeout",
            "1000",
        ];
        let servers: Vec<Server> = (0..6).map(|_| Server::start_with(engine, &arguments)).collect();
        let created = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(servers.iter().map(|server| format!("127.0.0.1:{}", server.port)))
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .expect("redis-cli is needed for this test");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
        let cluster = Self { servers };
        let started = Instant::now();
        while !cluster.is_whole() {
            assert!(started.elapsed() < Duration::from_secs(30), "the cluster does not form");
            std::thread::sleep(Duration::from_millis(50));
        }
        cluster
    }

    /// Whether every server knows that all slots are served, and all replicas have their primary.
    fn is_whole(&self) -> bool {
        self.servers.iter().all(|server| {
            let info = server.command(&["CLUSTER", "INFO"]).unwrap_or_default();
            let role = server.command(&["INFO", "replication"]).unwrap_or_default();
            info.contains("cluster_state:ok")
                && (role.contains("role:master") && role.contains("connected_slaves:1")
                    || role.contains("master_link_status:up"))
        })
    }

    /// The places of the servers that are primaries.
    pub(crate) fn primaries(&self) -> Vec<usize> {
        let is_primary = |server: &Server| {
            server
                .command(&["INFO", "replication"])
                .is_some_and(|role| role.contains("role:master"))
        };
        (0..6).filter(|&place| is_primary(&self.servers[place])).collect()
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(Server::address).collect()
    }
}

/// Accepts connections and never answers.
pub(crate) struct BlackHole {
    pub(crate) address: String,
}

/// Does not even accept them: packets to it are dropped.
pub(crate) struct Dropping {
    pub(crate) address: String,
    /// Those that fill its queue.
    _waiting: Vec<TcpStream>,
    _listener: TcpListener,
}

impl Dropping {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Duration::from_millis(300);
        let mut waiting = Vec::new();
        // The queue of those who are not accepted has a few hundred or thousand places.
        while let Ok(stream) = TcpStream::connect_timeout(&address, patience) {
            waiting.push(stream);
            assert!(waiting.len() < 20_000, "the queue has no end");
        }
        Self { address: format!("redis://{address}"), _waiting: waiting, _listener: listener }
    }
}

impl BlackHole {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("redis://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let connections: Vec<_> = listener.incoming().take(1000).collect();
            drop(connections);
        });
        Self { address }
    }
}

/// A process: a cache of its own.
pub(crate) fn process(tier: RedisTier) -> EmbeddingCache {
    process_with(SecondTier::new(tier))
}

pub(crate) fn process_with(tier: SecondTier) -> EmbeddingCache {
    EmbeddingCache::builder().max_entries(100_000).tier(tier).build().unwrap()
}

/// A process that waits for answers longer than a busy machine needs: for what is there, not when.
pub(crate) fn patient(tier: RedisTier) -> EmbeddingCache {
    process_with(waiting(tier))
}

pub(crate) fn waiting(tier: RedisTier) -> SecondTier {
    SecondTier::new(tier)
        .soft_deadline(Duration::from_secs(5))
        .hard_timeout(Duration::from_secs(10))
}

pub(crate) fn key(number: usize) -> CacheKey {
    CacheKey::for_model("e5-base").revision("1").text(&number.to_string())
}

pub(crate) fn keys(numbers: std::ops::Range<usize>) -> Vec<CacheKey> {
    numbers.map(key).collect()
}

pub(crate) fn vector(number: usize) -> Vec<f32> {
    (0..64).map(|i| (number * 7 + i) as f32).collect()
}

/// The model, and how often it was asked for a text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model(Arc<AtomicUsize>);

impl Model {
    pub(crate) fn asked(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Embeds keys `numbers`, verifies each vector, and says how long it took.
    pub(crate) async fn embed(
        &self,
        cache: &EmbeddingCache,
        numbers: std::ops::Range<usize>,
    ) -> Duration {
        let (keys, from) = (keys(numbers.clone()), numbers.start);
        let started = Instant::now();
        let answers = cache
            .get_or_embed_many(&keys, |missing| {
                self.0.fetch_add(missing.len(), Relaxed);
                let numbers: Vec<usize> =
                    missing.positions().iter().map(|position| from + position).collect();
                async move { numbers.into_iter().map(vector).collect::<Vec<_>>() }
            })
            .await;
        let took = started.elapsed();
        for (number, answer) in numbers.zip(answers) {
            assert_eq!(answer.expect("no request fails"), vector(number));
        }
        took
    }
}

/// Writes what is queued.
pub(crate) async fn flush(cache: &EmbeddingCache) {
    assert_eq!(cache.tier_flush(Duration::from_secs(20)).await, 0);
}
