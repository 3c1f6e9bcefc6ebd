//! The server in front of an upstream that stalls, fails, and answers nonsense.

use std::time::Duration;

use crate::support::Running;
use crate::support::upstream::{Fault, Mode, Upstream, vector};
use serde_json::{Value, json};

async fn pair(mode: Mode, arguments: &[&str]) -> (Upstream, Running) {
    let upstream = Upstream::start(mode).await;
    let url = upstream.url();
    let mut all = vec!["--upstream", url.as_str()];
    if !arguments.contains(&"--upstream-retries") {
        all.extend(["--upstream-retries", "0"]);
    }
    all.extend(arguments);
    let server = Running::start(&all).await;
    (upstream, server)
}

fn ask(input: impl Into<Value>) -> Value {
    json!({"model": "m", "input": input.into()})
}

#[tokio::test]
async fn good_answers_come_through_and_are_cached() {
    for mode in [Mode::Good, Mode::Base64, Mode::Reversed] {
        let (upstream, server) = pair(mode.clone(), &[]).await;
        let body = ask(json!(["a", "b", "c"]));
        let first = server.embed(&body).await;
        let expected: Vec<Vec<f32>> = ["a", "b", "c"].map(|x| vector(&json!(x), 4)).into();
        assert_eq!(first.vectors(), expected, "{mode:?}");
        assert_eq!(server.embed(&body).await.json, first.json);
        assert_eq!(upstream.calls(), 1);
    }
}

#[tokio::test]
async fn what_is_asked_is_passed_on() {
    let (upstream, server) = pair(Mode::Good, &["--api-key", "sk-up", "--model", "m=4,n"]).await;
    server.embed(&ask(json!([[1, 2], [3]]))).await.vectors();
    server
        .embed(&json!({"model": "n", "input": "x", "dimensions": 2, "user": "u"}))
        .await
        .vectors();
    // The model's own dimensions are not asked for.
    server.embed(&json!({"model": "m", "input": "x", "dimensions": 4})).await.vectors();
    server.embed(&ask("x")).await.vectors();
    let asked = upstream.asked();
    assert_eq!(asked.len(), 3);
    assert_eq!(
        asked[0].0,
        json!({"model": "m", "input": [[1, 2], [3]], "encoding_format": "float"})
    );
    assert_eq!(
        asked[1].0,
        json!({"model": "n", "input": ["x"], "dimensions": 2, "encoding_format": "float"})
    );
    assert_eq!(asked[2].0, json!({"model": "m", "input": ["x"], "encoding_format": "float"}));
    assert!(asked.iter().all(|(_, headers)| headers["authorization"] == "Bearer sk-up"));
    server.embed(&json!({"model": "other", "input": "x"})).await.is_error(404);
    assert_eq!(upstream.calls(), 3);
}

#[tokio::test]
async fn nonsense_is_an_error_and_is_not_cached() {
    let wrong = [
        (Mode::TooFew, 502, "1 vectors were asked for, the upstream answered with 0"),
        (Mode::TooMany, 502, "the upstream answered with 2"),
        (Mode::NanLiteral, 502, "cannot be understood"),
        (Mode::WrongDimensions, 422, "4 dimensions was expected, the upstream answered with 3"),
        (Mode::Empty, 502, "no components"),
        (Mode::NoJson, 502, "cannot be understood"),
        (Mode::BreakOff, 502, "upstream"),
        (Mode::Status(500, None), 502, "told to answer 500"),
        (Mode::Status(503, None), 503, "told to answer 503"),
        (Mode::Status(302, None), 502, "302"),
        (Mode::Status(401, None), 502, "told to answer 401"),
    ];
    for cached in [true, false] {
        let arguments: &[&str] =
            if cached { &["--model", "m=4"] } else { &["--model", "m=4", "--no-cache"] };
        for (mode, status, words) in wrong.clone() {
            let (upstream, server) = pair(mode.clone(), arguments).await;
            server.embed(&ask(json!(["a"]))).await.is_error(status).says(words);
            server.embed(&ask(json!(["b", "c"]))).await.is_error(status);
            let stats = server.stats().await;
            assert_eq!(stats["requests"]["in_flight"], 0, "{mode:?}");
            if cached {
                assert_eq!(stats["cache"]["entries"], 0, "{mode:?}");
                assert_eq!(stats["cache"]["keys_in_flight"], 0, "{mode:?}");
            }
            upstream.set(Mode::Good);
            assert_eq!(server.embed(&ask(json!(["d", "e"]))).await.status, 200, "{mode:?}");
        }
    }
}

