//! What outlives a server or is shared by several: Redis and snapshots. With real Redis servers.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::redis::{Redis, cluster};
use crate::support::upstream::{Mode, Upstream};
use crate::support::{Reply, Running};

/// Longer than a busy machine takes; the default is for an idle one.
const PATIENT: [&str; 2] = ["--tier-deadline", "5s"];

fn questions() -> Vec<Value> {
    let texts: Vec<String> = (0..100).map(|i| format!("text {i}")).collect();
    vec![
        json!({"model": "m", "input": texts}),
        json!({"model": "m", "input": "one", "dimensions": 3}),
        json!({"model": "m", "input": [[1, 2, 3], [4]]}),
        json!({"model": "n", "input": ["one", "two"], "encoding_format": "base64"}),
    ]
}

/// Inputs of all questions: so many vectors are stored.
const INPUTS: u64 = 100 + 1 + 2 + 2;

async fn ask_all(server: &Running) -> Vec<Reply> {
    let mut replies = Vec::new();
    for question in questions() {
        let reply = server.embed(&question).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        replies.push(reply);
    }
    replies
}

/// The same answers as before, and no call of the model for them.
async fn answers_the_same(server: &Running, upstream: &Upstream, before: &[Reply]) {
    let calls = upstream.calls();
    for (reply, before) in ask_all(server).await.iter().zip(before) {
        assert_eq!(reply.json["data"], before.json["data"]);
        assert_eq!(reply.headers["x-cache"], "hit");
    }
    assert_eq!(upstream.calls(), calls);
}

async fn start(upstream: &Upstream, redis: &str, more: &[&str]) -> Running {
    let url = upstream.url();
    Running::start(&[&["--upstream", &url, "--redis", redis], &PATIENT[..], more].concat()).await
}

#[tokio::test]
async fn a_second_server_and_a_restarted_one_on_the_same_redis_ask_the_model_for_nothing() {
    let (upstream, redis) = (Upstream::start(Mode::Good).await, Redis::start());
    let mut first = start(&upstream, &redis.url(), &[]).await;
    let answers = ask_all(&first).await;
    first.until(|stats| stats["tier"]["writes"] == INPUTS).await;
    let second = start(&upstream, &redis.url(), &[]).await;
    answers_the_same(&second, &upstream, &answers).await;
    let stats = second.stats().await;
    assert_eq!(stats["tier"]["hits"], INPUTS, "{stats}");
    assert_eq!(stats["tier"]["breakers_open"], 0);
    assert_eq!(stats["model"]["calls"], 0);
    // The next time from memory.
    answers_the_same(&second, &upstream, &answers).await;
    assert_eq!(second.stats().await["tier"]["hits"], INPUTS);
    // What is asked for right before the end is written before the end.
    let late = first.embed(&json!({"model": "m", "input": "late"})).await;
    first.tell_to_stop();
    first.ended().await;
    let restarted = start(&upstream, &redis.url(), &[]).await;
    answers_the_same(&restarted, &upstream, &answers).await;
    let calls = upstream.calls();
    let again = restarted.embed(&json!({"model": "m", "input": "late"})).await;
    assert_eq!((again.vectors(), upstream.calls()), (late.vectors(), calls));
    // Another prefix shares nothing.
    let apart = start(&upstream, &redis.url(), &["--redis-prefix", "other"]).await;
    ask_all(&apart).await;
    assert_eq!(apart.stats().await["tier"]["hits"], 0);
}

#[tokio::test]
async fn a_cluster_is_shared_and_survives_a_restart() {
    let (upstream, nodes) = (Upstream::start(Mode::Good).await, cluster());
    let urls: Vec<String> = nodes.iter().map(Redis::url).collect();
    let first = start(&upstream, &urls.join(","), &[]).await;
    let answers = ask_all(&first).await;
    first.until(|stats| stats["tier"]["writes"] == INPUTS).await;
    // Two of its nodes are enough to find the others.
    let second = start(&upstream, &urls[1..].join(","), &[]).await;
    answers_the_same(&second, &upstream, &answers).await;
}

