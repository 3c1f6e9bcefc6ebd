//! Every malformed request gets a 4xx with a JSON error object, and the server goes on.

use std::time::Duration;

use crate::support::{MODEL, Running, ask, read_all, request};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bodies that are refused, by the words that the error must have.
fn wrong_bodies() -> Vec<(String, u16, &'static str)> {
    let with = |rest: &str| format!(r#"{{"model":"{MODEL}",{rest}}}"#);
    let refused = |body: String, words| (body, 400, words);
    let many = json!(vec!["x"; 2049]).to_string();
    vec![
        refused(String::new(), "JSON"),
        refused("{".into(), "JSON"),
        refused("[1]".into(), "object"),
        refused("\u{0}".into(), "JSON"),
        refused("[".repeat(200_000), "object"),
        refused(with(&format!(r#""input":{}"#, "[".repeat(200_000))), "expected"),
        refused(with(r#""user":"u""#), "missing"),
        refused(r#"{"input":"a"}"#.into(), "missing"),
        refused(with(r#""input":"""#), "empty"),
        refused(with(r#""input":[]"#), "empty"),
        refused(with(r#""input":["a",""]"#), "input 1 is empty"),
        refused(with(r#""input":[[1],[]]"#), "input 1 is empty"),
        refused(with(r#""input":["a",2]"#), "input 1"),
        refused(with(r#""input":[[1],"a"]"#), "input 1"),
        refused(with(r#""input":[1,"a"]"#), "input 1"),
        refused(with(r#""input":{"a":1}"#), "expected"),
        refused(with(r#""input":null"#), "expected"),
        refused(with(r#""input":true"#), "expected"),
        refused(with(r#""input":[-1]"#), "expected"),
        refused(with(r#""input":[1.5]"#), "expected"),
        refused(with(r#""input":[4294967296]"#), "expected"),
        refused(with(r#""input":[99999999999999999999999]"#), "expected"),
        refused(with(&format!(r#""input":{many}"#)), "2048"),
        refused(with(r#""input":"\ud800""#), "JSON"),
        refused(with(r#""input":"a","input":"b""#), "twice"),
        refused(with(r#""input":"a","dimensions":0"#), "0"),
        refused(with(r#""input":"a","dimensions":1e3"#), "expected"),
        refused(with(r#""input":"a","dimensions":100000"#), "65536"),
        refused(with(r#""input":"a","encoding_format":"hex""#), "hex"),
        refused(with(r#""input":"a","prompt_name":"query""#), "prompt_name"),
        refused(with(r#""input":"a"} {"#), "JSON"),
        (r#"{"model":"gpt","input":"a"}"#.into(), 404, "gpt"),
        (r#"{"model":"","input":"a"}"#.into(), 404, "served"),
    ]
}

#[tokio::test]
async fn malformed_requests_are_refused_and_take_no_permit_with_them() {
    let server = Running::start(&["--max-concurrency", "2"]).await;
    for round in 0..3 {
        for (body, status, words) in wrong_bodies() {
            server.post(body).await.is_error(status).says(words);
        }
        let refused = server.post(vec![b'"', 0xff, b'"']).await;
        refused.is_error(400);
        for content_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
            let mut request = server.client.post(server.url("/v1/embeddings")).body("{}");
            if let Some(content_type) = content_type {
                request = request.header("content-type", content_type);
            }
            server.send(request).await.is_error(415).says("application/json");
        }
        let stats = server.stats().await;
        assert_eq!(stats["requests"]["in_flight"], 0, "round {round}: {stats}");
        assert_eq!(stats["requests"]["failed"], 0);
        assert_eq!(stats["cache"]["keys_in_flight"], 0);
    }
    let (a, b) = (ask("a"), ask("b"));
    let (one, two) = tokio::join!(server.embed(&a), server.embed(&b));
    assert_eq!((one.status, two.status), (200, 200));
}

#[tokio::test]
async fn wrong_methods_and_paths_are_refused() {
    let server = Running::start(&[]).await;
    let client = &server.client;
    for path in ["/v1/embedding", "/v1", "/v1/embeddings/", "/admin", "/%00", "/stats.json"] {
        server.send(client.get(server.url(path))).await.is_error(404);
    }
    let wrong = [
        (client.get(server.url("/v1/embeddings")), "POST"),
        (client.put(server.url("/v1/embeddings")), "POST"),
        (client.post(server.url("/metrics")), "GET"),
        (client.get(server.url("/cache")), "DELETE"),
        (client.delete(server.url("/health")), "GET"),
    ];
    for (request, allowed) in wrong {
        let reply = server.send(request).await;
        reply.is_error(405);
        assert!(reply.headers["allow"].to_str().unwrap().contains(allowed), "{reply:?}");
    }
}

/// Sends `head` and reads what comes back, without ever sending the body.
async fn raw(server: &Running, head: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer));
    let read = read.await.expect("no answer").unwrap();
    answer.truncate(read);
    (stream, String::from_utf8(answer).unwrap())
}

const HEAD: &str = "POST /v1/embeddings HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n";

#[tokio::test]
async fn a_long_body_is_refused_by_its_length_before_it_comes() {
    let server = Running::start(&["--max-body-bytes", "1000"]).await;
    for length in ["1001", "1000000000000", "18446744073709551613"] {
        let (_, answer) = raw(&server, &format!("{HEAD}content-length: {length}\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{length}: {answer}");
        assert!(answer.contains(r#""code":"request_too_large""#), "{answer}");
    }
    // One that is exactly as long as allowed is read.
    let text = "x".repeat(1000 - ask("").to_string().len());
    assert_eq!(ask(text.as_str()).to_string().len(), 1000);
    assert_eq!(server.embed(&ask(text)).await.status, 200);
}

#[tokio::test]
async fn a_long_chunked_body_is_refused_when_it_passes_the_limit() {
    let server = Running::start(&["--max-body-bytes", "1000"]).await;
    // 1,001 bytes of a body that would go on.
    let head = format!("{HEAD}transfer-encoding: chunked\r\n\r\n3e9\r\n{}\r\n", "x".repeat(1001));
    let (_, answer) = raw(&server, &head).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(server.stats().await["requests"]["in_flight"], 0);
}

#[tokio::test]
async fn a_body_that_does_not_come_gives_its_permit_back() {
    let server = Running::start(&["--read-timeout", "300ms", "--max-concurrency", "1"]).await;
    let head = format!("{HEAD}content-length: 100\r\n\r\n{{");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    server.until(|stats| stats["requests"]["in_flight"] == 1).await;
    // The only permit is taken: the next request is told to come back.
    let busy = server.embed(&ask("a")).await;
    busy.is_error(429);
    assert_eq!(busy.headers["retry-after"], "1");
    assert_eq!(busy.json["error"]["code"], "rate_limit_exceeded");
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 408"));
    assert_eq!(server.embed(&ask("a")).await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_sends_gives_its_permit_back() {
    let server = Running::start(&["--max-concurrency", "1"]).await;
    for _ in 0..5 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("{HEAD}content-length: 100\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.unwrap();
        server.until(|stats| stats["requests"]["in_flight"] == 1).await;
        drop(stream);
        server.until(|stats| stats["requests"]["in_flight"] == 0).await;
    }
    assert_eq!(server.embed(&ask("a")).await.status, 200);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_answer_that_nobody_reads_gives_its_permit_back() {
    let server = Running::start(&["--max-concurrency", "1", "--write-timeout", "500ms"]).await;
    // Some 20 MB of answer: more than the buffers of both sockets hold.
    let texts: Vec<String> = (0..2048).map(|i| format!("text number {i} of many")).collect();
    let body = ask(texts).to_string();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    server.until(|stats| stats["requests"]["answered"] == 1).await;
    server.embed(&ask("a")).await.is_error(429);
    server.until(|stats| stats["requests"]["in_flight"] == 0).await;
    assert_eq!(server.embed(&ask("a")).await.status, 200);
}

#[tokio::test]
async fn any_authorization_is_accepted_and_user_is_ignored() {
    let server = Running::start(&[]).await;
    let body = json!({"model": MODEL, "input": "a", "user": {"any": ["thing"]}});
    let request = server.client.post(server.url("/v1/embeddings"));
    let request = request
        .bearer_auth("sk-anything")
        .header("content-type", "Application/JSON; charset=utf-8");
    assert_eq!(server.send(request.body(body.to_string())).await.status, 200);
}

#[tokio::test]
async fn what_is_no_http_gets_an_error_object_too() {
    let server = Running::start(&[]).await;
    let long = "x".repeat(300_000);
    let good = String::from_utf8(request(&ask("a"))).unwrap();
    for (text, status, code) in [
        ("nonsense\r\n\r\n".to_owned(), 400, "invalid_http"),
        ("POST /v1/embeddings HTTP/9.9\r\n\r\n".into(), 400, "invalid_http"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".into(), 400, "invalid_http"),
        (
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".into(),
            400,
            "invalid_http",
        ),
        (format!("GET / HTTP/1.1\r\nx: {long}\r\n\r\n"), 431, "headers_too_large"),
        // After a good one, on the same connection.
        (format!("{good}nonsense\r\n\r\n"), 400, "invalid_http"),
    ] {
        let mut stream = server.raw(text.as_bytes()).await;
        let all = read_all(&mut stream).await;
        // The last answer that came.
        let answer = &all[all.rfind("HTTP/1.1 ").unwrap_or_else(|| panic!("{text:.60}: {all}"))..];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{text:.60}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let json: Value = serde_json::from_str(body).unwrap();
        assert_eq!(json["error"]["code"], code, "{text:.60}");
        assert_eq!(
            all.matches("\"object\":\"list\"").count(),
            usize::from(text.starts_with(&good))
        );
    }
}