#[tokio::test]
async fn one_bad_input_is_named_and_the_others_stay_cached() {
    for (mode, status) in
        [(Mode::Null, 502), (Mode::NanBase64, 502), (Mode::Bad(Fault::Status(400)), 400)]
    {
        let (upstream, server) = pair(mode.clone(), &[]).await;
        let body = ask(json!(["a", "b", "bad", "c", "d"]));
        let reply = server.embed(&body).await;
        reply.is_error(status).says("input 2 of 5");
        assert_eq!(reply.json["error"]["param"], "input[2]", "{mode:?}");
        assert_eq!(server.stats().await["cache"]["entries"], 4, "{mode:?}");
        let calls = upstream.calls();
        assert_eq!(server.embed(&ask(json!(["a", "b", "c", "d"]))).await.status, 200);
        assert_eq!(upstream.calls(), calls, "{mode:?}");
    }
}

#[tokio::test]
async fn a_refused_input_does_not_fail_the_request_it_was_batched_with() {
    let (_upstream, server) =
        pair(Mode::Bad(Fault::Status(400)), &["--model-delay", "300ms"]).await;
    let (bad, good) = tokio::join!(async { server.embed(&ask("bad")).await }, async {
        server.embed(&ask(json!(["good", "better"]))).await
    },);
    bad.is_error(400).says("told to answer 400");
    assert_eq!(good.vectors().len(), 2);
    // One that they shared; then one for each.
    let stats = server.stats().await;
    assert_eq!((&stats["model"]["calls"], &stats["model"]["searches"]), (&json!(3), &json!(2)));
}

#[tokio::test]
async fn statuses_are_passed_on_sensibly() {
    let (upstream, server) = pair(Mode::Good, &[]).await;
    for (theirs, ours) in
        [(400, 400), (413, 400), (422, 400), (404, 404), (403, 502), (504, 504), (503, 503)]
    {
        upstream.set(Mode::Status(theirs, None));
        // Another input each time: a refusal is remembered.
        server.embed(&ask(theirs.to_string())).await.is_error(ours).says("told to answer");
    }
    upstream.set(Mode::Status(429, Some("7")));
    let reply = server.embed(&ask("a")).await;
    reply.is_error(429);
    assert_eq!(reply.headers["retry-after"], "7");
}

