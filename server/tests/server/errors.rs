//! What fails for good, and what the client is told of it; and what a message must not tell.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::Running;
use crate::support::upstream::{Fault, Mode, Upstream};

fn ask(input: impl Into<Value>) -> Value {
    json!({"model": "m", "input": input.into()})
}

async fn pair(mode: Mode, arguments: &[&str]) -> (Upstream, Running) {
    let upstream = Upstream::start(mode).await;
    let url = upstream.url();
    let fixed = ["--upstream", url.as_str(), "--upstream-retries", "0"];
    let server = Running::start(&[&fixed[..], arguments].concat()).await;
    (upstream, server)
}

#[tokio::test]
async fn what_will_not_get_better_is_not_to_be_tried_again() {
    // OpenAI's clients try again after 408, 409, 429 and every 5xx, unless a header says not to.
    for (mode, status, code) in [
        (Mode::WrongDimensions, 422, "wrong_dimensions"),
        (Mode::Status(401, None), 502, "upstream_unauthorized"),
        (Mode::Status(403, None), 502, "upstream_unauthorized"),
        (Mode::Status(301, None), 502, "upstream_invalid_answer"),
        (Mode::NoJson, 502, "upstream_invalid_answer"),
        (Mode::Bad(Fault::LeftOut), 502, "upstream_invalid_answer"),
        (Mode::NanBase64, 502, "upstream_invalid_answer"),
    ] {
        for cache in [&[][..], &["--no-cache"]] {
            let (upstream, server) =
                pair(mode.clone(), &[cache, &["--model", "m=4"]].concat()).await;
            let reply = server.embed(&ask("bad")).await;
            reply.is_error(status);
            assert_eq!(reply.json["error"]["code"], code, "{mode:?}");
            assert!(!reply.headers.contains_key("retry-after"), "{mode:?}");
            if status >= 500 {
                assert_eq!(reply.headers["x-should-retry"], "false", "{mode:?}");
            }
            assert_eq!(upstream.calls(), 1, "{mode:?}");
        }
    }
    // What may get better says nothing of the kind.
    for mode in [Mode::Status(500, None), Mode::Status(503, None), Mode::Status(429, None)] {
        let (_upstream, server) = pair(mode.clone(), &[]).await;
        let reply = server.embed(&ask("a")).await;
        assert!(!reply.headers.contains_key("x-should-retry"), "{mode:?}");
    }
}

#[tokio::test]
async fn a_dimension_that_is_configured_wrong_says_what_to_change() {
    let (_upstream, server) = pair(Mode::WrongDimensions, &["--model", "m=4"]).await;
    server.embed(&ask("a")).await.is_error(422).says("--model");
    let asked = json!({"model": "m", "input": "a", "dimensions": 2});
    server.embed(&asked).await.is_error(422).says("\"dimensions\"");
}

#[tokio::test]
async fn a_clients_own_key_that_is_refused_is_the_clients_affair() {
    for (status, kind) in [(401, "authentication_error"), (403, "permission_error")] {
        let mode = Mode::Status(status, None);
        let (upstream, server) = pair(mode, &["--forward-authorization"]).await;
        let post = || {
            let request = server.client.post(server.url("/v1/embeddings"));
            request.header("content-type", "application/json").body(ask("a").to_string())
        };
        let reply = server.send(post().bearer_auth("mine")).await;
        reply.is_error(status);
        assert_eq!(reply.json["error"]["type"], kind);
        assert_eq!(upstream.asked()[0].1["authorization"], "Bearer mine");
        // Without one it was this server's.
        server.send(post()).await.is_error(502);
    }
}

#[tokio::test]
async fn an_error_with_status_200_is_passed_on() {
    let (_upstream, server) = pair(Mode::Bad(Fault::ErrorObject), &[]).await;
    server.embed(&ask("bad")).await.is_error(502).says("told to fail");
}

/// Runs the program and says how it ended, with all that it wrote.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embedding-cache-server"));
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

const SECRET: &str = "s3cr3t";

