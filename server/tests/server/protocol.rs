//! What clients and upstreams may do that is not the plain case.

use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::support::upstream::{Mode, Upstream};
use crate::support::{MODEL, Running, ask};

async fn pair(mode: Mode, arguments: &[&str]) -> (Upstream, Running) {
    let upstream = Upstream::start(mode).await;
    let url = upstream.url();
    let server = Running::start(&[&["--upstream", url.as_str()], arguments].concat()).await;
    (upstream, server)
}

fn post(server: &Running) -> RequestBuilder {
    server.client.post(server.url("/v1/embeddings")).header("content-type", "application/json")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_compressed_body_is_read_within_the_limit_on_bodies() {
    let server = Running::start(&["--max-body-bytes", "100000"]).await;
    let plain = server.embed(&ask(json!(["one", "two"]))).await;
    let send = |bytes: Vec<u8>, coding: &str| {
        server.send(post(&server).header("content-encoding", coding).body(bytes))
    };
    let body = ask(json!(["one", "two"])).to_string();
    for coding in ["gzip", "GZIP"] {
        assert_eq!(send(gzip(body.as_bytes()), coding).await.json, plain.json);
    }
    assert_eq!(send(body.clone().into_bytes(), "identity").await.json, plain.json);
    // In two members, as `cat a.gz b.gz` makes it; and one that is inflated beside the executor.
    let (start, end) = body.as_bytes().split_at(10);
    assert_eq!(send([gzip(start), gzip(end)].concat(), "gzip").await.json, plain.json);
    let noise: String =
        (0..40_000_u32).map(|i| char::from(b'a' + (i * i % 251 % 26) as u8)).collect();
    let noisy = gzip(ask(noise).to_string().as_bytes());
    assert_eq!(send(noisy, "gzip").await.status, 200);

    send(gzip(&vec![b' '; 50 << 20]), "gzip").await.is_error(413).says("100000");
    send(body.into_bytes(), "gzip").await.is_error(400).says("gzip");
    let broken = gzip(b"{}");
    send(broken[..broken.len() - 9].to_vec(), "gzip").await.is_error(400);
    for coding in ["br", "deflate", "gzip, gzip", "zstd"] {
        send(vec![1], coding).await.is_error(415).says(coding);
    }
    let stats = server.stats().await;
    assert_eq!(stats["requests"]["buffer_bytes"], 0);
}

#[tokio::test]
async fn a_date_in_retry_after_is_waited_for_or_passed_on() {
    // Long gone: tried again at once. In many years: the client is told.
    let past = Mode::Status(429, Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    let (upstream, server) = pair(past, &["--upstream-retries", "2"]).await;
    server.embed(&json!({"model": "m", "input": "a"})).await.is_error(429);
    assert_eq!(upstream.calls(), 3);
    upstream.set(Mode::Status(429, Some("Sat, 06 Nov 2094 08:49:37 GMT")));
    let reply = server.embed(&json!({"model": "m", "input": "b"})).await;
    reply.is_error(429);
    assert_eq!(upstream.calls(), 4);
    let seconds: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(seconds > 1_000_000_000, "{seconds}");
}

#[tokio::test]
async fn models_are_listed() {
    let server = Running::start(&["--model", "a,b=64", "--alias", "org/c=a"]).await;
    let list = server.send(server.client.get(server.url("/v1/models"))).await.json;
    let ids: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!((list["object"].as_str(), ids), (Some("list"), vec!["a", "b", "org/c"]));
    for id in ["a", "org/c", "org%2Fc"] {
        let one = server.send(server.client.get(server.url(&format!("/v1/models/{id}")))).await;
        assert_eq!((one.status, &one.json["object"]), (200, &json!("model")));
    }
    let missing = server.send(server.client.get(server.url("/v1/models/d"))).await;
    missing.is_error(404);
    assert_eq!(missing.json["error"]["code"], "model_not_found");
    // Where none is listed, they are the upstream's.
    let (upstream, server) = pair(Mode::Good, &["--alias", "mine=theirs"]).await;
    let list = server.send(server.client.get(server.url("/v1/models"))).await.json;
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["mine", "theirs"]);
    drop(upstream);
}

#[tokio::test]
async fn an_alias_is_the_same_model_and_shares_its_vectors() {
    let (upstream, server) = pair(Mode::Good, &["--alias", "short=org/long-name"]).await;
    let body = |model: &str| json!({"model": model, "input": "a"});
    let first = server.embed(&body("short")).await;
    assert_eq!(first.json["model"], "short");
    assert_eq!(server.embed(&body("org/long-name")).await.vectors(), first.vectors());
    assert_eq!(upstream.calls(), 1);
    assert_eq!(upstream.asked()[0].0["model"], "org/long-name");
    let removed = server.send(server.client.delete(server.url("/cache?model=short"))).await;
    assert_eq!(removed.json["removed"], 1);
}

#[tokio::test]
async fn the_query_of_the_upstream_is_added_to_every_call() {
    let query = ["--upstream-query", "api-version=2024-02-01,x=a b"];
    let (upstream, server) = pair(Mode::Good, &query).await;
    server.embed(&json!({"model": "m", "input": "a"})).await.vectors();
    assert_eq!(upstream.query(), "api-version=2024-02-01&x=a+b");
}

#[tokio::test]
async fn parameters_on_the_list_are_passed_on_and_part_of_the_key() {
    let list = ["--pass-parameter", "prompt_name,truncate"];
    let (upstream, server) = pair(Mode::Good, &list).await;
    let bodies = [
        json!({"model": "m", "input": "a"}),
        json!({"model": "m", "input": "a", "prompt_name": "query"}),
        json!({"model": "m", "input": "a", "prompt_name": "document"}),
        json!({"model": "m", "input": "a", "prompt_name": "document", "truncate": true}),
        json!({"model": "m", "input": "a", "truncate": {"deep": [1]}}),
    ];
    for (count, body) in bodies.iter().enumerate() {
        for _ in 0..2 {
            server.embed(body).await.vectors();
        }
        assert_eq!(upstream.calls(), count + 1, "{body}");
    }
    let asked = upstream.asked();
    assert_eq!(asked[3].0["prompt_name"], "document");
    assert_eq!(asked[3].0["truncate"], true);
    assert_eq!(asked[4].0["truncate"], json!({"deep": [1]}));
    // In another order they are the same.
    let text = r#"{"truncate":true,"prompt_name":"document","input":"a","model":"m"}"#;
    server.post(text).await.vectors();
    assert_eq!(upstream.calls(), 5);
    let other = json!({"model": "m", "input": "a", "task": "x"});
    server.embed(&other).await.is_error(400).says("task");
}

#[tokio::test]
async fn forwarded_keys_do_not_share_vectors() {
    let arguments = ["--forward-authorization", "--api-key", "server", "--model-delay", "100ms"];
    let (upstream, server) = pair(Mode::Good, &arguments).await;
    let ask = |key: Option<&str>| {
        let request = post(&server).body(json!({"model": "m", "input": "a"}).to_string());
        match key {
            Some(key) => server.send(request.bearer_auth(key)),
            None => server.send(request),
        }
    };
    // At the same time, so that they could share a call.
    let replies = tokio::join!(ask(Some("one")), ask(Some("two")), ask(None));
    assert_eq!([replies.0.status, replies.1.status, replies.2.status], [200; 3]);
    assert_eq!(upstream.calls(), 3);
    for key in [Some("one"), Some("two"), None] {
        ask(key).await.vectors();
    }
    assert_eq!(upstream.calls(), 3);
    let mut sent: Vec<String> = upstream
        .asked()
        .iter()
        .map(|(_, headers)| headers["authorization"].to_str().unwrap().to_owned())
        .collect();
    sent.sort_unstable();
    assert_eq!(sent, ["Bearer one", "Bearer server", "Bearer two"]);
    // Off, nobody's key is looked at.
    let (upstream, server) = pair(Mode::Good, &[]).await;
    for key in ["one", "two"] {
        let request = post(&server).body(json!({"model": "m", "input": "a"}).to_string());
        server.send(request.bearer_auth(key)).await.vectors();
    }
    assert_eq!(upstream.calls(), 1);
    assert!(!upstream.asked()[0].1.contains_key("authorization"));
}

#[tokio::test]
async fn other_origins_are_let_in_only_where_that_is_asked_for() {
    let preflight = |server: &Running, origin: &str| {
        let method = reqwest::Method::OPTIONS;
        let request = server.client.request(method, server.url("/v1/embeddings"));
        request
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,x-stainless-os")
            .send()
    };
    let server = Running::start(&[]).await;
    let closed = preflight(&server, "https://example.com").await.unwrap();
    assert!(!closed.headers().contains_key("access-control-allow-origin"));
    let server = Running::start(&["--cors-origin", "https://example.com"]).await;
    let open = preflight(&server, "https://example.com").await.unwrap();
    assert_eq!(open.status(), 200);
    assert_eq!(open.headers()["access-control-allow-origin"], "https://example.com");
    let allowed = open.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("x-stainless-os") && allowed.contains("authorization"));
    let other = preflight(&server, "https://example.org").await.unwrap();
    assert!(!other.headers().contains_key("access-control-allow-origin"));
    // On answers too, errors included.
    let request = post(&server).header("origin", "https://example.com").body("{");
    let reply = server.send(request).await;
    assert_eq!(reply.is_error(400).headers["access-control-allow-origin"], "https://example.com");
    let server = Running::start(&["--cors-origin", "*"]).await;
    let any = preflight(&server, "https://anything.test").await.unwrap();
    assert_eq!(any.headers()["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn the_answer_says_what_the_cache_had() {
    let header = |reply: &crate::support::Reply| {
        ["x-cache", "x-cache-hits", "x-cache-misses"]
            .map(|name| reply.headers[name].to_str().unwrap().to_owned())
    };
    let server = Running::start(&[]).await;
    let first = server.embed(&ask(json!(["a", "b", "a"]))).await;
    assert_eq!(header(&first), ["partial", "1", "2"]);
    assert_eq!(header(&server.embed(&ask("c")).await), ["miss", "0", "1"]);
    assert_eq!(header(&server.embed(&ask(json!(["a", "c"]))).await), ["hit", "2", "0"]);
    assert_eq!(header(&server.embed(&ask(json!(["a", "d"]))).await), ["partial", "1", "1"]);
    let server = Running::start(&["--no-cache"]).await;
    let reply = server.embed(&ask("a")).await;
    assert_eq!(reply.headers["x-cache"], "none");
}

#[tokio::test]
async fn usage_is_the_models_own_where_it_is_known() {
    let (_upstream, server) = pair(Mode::Counting, &["--model-delay", "200ms"]).await;
    let body = |input: Value| json!({"model": "m", "input": input});
    // Alone in its call: exact, cold and warm.
    for _ in 0..2 {
        let reply = server.embed(&body(json!("seven b"))).await;
        assert_eq!(reply.json["usage"]["prompt_tokens"], 7);
        assert_eq!(reply.headers["x-usage"], "exact");
    }
    // Several in a call: divided by bytes, which sums up, and is called an estimate.
    let texts = ["a", "bcd", "efghijk", "lm"];
    for _ in 0..2 {
        let reply = server.embed(&body(json!(texts))).await;
        assert_eq!(reply.json["usage"]["total_tokens"], 13);
        assert_eq!(reply.headers["x-usage"], "estimated");
    }
    let reply = server.embed(&body(json!("efghijk"))).await;
    assert_eq!(reply.json["usage"]["total_tokens"], 7);
    // Of two requests that share a call each gets its part.
    let (one, two) = (body(json!("four")), body(json!("eleven byte")));
    let (one, two) = tokio::join!(server.embed(&one), server.embed(&two));
    assert_eq!(
        (&one.json["usage"]["total_tokens"], &two.json["usage"]["total_tokens"]),
        (&json!(4), &json!(11))
    );
    // Ids count themselves.
    let reply = server.embed(&json!({"model": MODEL, "input": [[1, 2, 3]]})).await;
    assert!(reply.status == 200 || reply.status == 502);
}

#[tokio::test]
async fn latency_is_that_of_the_client_and_the_models_is_told_apart() {
    let pause = Duration::from_millis(300);
    let (_upstream, server) = pair(Mode::Slow(pause), &["--no-cache"]).await;
    let began = std::time::Instant::now();
    server.embed(&json!({"model": "m", "input": "a"})).await.vectors();
    let seen = began.elapsed().as_secs_f64() * 1e3;
    let stats = server.until(|stats| !stats["latency_ms"]["p50"].is_null()).await;
    let (all, model) = (&stats["latency_ms"]["p50"], &stats["model"]["call_ms"]["p50"]);
    let (all, model) = (all.as_f64().unwrap(), model.as_f64().unwrap());
    assert!(300.0 <= model && model <= all && all <= seen * 1.01, "{model} {all} {seen}");

    // A body that comes slowly, and an answer that is read slowly, are part of it.
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = Running::start(&[]).await;
    let bytes = crate::support::request(&ask((0..2048).map(|i| i.to_string()).collect::<Vec<_>>()));
    let (start, end) = bytes.split_at(100);
    let mut stream = server.raw(start).await;
    tokio::time::sleep(pause).await;
    stream.write_all(end).await.unwrap();
    server.until(|stats| stats["requests"]["answered"] == 1).await;
    assert!(server.stats().await["latency_ms"]["p50"].is_null(), "not yet written");
    tokio::time::sleep(pause).await;
    let reading = async {
        let mut buffer = vec![0; 1 << 20];
        while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {}
    };
    let stats = tokio::select! {
        stats = server.until(|stats| !stats["latency_ms"]["p50"].is_null()) => stats,
        () = reading => server.stats().await,
    };
    assert!(stats["latency_ms"]["p50"].as_f64() >= Some(600.0), "{stats}");
}