#[tokio::test]
async fn a_stalled_upstream_is_a_504_in_time() {
    for arguments in [&["--upstream-timeout", "300ms"][..], &["--request-timeout", "300ms"][..]] {
        for cache in [&[][..], &["--no-cache"][..]] {
            let (upstream, server) = pair(Mode::Stall, &[arguments, cache].concat()).await;
            let began = std::time::Instant::now();
            server.embed(&ask("a")).await.is_error(504);
            assert!(began.elapsed() < Duration::from_secs(5));
            assert_eq!(server.stats().await["requests"]["in_flight"], 0);
            upstream.set(Mode::Good);
            assert_eq!(server.embed(&ask("b")).await.status, 200, "{arguments:?} {cache:?}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_502() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{unused}");
    let server = Running::start(&["--upstream", &url, "--upstream-retries", "1"]).await;
    server.embed(&ask("a")).await.is_error(502).says("cannot be reached");
}

#[tokio::test]
async fn failures_are_tried_again_so_many_times() {
    let (upstream, server) = pair(Mode::FailFirst(2), &["--upstream-retries", "2"]).await;
    assert_eq!(server.embed(&ask("a")).await.status, 200);
    assert_eq!(upstream.calls(), 3);
    upstream.set(Mode::Status(500, None));
    server.embed(&ask("b")).await.is_error(502);
    assert_eq!(upstream.calls(), 6);
    // What will not get better, or only after a while, is not tried again.
    for mode in [Mode::Status(404, None), Mode::Status(429, Some("60")), Mode::NoJson] {
        let calls = upstream.calls();
        upstream.set(mode);
        assert_ne!(server.embed(&ask("c")).await.status, 200);
        assert_eq!(upstream.calls(), calls + 1);
    }
}

#[tokio::test]
async fn the_same_text_at_the_same_time_is_asked_for_once() {
    let (upstream, server) = pair(Mode::Slow(Duration::from_millis(300)), &[]).await;
    let body = ask("same");
    let replies = futures_util::future::join_all((0..20).map(|_| server.embed(&body))).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(
        upstream.asked().iter().map(|(q, _)| q["input"].as_array().unwrap().len()).sum::<usize>(),
        1
    );
    assert_eq!(server.stats().await["cache"]["joins"], 19);
}

#[tokio::test]
async fn a_client_that_leaves_leaves_nothing_in_flight() {
    let arguments = ["--upstream-timeout", "1s", "--max-concurrency", "1"];
    let (upstream, server) = pair(Mode::Stall, &arguments).await;
    let client = reqwest::Client::builder().timeout(Duration::from_millis(200)).build().unwrap();
    let request = client.post(server.url("/v1/embeddings"));
    let request = request.header("content-type", "application/json").body(ask("a").to_string());
    assert!(request.send().await.unwrap_err().is_timeout());
    // The permit is free as soon as the client is gone, the key once the call has ended.
    server.until(|stats| stats["requests"]["in_flight"] == 0).await;
    server.until(|stats| stats["cache"]["keys_in_flight"] == 0).await;
    assert_eq!(server.stats().await["requests"]["abandoned"], 1);
    upstream.set(Mode::Good);
    assert_eq!(server.embed(&ask("a")).await.status, 200);
}

#[tokio::test]
async fn too_much_to_load_is_a_429() {
    let arguments = ["--model-queue", "4", "--upstream-timeout", "2s"];
    let (upstream, server) = pair(Mode::Slow(Duration::from_millis(500)), &arguments).await;
    let body = ask(json!(["a", "b", "c", "d"]));
    let (first, second) = tokio::join!(server.embed(&body), async {
        server.until(|stats| stats["cache"]["keys_in_flight"] == 4).await;
        server.embed(&ask("e")).await
    });
    assert_eq!(first.status, 200);
    second.is_error(429);
    assert_eq!(second.headers["retry-after"], "1");
    upstream.set(Mode::Good);
    assert_eq!(server.embed(&ask("e")).await.status, 200);
}

#[tokio::test]
async fn an_old_vector_is_served_while_the_upstream_fails() {
    let arguments = ["--ttl", "100ms", "--stale-if-error", "1h"];
    let (upstream, server) = pair(Mode::Good, &arguments).await;
    let fresh = server.embed(&ask("a")).await.vectors();
    upstream.set(Mode::Status(500, None));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.embed(&ask("a")).await.vectors(), fresh);
    server.embed(&ask("b")).await.is_error(502);
}

#[tokio::test]
async fn requests_under_way_end_before_the_server_does() {
    let (upstream, mut server) = pair(Mode::Slow(Duration::from_millis(500)), &[]).await;
    let request = server.client.post(server.url("/v1/embeddings"));
    let request = request.header("content-type", "application/json").body(ask("a").to_string());
    let answer = tokio::spawn(request.send());
    while upstream.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.tell_to_stop();
    assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    server.ended().await;
}

#[tokio::test]
async fn the_server_ends_even_if_a_request_does_not() {
    let (upstream, mut server) = pair(Mode::Stall, &["--shutdown-grace", "200ms"]).await;
    let request = server.client.post(server.url("/v1/embeddings"));
    let request = request.header("content-type", "application/json").body(ask("a").to_string());
    let _answer = tokio::spawn(request.send());
    while upstream.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.tell_to_stop();
    tokio::time::timeout(Duration::from_secs(5), server.ended()).await.unwrap();
}