#[test]
fn a_wrong_option_is_named_and_ends_the_program_with_2_and_no_secret() {
    let user = "http://user:s3cr3t@127.0.0.1:1";
    for (arguments, option) in [
        (&["--upstream", user, "--api-key", "k3y"][..], "--api-key"),
        (&["--upstream", "http://user:s3cr3t@h/?a=b"], "--upstream"),
        (&["--upstream", "http://user:s3cr3t@[h"], "--upstream"),
        (&["--upstream", "ftp://user:s3cr3t@h"], "--upstream"),
        (&["--upstream", "http://h", "--api-key", "s3cr3t s3cr3t"], "--api-key"),
        (&["--upstream", "http://h", "--upstream-query", "s3cr3t"], "--upstream-query"),
        (&["--upstream-query", "a=s3cr3t"], "--upstream-query"),
        (&["--forward-authorization"], "--forward-authorization"),
        (&["--pass-parameter", "truncate"], "--pass-parameter"),
        (&["--upstream", "http://h", "--pass-parameter", "model"], "--pass-parameter"),
        (&["--cors-origin", "example.com"], "--cors-origin"),
        (&["--cors-origin", "https://example.com/path"], "--cors-origin"),
        (&["--max-answer-mb", "600"], "--max-answer-mb"),
        (&["--max-body-bytes", "4294967295"], "--max-body-bytes"),
        (&["--model", "a,a"], "--model"),
        (&["--model", "a=769"], "--model"),
        (&["--model", "a=x"], "--model"),
        (&["--model", "a", "--alias", "b=c"], "--alias"),
        (&["--alias", "b"], "--alias"),
        (&["--listen", "everywhere"], "--listen"),
        (&["--ttl", "soon"], "--ttl"),
        (&["--max-concurrency", "0"], "--max-concurrency"),
        (&["--max-connections", "0"], "--max-connections"),
        (&["--nonsense"], "--nonsense"),
    ] {
        let (code, text) = run(arguments, &[]);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(option), "{arguments:?}: {text}");
        assert!(!text.contains(SECRET) && !text.contains("k3y"), "{text}");
        assert!(!text.contains("listening"), "{text}");
    }
    // And from the environment.
    let environment =
        [("EMBEDDING_CACHE_SERVER_UPSTREAM", user), ("UPSTREAM_API_KEY", "s3cr3t s3cr3t")];
    for arguments in [&[][..], &["--help"]] {
        let (_, text) = run(arguments, &environment);
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[tokio::test]
async fn credentials_in_the_url_are_sent_and_shown_nowhere() {
    let upstream = Upstream::start(Mode::Good).await;
    let url = format!("http://user:{SECRET}@{}", upstream.address);
    let mut child = Command::new(env!("CARGO_BIN_EXE_embedding-cache-server"))
        .args(["--listen", "127.0.0.1:0", "--upstream", &url, "--upstream-query", "k=s3cr3t"])
        .env("RUST_LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut log = child.stderr.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut log, &mut text).map(|_| text)
    });
    let line = lines.next().unwrap().unwrap();
    let base = line.strip_prefix("listening on ").unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = client.post(format!("{base}/v1/embeddings"));
    let post = post.header("content-type", "application/json").body(ask("a").to_string());
    let mut seen = post.send().await.unwrap().text().await.unwrap();
    assert!(seen.contains("embedding"), "{seen}");
    // A failure too; after it the breaker's reason.
    upstream.set(Mode::Status(500, None));
    for i in 0..8 {
        let post = client.post(format!("{base}/v1/embeddings"));
        let body = ask(format!("b {i}")).to_string();
        let post = post.header("content-type", "application/json").body(body);
        seen += &post.send().await.unwrap().text().await.unwrap();
    }
    for path in ["/", "/stats", "/metrics", "/health", "/ready", "/v1/models"] {
        seen += &client.get(format!("{base}{path}")).send().await.unwrap().text().await.unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    seen += &log.join().unwrap().unwrap();
    assert!(seen.contains("upstream"), "{seen}");
    assert!(!seen.contains(SECRET) && !seen.contains("user:"), "it is shown");
    // In base64 neither.
    assert!(!seen.contains("dXNlcjpzM2NyM3Q"), "it is shown");
    assert!(!seen.contains('\u{1b}'), "colours in a log that is no terminal");
    assert_eq!(upstream.asked()[0].1["authorization"], "Basic dXNlcjpzM2NyM3Q=");
    assert_eq!(upstream.query(), "k=s3cr3t");
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_named_without_credentials() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for host in [unused.to_string(), "does-not-exist.invalid".into()] {
        let url = format!("http://user:{SECRET}@{host}");
        let server = Running::start(&["--upstream", &url, "--upstream-retries", "0"]).await;
        for i in 0..7 {
            let reply = server.embed(&ask(i.to_string())).await;
            assert!(reply.status == 502 || reply.status == 503, "{reply:?}");
            assert!(!reply.json.to_string().contains(SECRET));
        }
        assert!(!server.stats().await.to_string().contains(SECRET));
    }
}