#[tokio::test]
async fn tls_is_checked_against_the_authority_that_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("certificate"), path("key"));
    let names = path("names");
    let parts = "[req]\ndistinguished_name=n\nx509_extensions=e\n[n]\n[e]\n\
                 subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    std::fs::write(&names, parts).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=redis"])
        .args(["-config", &names, "-keyout", &key, "-out", &certificate])
        .output()
        .expect("openssl is needed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = crate::support::redis::free_port().to_string();
    let _redis = Redis::start_with(
        &[
            &["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key][..],
            &["--tls-ca-cert-file", &certificate, "--tls-auth-clients", "no"],
        ]
        .concat(),
    );
    let upstream = Upstream::start(Mode::Good).await;
    let url = format!("rediss://127.0.0.1:{port}");
    let first = start(&upstream, &url, &["--redis-ca", &certificate]).await;
    let answers = ask_all(&first).await;
    first.until(|stats| stats["tier"]["writes"] == INPUTS).await;
    let second = start(&upstream, &url, &["--redis-ca", &certificate]).await;
    answers_the_same(&second, &upstream, &answers).await;
    // The web does not trust it: no vector comes from there, and requests are served all the same.
    let distrusting = start(&upstream, &url, &[]).await;
    ask_all(&distrusting).await;
    assert_eq!(distrusting.stats().await["tier"]["hits"], 0);
}

#[tokio::test]
async fn a_redis_that_dies_or_freezes_fails_no_request_and_is_found_again() {
    let (upstream, mut redis) = (Upstream::start(Mode::Good).await, Redis::start());
    let url = upstream.url();
    // The usual deadline: a frozen Redis is to cost each request no more than that.
    let server = Running::start(&["--upstream", &url, "--redis", &redis.url()]).await;
    ask_all(&server).await;
    let mut number = 0;
    let mut ask_until = async |condition: &dyn Fn(&Value) -> bool| {
        let began = Instant::now();
        loop {
            number += 1;
            let question = json!({"model": "m", "input": format!("more {number}")});
            assert_eq!(server.embed(&question).await.status, 200);
            let stats = server.stats().await;
            if condition(&stats["tier"]) {
                return stats;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{stats}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    for frozen in [false, true] {
        if frozen {
            redis.freeze();
        } else {
            redis.kill();
        }
        let stats = ask_until(&|tier| tier["breakers_open"] == 1).await;
        let failed = stats["tier"]["failures"].as_u64().unwrap();
        assert!(failed > 0 || stats["tier"]["late"].as_u64().unwrap() > 0, "{stats}");
        // Left alone, it is not asked.
        ask_until(&|tier| tier["skipped"].as_u64().unwrap() > 0).await;
        if frozen {
            redis.kill();
        }
        redis.restart();
        ask_until(&|tier| tier["breakers_open"] == 0).await;
    }
    assert!(server.stats().await["tier"]["breaker_openings"].as_u64().unwrap() >= 2);
}

#[tokio::test]
async fn a_server_starts_without_its_redis_and_uses_it_once_it_is_there() {
    let (upstream, mut redis) = (Upstream::start(Mode::Good).await, Redis::start());
    redis.kill();
    let server = start(&upstream, &redis.url(), &[]).await;
    ask_all(&server).await;
    redis.restart();
    let began = Instant::now();
    let mut number = 0;
    while server.stats().await["tier"]["writes"] == 0 {
        assert!(began.elapsed() < Duration::from_secs(60));
        number += 1;
        server.embed(&json!({"model": "m", "input": format!("more {number}")})).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_model_is_removed_from_every_server_and_from_redis() {
    let (upstream, mut redis) = (Upstream::start(Mode::Good).await, Redis::start());
    let servers =
        [start(&upstream, &redis.url(), &[]).await, start(&upstream, &redis.url(), &[]).await];
    ask_all(&servers[0]).await;
    servers[0].until(|stats| stats["tier"]["writes"] == INPUTS).await;
    ask_all(&servers[1]).await;
    let remove = async |server: &Running, model: &str| {
        let url = server.url(&format!("/cache?model={model}"));
        server.send(server.client.delete(url)).await
    };
    let reply = remove(&servers[1], "m").await;
    assert_eq!((reply.status, &reply.json["removed"]), (200, &json!(103)));
    // The other hears of it, and the vectors of the other model stay.
    servers[0].until(|stats| stats["cache"]["entries"] == 2).await;
    let calls = upstream.calls();
    ask_all(&servers[0]).await;
    assert_eq!(servers[0].stats().await["tier"]["hits"], 0);
    assert!(upstream.calls() >= calls + 3);
    // Where Redis cannot be told, that is an error: the vectors would come back.
    redis.kill();
    let reply = remove(&servers[0], "m").await;
    reply.is_error(503).says("try again");
    assert_eq!(reply.json["error"]["code"], "tier_failed");
    assert!(reply.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_vector_that_is_not_signed_with_the_secret_is_not_believed() {
    let (upstream, redis) = (Upstream::start(Mode::Good).await, Redis::start());
    let secret = "0123456789abcdef";
    let first = start(&upstream, &redis.url(), &["--redis-secret", secret]).await;
    let answers = ask_all(&first).await;
    first.until(|stats| stats["tier"]["writes"] == INPUTS).await;
    let second = start(&upstream, &redis.url(), &["--redis-secret", secret]).await;
    answers_the_same(&second, &upstream, &answers).await;
    let other = start(&upstream, &redis.url(), &["--redis-secret", "another-0123456789"]).await;
    ask_all(&other).await;
    let stats = other.stats().await;
    assert_eq!((&stats["tier"]["hits"], &stats["tier"]["rejected"]), (&json!(0), &json!(INPUTS)));
}

#[tokio::test]
async fn a_restart_with_a_snapshot_asks_the_model_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.snapshot").to_str().unwrap().to_owned();
    let upstream = Upstream::start(Mode::Good).await;
    let url = upstream.url();
    let arguments = ["--upstream", &url, "--snapshot", &path];
    let mut first = Running::start(&arguments).await;
    let answers = ask_all(&first).await;
    let stats = first.stats().await;
    assert_eq!((&stats["snapshot"]["saves"], &stats["tier"]), (&json!(0), &Value::Null));
    first.tell_to_stop();
    first.ended().await;
    let second = Running::start(&arguments).await;
    second.until(|stats| stats["snapshot"]["loading"] == false).await;
    answers_the_same(&second, &upstream, &answers).await;
    assert_eq!(second.stats().await["snapshot"]["loaded_entries"], INPUTS);
}

/// The program itself, for what it does when it is killed. Ended when dropped.
struct Program(Child, String);

impl Program {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        // A log that nobody reads would hold it up.
        Self::start_with(arguments, environment, Stdio::null())
    }

    fn start_with(arguments: &[&str], environment: &[(&str, &str)], log: Stdio) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_embedding-cache-server"))
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let base = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        Self(child, base)
    }

    async fn stats(&self, client: &reqwest::Client) -> Value {
        let text = client.get(format!("{}/stats", self.1)).send().await.unwrap().text().await;
        serde_json::from_str(&text.unwrap()).unwrap()
    }

    async fn embed(&self, client: &reqwest::Client, question: &Value) -> Value {
        let post = client.post(format!("{}/v1/embeddings", self.1));
        let post = post.header("content-type", "application/json").body(question.to_string());
        serde_json::from_str(&post.send().await.unwrap().text().await.unwrap()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_server_that_is_killed_comes_back_with_what_was_saved_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.snapshot").to_str().unwrap().to_owned();
    let upstream = Upstream::start(Mode::Good).await;
    let url = upstream.url();
    let environment = [
        ("EMBEDDING_CACHE_SERVER_UPSTREAM", url.as_str()),
        ("EMBEDDING_CACHE_SERVER_SNAPSHOT", &path),
        ("EMBEDDING_CACHE_SERVER_SNAPSHOT_EVERY", "100ms"),
    ];
    // Whatever proxy the environment names is not for these.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut before = Vec::new();
    for killed in [false, true] {
        let server = Program::start(&[], &environment);
        let until = async |condition: &dyn Fn(&Value) -> bool| {
            let began = Instant::now();
            while !condition(&server.stats(&client).await["snapshot"]) {
                assert!(began.elapsed() < Duration::from_secs(30));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        until(&|snapshot| snapshot["loading"] == false).await;
        let calls = upstream.calls();
        let mut answers = Vec::new();
        for question in questions() {
            answers.push(server.embed(&client, &question).await["data"].clone());
        }
        if killed {
            assert_eq!((&answers, upstream.calls()), (&before, calls));
        }
        before = answers;
        until(&|snapshot| snapshot["saved_entries"] == INPUTS).await;
        drop(server);
    }
}

#[tokio::test]
async fn a_server_that_is_stopped_or_killed_finds_its_vectors_in_its_directory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vectors").to_str().unwrap().to_owned();
    let upstream = Upstream::start(Mode::Good).await;
    let url = upstream.url();
    let arguments = [&["--upstream", &url, "--disk", &path], &PATIENT[..]].concat();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut before: Option<Vec<Value>> = None;
    for kill in [true, false, true] {
        let mut server = Program::start(&arguments, &[]);
        let calls = upstream.calls();
        let mut answers = Vec::new();
        for question in questions() {
            answers.push(server.embed(&client, &question).await["data"].clone());
        }
        let stats = server.stats(&client).await;
        if let Some(before) = &before {
            assert_eq!((&answers, upstream.calls()), (before, calls), "{stats}");
            assert_eq!(stats["tier"]["hits"], INPUTS);
        }
        // Another server is told that it is taken, and who has it.
        let (code, text) = run(&arguments, &[]);
        assert!(code == Some(2) && text.contains("--disk") && text.contains(&path), "{text}");
        let began = Instant::now();
        while before.is_none() && server.stats(&client).await["tier"]["writes"] != INPUTS {
            assert!(began.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        before = Some(answers);
        if !kill {
            let id = server.0.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
            assert!(server.0.wait().unwrap().success());
        }
    }
}

#[tokio::test]
async fn a_model_that_was_removed_does_not_come_back_from_the_snapshot_of_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.snapshot").to_str().unwrap().to_owned();
    let upstream = Upstream::start(Mode::Good).await;
    let url = upstream.url();
    let arguments = ["--upstream", &url, "--snapshot", &path];
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut first = Running::start(&arguments).await;
    ask_all(&first).await;
    first.tell_to_stop();
    first.ended().await;
    let killed = Program::start(&arguments, &[]);
    let began = Instant::now();
    while killed.stats(&client).await["snapshot"]["loading"] == true {
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    let removed = client.delete(format!("{}/cache?model=m", killed.1)).send().await.unwrap();
    assert!(removed.text().await.unwrap().contains("\"removed\":103"));
    drop(killed);
    let last = Running::start(&arguments).await;
    last.until(|stats| stats["snapshot"]["loading"] == false).await;
    assert_eq!(last.stats().await["cache"]["entries"], 2);
    // Where it cannot be saved, that is said.
    drop(folder);
    let reply = last.send(last.client.delete(last.url("/cache?model=n"))).await;
    reply.is_error(503).says("snapshot");
}

/// Runs the program to its end and says how that was, with all that it wrote.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embedding-cache-server"));
    command.args(["--listen", "127.0.0.1:0"]).args(arguments).envs(environment.iter().copied());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn what_cannot_be_used_is_named_before_anything_listens_and_without_the_password() {
    let redis = Redis::start_with(&["--requirepass", "right"]);
    let plain = Redis::start();
    let at = |user: &str| format!("redis://{user}@127.0.0.1:{}", redis.port);
    let (refused, named, none) = (at(":s3cr3t"), at("name:s3cr3t"), redis.url());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (other, missing, directory) = (path("other"), path("no/folder"), path(""));
    std::fs::write(&other, "not a snapshot").unwrap();
    let url = plain.url();
    for (arguments, words) in [
        (&["--redis", &refused][..], &["--redis", "127.0.0.1"][..]),
        (&["--redis", &named], &["--redis", "127.0.0.1"]),
        (&["--redis", &none], &["--redis", "127.0.0.1"]),
        (&["--redis", "http://:s3cr3t@h"], &["--redis", "http://h"]),
        (&["--redis", "redis://:s3cr3t@h:port"], &["--redis"]),
        (&["--redis", "redis://:s3cr3t@h:1,gopher://:s3cr3t@h"], &["--redis", "gopher://h"]),
        (&["--redis", ""], &["--redis"]),
        (&["--redis", &url, "--redis-prefix", "a{b}"], &["--redis-prefix", "a{b}"]),
        (&["--redis", &url, "--redis-ca", &missing], &["--redis-ca", "no/folder"]),
        (&["--redis", &url, "--redis-secret", "s3cr3t"], &["--redis-secret", "16"]),
        (&["--redis-secret", "s3cr3t-s3cr3t-s3cr3t"], &["--redis-secret", "--redis"]),
        (&["--redis-ca", &other], &["--redis-ca", "--redis"]),
        (&["--redis", &url, "--disk", &directory], &["--disk", "--redis"]),
        (&["--disk", &other], &["--disk", "other"]),
        (&["--disk", &directory, "--disk-mb", "511"], &["--disk-mb", "511"]),
        (&["--disk", &directory, "--no-cache"], &["--disk", "--no-cache"]),
        (&["--redis", &url, "--no-cache"], &["--redis", "--no-cache"]),
        (&["--snapshot", &other, "--no-cache"], &["--snapshot", "--no-cache"]),
        (&["--snapshot", &other], &["--snapshot", "other"]),
        (&["--snapshot", &missing], &["--snapshot", "no/folder"]),
        (&["--snapshot", &directory], &["--snapshot"]),
        (&["--snapshot-every", "often"], &["--snapshot-every"]),
    ] {
        let (code, text) = run(arguments, &[]);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{arguments:?}: {word:?} is not in {text}");
        }
        assert!(!text.contains("s3cr3t") && !text.contains("listening"), "{arguments:?}: {text}");
    }
    assert_eq!(std::fs::read(Path::new(&other)).unwrap(), b"not a snapshot");
    // And from the environment, whose values no help shows.
    let environment = [
        ("EMBEDDING_CACHE_SERVER_REDIS", refused.as_str()),
        ("EMBEDDING_CACHE_SERVER_REDIS_SECRET", "s3cr3t"),
    ];
    for (arguments, code) in [(&[][..], 2), (&["--help"], 0)] {
        let (ended, text) = run(arguments, &environment);
        assert!(ended == Some(code) && !text.contains("s3cr3t"), "{text}");
    }
}

#[tokio::test]
async fn the_password_of_redis_is_shown_nowhere() {
    let mut redis = Redis::start_with(&["--requirepass", "s3cr3t"]);
    let url = format!("redis://:s3cr3t@127.0.0.1:{}", redis.port);
    let arguments = ["--redis", &url, "--redis-secret", "s3cr3t-0123456789"];
    let mut server = Program::start_with(&arguments, &[("RUST_LOG", "trace")], Stdio::piped());
    let mut log = server.0.stderr.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut log, &mut text).map(|_| text)
    });
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let question = |i: usize| json!({"model": "hashed-ngrams-768@1", "input": format!("{i}")});
    server.embed(&client, &question(0)).await;
    redis.kill();
    for i in 1..6 {
        server.embed(&client, &question(i)).await;
    }
    let mut seen = String::new();
    for path in ["/", "/stats", "/metrics", "/health", "/ready"] {
        let url = format!("{}{path}", server.1);
        seen += &client.get(url).send().await.unwrap().text().await.unwrap();
    }
    drop(server);
    seen += &log.join().unwrap().unwrap();
    assert!(seen.contains("embedding_cache_tier_hits_total"), "{seen}");
    assert!(!seen.contains("s3cr3t"), "it is shown");
}
