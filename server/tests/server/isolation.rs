//! One client's input, or an upstream that is down, and what it costs the others.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::upstream::{Fault, Mode, Upstream, is_bad};
use crate::support::{Running, request};

async fn pair(mode: Mode, arguments: &[&str]) -> (Upstream, Running) {
    let upstream = Upstream::start(mode).await;
    let url = upstream.url();
    let mut all = vec!["--upstream", url.as_str()];
    all.extend(arguments);
    let server = Running::start(&all).await;
    (upstream, server)
}

fn ask(input: impl Into<Value>) -> Value {
    json!({"model": "m", "input": input.into()})
}

const FAULTS: [(Fault, u16); 10] = [
    (Fault::Status(400), 400),
    (Fault::Status(413), 400),
    (Fault::Status(422), 400),
    (Fault::Status(500), 502),
    (Fault::Status(502), 502),
    (Fault::NanLiteral, 502),
    (Fault::LeftOut, 502),
    (Fault::Stall, 504),
    (Fault::BreakOff, 502),
    (Fault::ErrorObject, 502),
];

#[tokio::test]
async fn every_way_to_fail_a_call_fails_the_one_request_with_the_bad_input() {
    for (fault, status) in FAULTS {
        let arguments =
            ["--model-delay", "150ms", "--upstream-timeout", "400ms", "--upstream-retries", "0"];
        let (upstream, server) = pair(Mode::Bad(fault), &arguments).await;
        // Two have the bad input among good ones, the others have good ones alone.
        let requests: Vec<Value> = (0..8)
            .map(|i| match i {
                0 => ask("bad"),
                1 => ask(json!(["good a", "bad too", "good b"])),
                _ => ask(json!([format!("good {i}"), format!("better {i}")])),
            })
            .collect();
        let replies = requests.iter().map(|body| server.embed(body));
        let replies = futures_util::future::join_all(replies).await;
        replies[0].is_error(status);
        replies[1].is_error(status).says("input 1 of 3");
        assert_eq!(replies[1].json["error"]["param"], "input[1]", "{fault:?}");
        for reply in &replies[2..] {
            assert_eq!(reply.vectors().len(), 2, "{fault:?}");
        }
        let shared = upstream.asked()[0].0["input"].as_array().unwrap().len();
        assert_eq!(shared, 16, "{fault:?}: they did share a call");
        // Every call is counted, and there are few: one shared, one for each client, the search.
        let stats = server.stats().await;
        assert_eq!(stats["model"]["calls"], upstream.calls(), "{fault:?}");
        assert!(upstream.calls() <= 1 + 8 + 4 + 2, "{fault:?}: {}", upstream.calls());
    }
}

#[tokio::test]
async fn whoever_waits_for_a_key_of_a_bad_request_gets_it() {
    let arguments = ["--upstream-retries", "0", "--upstream-timeout", "500ms"];
    let (upstream, server) = pair(Mode::Bad(Fault::Stall), &arguments).await;
    let (bad, both) = (ask(json!(["bad", "common"])), ask("common"));
    let (bad, good) = tokio::join!(server.embed(&bad), async {
        while upstream.calls() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.embed(&both).await
    });
    bad.is_error(504).says("input 0 of 2");
    assert_eq!(good.vectors().len(), 1);
    assert!(server.stats().await["cache"]["joins"].as_u64() >= Some(1));
}

#[tokio::test]
async fn a_client_that_makes_calls_fail_is_kept_apart() {
    let arguments = ["--upstream-retries", "0", "--model-delay", "150ms"];
    let (upstream, server) = pair(Mode::Bad(Fault::Status(500)), &arguments).await;
    // One connection for the bad client, which asks twice.
    let mut bad = server.raw(&request(&ask("bad 1"))).await;
    let mut buffer = vec![0; 4096];
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let read = bad.read(&mut buffer).await.unwrap();
    assert!(buffer[..read].starts_with(b"HTTP/1.1 502"));
    let before = upstream.asked().len();
    bad.write_all(&request(&ask("bad 2"))).await.unwrap();
    let (one, two) = (ask("good 1"), ask("good 2"));
    let (one, two) = tokio::join!(server.embed(&one), server.embed(&two));
    assert_eq!((one.status, two.status), (200, 200));
    let read = bad.read(&mut buffer).await.unwrap();
    assert!(buffer[..read].starts_with(b"HTTP/1.1 502"));
    let asked = upstream.asked();
    // No call after the first had good inputs and bad ones.
    for (question, _) in &asked[before..] {
        let inputs = question["input"].as_array().unwrap();
        assert!(inputs.iter().all(is_bad) || !inputs.iter().any(is_bad), "{question}");
    }
    assert_eq!(asked.len() - before, 2);
}

#[tokio::test]
async fn a_request_that_is_refused_altogether_costs_a_bounded_number_of_calls_once() {
    let (upstream, server) = pair(Mode::Status(400, None), &[]).await;
    let inputs: Vec<String> = (0..2048).map(|i| format!("input {i}")).collect();
    let body = ask(inputs);
    server.embed(&body).await.is_error(400);
    // One for each 64, and 32 to find the one at fault.
    assert_eq!(upstream.calls(), 32 + 32);
    let stats = server.stats().await;
    assert_eq!(stats["model"]["calls"], upstream.calls());
    assert_eq!(stats["model"]["searches"], 32);
    // Again, from another client: it is remembered.
    server.embed(&body).await.is_error(400).says("told to answer 400");
    let other = reqwest::Client::builder().no_proxy().build().unwrap();
    let again = other.post(server.url("/v1/embeddings")).header("content-type", "application/json");
    server.send(again.body(body.to_string())).await.is_error(400);
    assert_eq!(upstream.calls(), 32 + 32);
    // What was not told apart is not held against its members.
    upstream.set(Mode::Good);
    assert_eq!(server.embed(&ask("input 7")).await.status, 200);
}

