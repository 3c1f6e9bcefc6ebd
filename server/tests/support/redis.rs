//! Redis servers on free ports, ended by the test that began them. Where there is none, tests fail:
//! `.ci/steps/65-server.sh` installs it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub struct Redis {
    child: Child,
    pub port: u16,
    arguments: Vec<String>,
    folder: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        // Another program may take the port before the server does.
        for _ in 0..20 {
            let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
            let child = launch(port, &folder, &arguments);
            let mut redis = Self { child, port, arguments: arguments.clone(), folder };
            if redis.is_up() {
                return redis;
            }
        }
        panic!("redis-server does not start")
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The first bytes of its answer to a command.
    pub fn command(&self, words: &[&str]) -> Option<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes += &format!("${}\r\n{word}\r\n", word.len());
        }
        stream.write_all(bytes.as_bytes()).ok()?;
        let mut answer = vec![0; 1 << 16];
        let read = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..read]).into_owned())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same server after a kill, without its data.
    pub fn restart(&mut self) {
        self.child = launch(self.port, &self.folder, &self.arguments);
        assert!(self.is_up(), "redis-server does not start again");
    }

    /// Stops it where it stands: connections stay open, and nothing comes.
    pub fn freeze(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-STOP", &id]).status().unwrap().success());
    }

    /// Waits until it answers; `false` if it has ended.
    fn is_up(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(20) {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            // One that asks for a password answers too.
            if self.command(&["PING"]).is_some_and(|answer| answer.starts_with(['+', '-'])) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(port: u16, folder: &TempDir, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(folder.path())
        .args(["--appendonly", "no", "--loglevel", "warning"])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is needed: bash .ci/run 65 installs it")
}

/// A port that is free, as is the one of the bus of a cluster, 10,000 above.
pub fn free_port() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..1000 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let low = 20_000 + port % 25_000;
        if free(low) && free(low + 10_000) {
            return low;
        }
    }
    panic!("no port is free")
}

/// Three nodes that are a cluster.
pub fn cluster() -> Vec<Redis> {
    let arguments = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"];
    let nodes: Vec<Redis> = (0..3).map(|_| Redis::start_with(&arguments)).collect();
    let created = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)))
        .arg("--cluster-yes")
        .output()
        .expect("redis-cli is needed: bash .ci/run 65 installs it");
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
    let began = Instant::now();
    let is_whole = |node: &Redis| {
        let info = node.command(&["CLUSTER", "INFO"]).unwrap_or_default();
        info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
    };
    while !nodes.iter().all(is_whole) {
        assert!(began.elapsed() < Duration::from_secs(60), "the cluster does not form");
        std::thread::sleep(Duration::from_millis(50));
    }
    nodes
}
