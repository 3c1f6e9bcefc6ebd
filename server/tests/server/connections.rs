//! Connections that idle, stall, send for ever or never read; and answers to clients that still send.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::upstream::{Mode, Upstream};
use crate::support::{MODEL, Running, ask, read_all, request};

const HEAD: &str = "POST /v1/embeddings HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n";

/// Waits until the other end has closed or reset.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    let closed = async { while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {} };
    tokio::time::timeout(Duration::from_secs(10), closed).await.is_ok()
}

#[tokio::test]
async fn headers_that_do_not_end_and_connections_that_idle_are_closed() {
    let short = ["--header-timeout", "300ms", "--idle-timeout", "300ms"];
    let server = Running::start(&short).await;
    let half = "POST /v1/embeddings HTTP/1.1\r\nhost: h\r\nx-";
    let mut slow = server.raw(half.as_bytes()).await;
    // One byte now and then does not help it.
    let began = Instant::now();
    let mut dripping = server.raw(half.as_bytes()).await;
    let dripped = async {
        while began.elapsed() < Duration::from_secs(10) {
            if dripping.write_all(b"a").await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    };
    assert!(dripped.await);
    assert!(is_closed(&mut slow).await);
    assert!(is_closed(&mut server.raw(b"").await).await);
    let mut used = server.raw(&request(&ask("a"))).await;
    let answer = read_all(&mut used).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // A request may take longer than a pause.
    let upstream = Upstream::start(Mode::Slow(Duration::from_millis(900))).await;
    let server = Running::start(&[&short[..], &["--upstream", &upstream.url()]].concat()).await;
    assert_eq!(server.embed(&json!({"model": "m", "input": "a"})).await.status, 200);
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so_and_room_comes_back() {
    let server = Running::start(&["--max-connections", "3"]).await;
    let held: Vec<TcpStream> = vec![server.raw(b"").await, server.raw(b"").await];
    assert_eq!(server.embed(&ask("a")).await.status, 200);
    // The client of the tests has the third.
    assert_eq!(server.stats().await["requests"]["connections"], 3);
    let mut refused = server.raw(&request(&ask("a"))).await;
    let answer = read_all(&mut refused).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("too_many_connections") && answer.contains("retry-after"), "{answer}");
    drop(held);
    let began = Instant::now();
    loop {
        let mut stream = server.raw(&request(&ask("a"))).await;
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        if start.ends_with(b"200") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn http_2_is_not_spoken() {
    let server = Running::start(&[]).await;
    let mut stream = server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let answer = read_all(&mut stream).await;
    // No frame of settings comes back.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
}

/// An answer of some 20 MB: more than the buffers of both sockets hold.
fn wide() -> Value {
    ask((0..2048).map(|i| format!("text number {i} of many")).collect::<Vec<_>>())
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_loses_its_answer_and_everything_comes_back() {
    for per_read in [0, 1024] {
        let server = Running::start(&["--write-timeout", "700ms"]).await;
        let mut stream = server.raw(&request(&wide())).await;
        server.until(|stats| stats["requests"]["answered"] == 1).await;
        let held = server.stats().await["requests"]["buffer_bytes"].as_u64().unwrap();
        assert!(held > 10 << 20, "{held}");
        // Every byte that it reads is progress, which once was enough.
        let mut buffer = vec![0; per_read.max(1)];
        let reading = async {
            loop {
                if per_read > 0 && stream.read(&mut buffer).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let freed = server.until(|stats| {
            stats["requests"]["in_flight"] == 0 && stats["requests"]["buffer_bytes"] == 0
        });
        tokio::select! {
            stats = freed => assert_eq!(stats["requests"]["unread"], 1),
            () = reading => {
                server.until(|stats| stats["requests"]["buffer_bytes"] == 0).await;
            }
        }
        assert_eq!(server.embed(&ask("a")).await.status, 200);
    }
}

#[tokio::test]
async fn slow_readers_of_wide_answers_leave_room_for_narrow_ones() {
    let arguments = ["--buffer-mb", "128", "--max-answer-mb", "64", "--write-timeout", "60s"];
    let server = Running::start(&arguments).await;
    server.embed(&wide()).await.vectors();
    let mut streams = Vec::new();
    let mut refused = 0;
    for _ in 0..12 {
        let mut stream = server.raw(&request(&wide())).await;
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        refused += usize::from(start.ends_with(b"429"));
        streams.push(stream);
    }
    let stats = server.stats().await;
    assert!(refused >= 6, "{refused} {stats}");
    assert!(stats["requests"]["buffer_bytes"].as_u64() <= Some(128 << 20), "{stats}");
    assert_eq!(server.embed(&ask("a")).await.status, 200);
    drop(streams);
    server.until(|stats| stats["requests"]["buffer_bytes"] == 0).await;
}

#[tokio::test]
async fn an_answer_that_would_be_too_large_is_refused_before_the_model_is_asked() {
    let upstream = Upstream::start(Mode::Good).await;
    let url = upstream.url();
    let limit = ["--upstream", url.as_str(), "--max-answer-mb", "1", "--buffer-mb", "8"];
    // Known by the request, by the option, and by what was seen.
    let inputs: Vec<String> = (0..2000).map(|i| i.to_string()).collect();
    let server = Running::start(&limit).await;
    let body = json!({"model": "m", "input": inputs, "dimensions": 65536});
    let reply = server.embed(&body).await;
    reply.is_error(400).says("over the limit of 1048576");
    assert_eq!(reply.json["error"]["code"], "answer_too_large");
    let listed = Running::start(&[&limit[..], &["--model", "m=60000"]].concat()).await;
    listed.embed(&json!({"model": "m", "input": inputs})).await.is_error(400);
    assert_eq!(upstream.calls(), 0);

    let many: Vec<String> = (0..12_000).map(|i| i.to_string()).collect();
    let server = Running::start(&[&limit[..], &["--max-batch", "20000"]].concat()).await;
    let body = json!({"model": "m", "input": many});
    server.embed(&json!({"model": "m", "input": "a"})).await.vectors();
    server.embed(&body).await.is_error(400);
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn many_bodies_at_once_take_no_more_than_the_budget() {
    let arguments = ["--buffer-mb", "8", "--max-answer-mb", "2", "--max-body-bytes", "4194304"];
    let server = Running::start(&arguments).await;
    let head = format!("{HEAD}content-length: 4194304\r\n\r\n");
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = server.raw(head.as_bytes()).await;
        let _ = stream.write_all(&vec![b' '; 3 << 20]).await;
        streams.push(stream);
    }
    let stats = server.stats().await;
    let held = stats["requests"]["buffer_bytes"].as_u64().unwrap();
    assert!(held <= 8 << 20, "{stats}");
    assert!(stats["requests"]["refused"].as_u64() >= Some(4), "{stats}");
    assert_eq!(server.embed(&ask("a")).await.status, 200);
    drop(streams);
    server.until(|stats| stats["requests"]["buffer_bytes"] == 0).await;
}

/// Writes all of a long body before it reads: as many clients do.
async fn write_then_read(server: &Running, head: &str, body: &[u8]) -> String {
    let mut stream = server.raw(head.as_bytes()).await;
    for part in body.chunks(64 << 10) {
        stream.write_all(part).await.expect("the answer is lost: the connection was reset");
        tokio::task::yield_now().await;
    }
    read_all(&mut stream).await
}

#[tokio::test]
async fn clients_that_write_on_read_their_refusal() {
    let server = Running::start(&["--max-body-bytes", "100000", "--max-concurrency", "1"]).await;
    let body = vec![b'x'; 8 << 20];
    let length = format!("content-length: {}\r\n\r\n", body.len());
    let chunked: Vec<u8> =
        body.chunks(1 << 16).flat_map(|part| [b"10000\r\n", part, b"\r\n"].concat()).collect();
    for _ in 0..3 {
        let answer = write_then_read(&server, &format!("{HEAD}{length}"), &body).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(answer.contains("request_too_large"), "{answer}");
        let head = format!("{HEAD}transfer-encoding: chunked\r\n\r\n");
        let answer = write_then_read(&server, &head, &chunked).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        let head = HEAD.replace("application/json", "text/plain");
        let answer = write_then_read(&server, &format!("{head}{length}"), &body).await;
        assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
        let head = "POST /nothing HTTP/1.1\r\nhost: h\r\n";
        let answer = write_then_read(&server, &format!("{head}{length}"), &body).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        let head = "PUT /v1/embeddings HTTP/1.1\r\nhost: h\r\n";
        let answer = write_then_read(&server, &format!("{head}{length}"), &body).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        // No JSON from its first byte on; nobody looks before all has come.
        let short = "connection: close\r\ncontent-length: 90000\r\n\r\n";
        let answer = write_then_read(&server, &format!("{HEAD}{short}"), &body[..90_000]).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    // 429: somebody has the only permit.
    let _holder = server.raw(format!("{HEAD}content-length: 100\r\n\r\n{{").as_bytes()).await;
    server.until(|stats| stats["requests"]["in_flight"] == 1).await;
    let length = "content-length: 99999\r\n\r\n";
    let answer = write_then_read(&server, &format!("{HEAD}{length}"), &body[..99_999]).await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
}

#[tokio::test]
async fn what_is_thrown_away_has_an_end() {
    let server = Running::start(&["--max-body-bytes", "1000"]).await;
    let mut stream =
        server.raw(format!("{HEAD}transfer-encoding: chunked\r\n\r\n").as_bytes()).await;
    let mut sent = 0_usize;
    let part = [b"10000\r\n", &[b'x'; 1 << 16][..], b"\r\n"].concat();
    while sent < 256 << 20 {
        if stream.write_all(&part).await.is_err() {
            break;
        }
        sent += part.len();
    }
    // 16 MiB are read, and what both sockets buffer comes on top.
    assert!((16 << 20..128 << 20).contains(&sent), "{sent}");
}

#[tokio::test]
async fn an_expectation_that_is_refused_is_refused_before_the_body() {
    let server = Running::start(&["--max-body-bytes", "1000"]).await;
    let head = format!("{HEAD}expect: 100-continue\r\ncontent-length: 2000\r\n\r\n");
    let mut stream = server.raw(head.as_bytes()).await;
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");
    // And one that is not goes on.
    let body = ask("a").to_string();
    let head = format!("{HEAD}expect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut stream = server.raw(head.as_bytes()).await;
    let mut go = [0; 21];
    stream.read_exact(&mut go).await.unwrap();
    assert!(go.starts_with(b"HTTP/1.1 100 Continue"));
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut start = [0; 16];
    stream.read_exact(&mut start).await.unwrap();
    assert!(String::from_utf8_lossy(&start).contains("200"));
}

#[tokio::test]
async fn half_sent_requests_do_not_hold_up_the_end() {
    let mut server = Running::start(&["--shutdown-grace", "60s"]).await;
    let _headers = server.raw(b"POST /v1/embeddings HTTP/1.1\r\nhost").await;
    let _body = server.raw(format!("{HEAD}content-length: 100\r\n\r\n{{").as_bytes()).await;
    let _idle = server.raw(b"").await;
    let _used = server.embed(&ask("a")).await;
    server.until(|stats| stats["requests"]["in_flight"] == 1).await;
    server.tell_to_stop();
    tokio::time::timeout(Duration::from_secs(20), server.ended()).await.expect("it waits");
}

#[tokio::test]
async fn what_is_under_way_is_answered_and_what_comes_then_is_refused() {
    let upstream = Upstream::start(Mode::Slow(Duration::from_millis(1500))).await;
    let mut server = Running::start(&["--upstream", &upstream.url()]).await;
    let body = |text: &str| json!({"model": "m", "input": text});
    let mut under_way = server.raw(&request(&body("a"))).await;
    let _half = server.raw(format!("{HEAD}content-length: 100\r\n\r\n{{").as_bytes()).await;
    while upstream.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.tell_to_stop();
    let ready = async {
        while server.client.get(server.url("/ready")).send().await.unwrap().status() == 200 {}
    };
    ready.await;
    let refused = server.embed(&body("b")).await;
    refused.is_error(503).says("stopping");
    let answer = read_all(&mut under_way).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    tokio::time::timeout(Duration::from_secs(20), server.ended()).await.expect("it waits");
}

#[tokio::test]
async fn a_hundred_bad_connections_of_each_kind_and_good_ones_are_served() {
    let server = Running::start(&["--write-timeout", "60s"]).await;
    server.embed(&wide()).await.vectors();
    let mut bad = Vec::new();
    for i in 0..400 {
        bad.push(match i % 4 {
            0 => server.raw(b"").await,
            1 => server.raw(b"POST /v1/embeddings HT").await,
            2 => server.raw(format!("{HEAD}content-length: 100\r\n\r\n{{").as_bytes()).await,
            _ => server.raw(&request(&wide())).await,
        });
    }
    for i in 0..20 {
        let reply = server.embed(&json!({"model": MODEL, "input": i.to_string()})).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    drop(bad);
    let all_back = |stats: &Value| {
        stats["requests"]["in_flight"] == 0 && stats["requests"]["buffer_bytes"] == 0
    };
    server.until(all_back).await;
}