#[tokio::test]
async fn a_refused_input_is_not_asked_for_again_at_once_and_the_others_are() {
    for fault in [Fault::Status(400), Fault::Status(500), Fault::NanLiteral] {
        let (upstream, server) = pair(Mode::Bad(fault), &["--upstream-retries", "0"]).await;
        let body = ask(json!(["a", "bad", "b"]));
        server.embed(&body).await.is_error(if matches!(fault, Fault::Status(400)) {
            400
        } else {
            502
        });
        let calls = upstream.calls();
        server.embed(&body).await.says("input 1 of 3");
        server.embed(&ask(json!(["c", "bad"]))).await.says("input 1 of 2");
        assert_eq!(upstream.calls(), calls, "{fault:?}");
        assert_eq!(server.embed(&ask(json!(["a", "b", "c"]))).await.status, 200);
    }
}

#[tokio::test]
async fn an_upstream_that_is_down_is_left_alone_and_found_again() {
    for mode in [Mode::Status(500, None), Mode::Status(503, None), Mode::BreakOff] {
        let (upstream, server) = pair(mode.clone(), &["--upstream-retries", "0"]).await;
        let inputs: Vec<String> = (0..2048).map(|i| format!("input {i}")).collect();
        let reply = server.embed(&ask(inputs)).await;
        assert!(reply.status == 502 || reply.status == 503, "{mode:?} {reply:?}");
        server.until(|stats| !stats["model"]["breakers_open"]["m"].is_null()).await;
        let calls = upstream.calls();
        // Five failures, what was under way meanwhile, and the probe.
        assert!(calls <= 5 + 8 + 1, "{mode:?}: {calls}");
        let reply = server.embed(&ask("a")).await;
        reply.is_error(503).says("is left alone");
        assert_eq!(reply.json["error"]["code"], "upstream_down");
        assert!(reply.headers.contains_key("retry-after"));
        let ready = server.client.get(server.url("/ready")).send().await.unwrap();
        assert_eq!(ready.status(), 503);
        assert_eq!(upstream.calls(), calls);
        upstream.set(Mode::Good);
        // Readiness alone finds it again, as nobody sends a server requests that is not ready.
        let began = Instant::now();
        while server.client.get(server.url("/ready")).send().await.unwrap().status() != 200 {
            assert!(began.elapsed() < Duration::from_secs(20), "{mode:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(server.embed(&ask("a")).await.status, 200);
    }
}

#[tokio::test]
async fn bad_inputs_of_one_client_do_not_open_the_breaker_for_the_others() {
    let (_upstream, server) =
        pair(Mode::Bad(Fault::Status(500)), &["--upstream-retries", "0"]).await;
    for i in 0..20 {
        server.embed(&ask(format!("bad {i}"))).await.is_error(502);
    }
    let stats = server.stats().await;
    assert!(stats["model"]["probes"].as_u64().unwrap() >= 1, "{stats}");
    assert_eq!(stats["model"]["breakers_open"], json!({}));
    assert_eq!(server.embed(&ask("good")).await.status, 200);
}

#[tokio::test]
async fn eight_clients_of_which_one_is_bad_are_answered_as_if_it_were_not_there() {
    for fault in [Fault::Status(500), Fault::NanLiteral, Fault::LeftOut] {
        let usual = slowest_good(None).await;
        let beside = slowest_good(Some(fault)).await;
        // Twice the usual time; and what the machine does meanwhile.
        assert!(beside < 2 * usual + Duration::from_millis(400), "{fault:?}: {beside:?} {usual:?}");
    }
}

/// How long the slowest request of seven good clients took, beside one with bad inputs.
async fn slowest_good(fault: Option<Fault>) -> Duration {
    let (_upstream, server) =
        pair(fault.map_or(Mode::Good, Mode::Bad), &["--model-delay", "5ms"]).await;
    let until = Instant::now() + Duration::from_millis(700);
    let client = |client: usize| {
        let server = &server;
        async move {
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            let mut slowest = Duration::ZERO;
            let mut round = 0;
            while Instant::now() < until {
                let word = if client == 0 && fault.is_some() { "bad" } else { "good" };
                let body =
                    ask(json!([format!("{word} {client} {round}"), format!("{client} {round}")]));
                let request = http.post(server.url("/v1/embeddings"));
                let request = request.header("content-type", "application/json");
                let began = Instant::now();
                let reply = server.send(request.body(body.to_string())).await;
                if word == "good" {
                    assert_eq!(reply.status, 200, "{fault:?} {reply:?}");
                    slowest = slowest.max(began.elapsed());
                } else {
                    assert_ne!(reply.status, 200);
                }
                round += 1;
            }
            slowest
        }
    };
    let slowest = futures_util::future::join_all((0..8).map(client)).await;
    slowest.into_iter().max().unwrap()
}
