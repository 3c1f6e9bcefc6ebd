//! Several models behind one server: what one may take, and what is left for the others.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::Running;
use crate::support::upstream::{Mode, Upstream};

fn ask(model: &str, input: impl Into<Value>) -> Value {
    json!({"model": model, "input": input.into()})
}

async fn pair(mode: Mode, arguments: &[&str]) -> (Upstream, Running) {
    let upstream = Upstream::start(mode).await;
    let url = upstream.url();
    let server = Running::start(&[&["--upstream", url.as_str()], arguments].concat()).await;
    (upstream, server)
}

#[tokio::test]
async fn a_stalled_model_takes_nothing_from_a_good_one() {
    let stalled = ["stalled"].map(String::from);
    let three = ["stalled-a", "stalled-b", "stalled-c"].map(String::from);
    for models in [&stalled[..], &three[..]] {
        // The good model listed, or found out by asking: both ways.
        let (_upstream, server) =
            pair(Mode::StallModel("stalled"), &["--upstream-timeout", "60s"]).await;
        let wait: Vec<_> = (0..40)
            .map(|i| {
                let body = ask(&models[i % models.len()], format!("text {i}"));
                let request = server.client.post(server.url("/v1/embeddings"));
                let request = request.header("content-type", "application/json");
                tokio::spawn(request.body(body.to_string()).send())
            })
            .collect();
        server.until(|stats| stats["cache"]["keys_in_flight"] == 40).await;
        let began = Instant::now();
        for i in 0..40 {
            // Of several dimensions: lanes of their own.
            let mut body = ask("good", format!("text {i}"));
            body["dimensions"] = json!(2 + i % 3);
            assert_eq!(server.embed(&body).await.status, 200);
        }
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        assert!(wait.iter().all(|request| !request.is_finished()));
        wait.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test]
async fn the_limit_on_calls_counts_calls_whatever_they_are_for() {
    for arguments in
        [&["--model-concurrency", "2"][..], &["--model-concurrency", "2", "--no-cache"]]
    {
        let (upstream, server) = pair(Mode::Slow(Duration::from_millis(5)), arguments).await;
        let requests = (0..128).map(|i| {
            let server = &server;
            async move {
                let mut body = ask(["m", "n", "o"][i % 3], format!("text {i}"));
                body["dimensions"] = json!(1 + i);
                assert_eq!(server.embed(&body).await.status, 200);
            }
        });
        futures_util::future::join_all(requests).await;
        assert_eq!(upstream.most_in_flight(), 2, "{arguments:?}");
        assert_eq!(server.stats().await["model"]["calls_in_flight"], 0);
    }
}

#[tokio::test]
async fn a_flood_for_one_model_leaves_requests_and_queue_to_the_next() {
    let arguments = ["--max-concurrency", "18", "--model-queue", "90", "--upstream-timeout", "60s"];
    let (_upstream, server) = pair(Mode::StallModel("stalled"), &arguments).await;
    let flood: Vec<_> = (0..60)
        .map(|i| {
            let inputs: Vec<String> = (0..10).map(|j| format!("{i} {j}")).collect();
            let request = server.client.post(server.url("/v1/embeddings"));
            let request = request.header("content-type", "application/json");
            tokio::spawn(request.body(ask("stalled", inputs).to_string()).send())
        })
        .collect();
    server.until(|stats| stats["requests"]["refused"].as_u64() >= Some(40)).await;
    let good = server.embed(&ask("good", "text")).await;
    assert_eq!(good.status, 200, "{good:?}");
    flood.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn the_only_model_may_take_everything() {
    let arguments = ["--model", "m", "--model-concurrency", "3", "--model-delay", "0s"];
    let (upstream, server) = pair(Mode::Slow(Duration::from_millis(100)), &arguments).await;
    let requests = (0..12).map(|i| {
        let mut body = ask("m", format!("text {i}"));
        body["dimensions"] = json!(1 + i);
        let server = &server;
        async move { server.embed(&body).await.status }
    });
    assert!(futures_util::future::join_all(requests).await.iter().all(|status| *status == 200));
    assert_eq!(upstream.most_in_flight(), 3);
}
