//! What the tests share: a server on a free port, a client, and an upstream that misbehaves.

// Each test binary uses a part of this.
#![allow(dead_code, unreachable_pub)]

pub mod redis;
pub mod upstream;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser as _;
use embedding_cache_server::{Options, Server};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const MODEL: &str = "hashed-ngrams-768@1";

/// A server in this process, over a real socket.
pub struct Running {
    pub address: SocketAddr,
    pub client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// An answer: status, headers, JSON.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub json: Value,
}

impl Reply {
    /// Asserts the status and that the body is an error as OpenAI's clients expect it.
    #[track_caller]
    pub fn is_error(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{self:?}");
        let error = self.json["error"].as_object().unwrap_or_else(|| panic!("{self:?}"));
        let mut names: Vec<&str> = error.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["code", "message", "param", "type"]);
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        assert!(error["type"].is_string(), "{self:?}");
        self
    }

    #[track_caller]
    pub fn says(&self, words: &str) -> &Self {
        let message = self.json["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{words:?} is not in {message:?}");
        self
    }

    #[track_caller]
    pub fn vectors(&self) -> Vec<Vec<f32>> {
        assert_eq!(self.status, 200, "{self:?}");
        let data = self.json["data"].as_array().unwrap();
        data.iter()
            .enumerate()
            .map(|(place, item)| {
                assert_eq!(item["index"], place);
                assert_eq!(item["object"], "embedding");
                let list = item["embedding"].as_array().unwrap();
                list.iter().map(|x| x.to_string().parse().unwrap()).collect()
            })
            .collect()
    }
}

impl Running {
    /// Starts a server with these arguments beside the free port.
    pub async fn start(arguments: &[&str]) -> Self {
        let fixed = ["embedding-cache-server", "--listen", "127.0.0.1:0"];
        let options = Options::try_parse_from(fixed.iter().chain(arguments)).unwrap();
        let server = Server::bind(options).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(async move { drop(stopped.await) }));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, client, stop: Some(stop), task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks for embeddings with this body.
    pub async fn embed(&self, body: &Value) -> Reply {
        self.post(body.to_string()).await
    }

    pub async fn post(&self, body: impl Into<reqwest::Body>) -> Reply {
        let request = self.client.post(self.url("/v1/embeddings"));
        self.send(request.header("content-type", "application/json").body(body)).await
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Reply {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}"));
        Reply { status, headers, json }
    }

    pub async fn stats(&self) -> Value {
        self.send(self.client.get(self.url("/stats"))).await.json
    }

    /// Waits until the statistics fulfil `condition`, and fails after some seconds.
    #[track_caller]
    pub fn until<'a>(
        &'a self,
        condition: impl Fn(&Value) -> bool + 'a,
    ) -> impl Future<Output = Value> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            for _ in 0..500 {
                let stats = self.stats().await;
                if condition(&stats) {
                    return stats;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("{caller}: not reached: {}", self.stats().await);
        }
    }

    /// A connection of its own, which has sent these bytes.
    pub async fn raw(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    pub fn tell_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits for the end of a server that was told to stop.
    pub async fn ended(self) {
        self.task.await.unwrap();
    }
}

/// Asks the built-in model.
pub fn ask(input: impl Into<Value>) -> Value {
    serde_json::json!({ "model": MODEL, "input": input.into() })
}

/// A request for embeddings as bytes.
pub fn request(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// All that comes until the other end closes or resets, for some seconds at most.
pub async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let reading = async {
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(20), reading).await;
    String::from_utf8_lossy(&bytes).into_owned()
}
