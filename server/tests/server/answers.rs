//! What the server answers, with the built-in embedder: forms of input, encodings, hits and misses.

use crate::support::{MODEL, Running, ask};
use base64::Engine as _;
use serde_json::json;

#[tokio::test]
async fn a_hit_is_the_same_answer_as_the_miss_before() {
    let server = Running::start(&[]).await;
    let first = server.embed(&ask(json!(["red apples", "green pears"]))).await;
    let second = server.embed(&ask(json!(["red apples", "green pears"]))).await;
    assert_eq!(first.json, second.json);
    assert_eq!(first.vectors()[0].len(), 768);
    assert_eq!(first.json["object"], "list");
    assert_eq!(first.json["model"], MODEL);
    // 10 and 11 bytes: 3 tokens each.
    assert_eq!(first.json["usage"], json!({"prompt_tokens": 6, "total_tokens": 6}));

    let stats = server.stats().await;
    assert_eq!((&stats["cache"]["hits"], &stats["cache"]["misses"]), (&json!(2), &json!(2)));
    assert_eq!(stats["model"]["inputs"], 2);
    assert_eq!(stats["requests"]["answered"], 2);
    assert!(stats["latency_ms"]["p50"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn hits_and_misses_of_one_request_keep_their_order() {
    let server = Running::start(&[]).await;
    let texts = ["a", "b", "c", "d", "e"];
    let mut single = Vec::new();
    for text in texts {
        single.push(server.embed(&ask(text)).await.vectors().remove(0));
    }
    let mixed = server.embed(&ask(json!(["x", "c", "a", "y", "e", "x", "b"]))).await.vectors();
    assert_eq!(
        [&mixed[1], &mixed[2], &mixed[4], &mixed[6]],
        [&single[2], &single[0], &single[4], &single[1]]
    );
    assert_eq!(mixed[0], mixed[5]);
    assert_ne!(mixed[0], mixed[3]);
    // "x" stood there twice and was embedded once.
    assert_eq!(server.stats().await["model"]["inputs"], 7);
}

#[tokio::test]
async fn base64_holds_the_floats_of_the_list() {
    let server = Running::start(&[]).await;
    let list = server.embed(&ask("the same text")).await.vectors().remove(0);
    let body = json!({"model": MODEL, "input": "the same text", "encoding_format": "base64"});
    let reply = server.embed(&body).await;
    let text = reply.json["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let floats: Vec<f32> =
        bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    assert_eq!(floats, list);
}

#[tokio::test]
async fn token_arrays_are_inputs_and_count_their_length() {
    let server = Running::start(&[]).await;
    let one = server.embed(&ask(json!([1, 2, 3]))).await;
    assert_eq!(one.vectors().len(), 1);
    assert_eq!(one.json["usage"]["total_tokens"], 3);
    let two = server.embed(&ask(json!([[1, 2, 3], [4]]))).await;
    assert_eq!(two.vectors()[0], one.vectors()[0]);
    assert_eq!(two.json["usage"]["total_tokens"], 4);
    // The text of the ids is another input than the ids.
    server.embed(&ask("1 2 3")).await.vectors();
    assert_eq!(server.stats().await["cache"]["entries"], 3);
}

#[tokio::test]
async fn dimensions_are_part_of_what_is_cached() {
    let server = Running::start(&[]).await;
    let body = |n: usize| json!({"model": MODEL, "input": "text", "dimensions": n});
    for n in [1, 3, 256, 767, 768] {
        let vector = server.embed(&body(n)).await.vectors().remove(0);
        assert_eq!(vector.len(), n);
        let length = vector.iter().map(|x| x * x).sum::<f32>();
        assert!((length - 1.0).abs() < 1e-4, "{n}: {length}");
    }
    // All dimensions, asked for or not, are the same vector.
    server.embed(&ask("text")).await.vectors();
    assert_eq!(server.stats().await["cache"]["entries"], 5);
    server.embed(&body(769)).await.is_error(400).says("768");
}

#[tokio::test]
async fn without_a_cache_the_answers_are_the_same() {
    let (with, without) = (Running::start(&[]).await, Running::start(&["--no-cache"]).await);
    let body = ask(json!(["one", "two", "two"]));
    let expected = with.embed(&body).await.json;
    assert_eq!(without.embed(&body).await.json, expected);
    assert_eq!(without.embed(&body).await.json, expected);
    let stats = without.stats().await;
    assert!(stats["cache"].is_null());
    assert_eq!(stats["model"]["inputs"], 6);
    let request = without.client.delete(without.url("/cache?model=m"));
    without.send(request).await.is_error(404);
}

#[tokio::test]
async fn a_model_can_have_another_name_and_fewer_dimensions() {
    let server = Running::start(&["--model", "small=64,text-embedding-3-small"]).await;
    let small = server.embed(&json!({"model": "small", "input": "a"})).await.vectors();
    assert_eq!(small[0].len(), 64);
    let other = server.embed(&json!({"model": "text-embedding-3-small", "input": "a"})).await;
    assert_eq!(other.vectors()[0].len(), 768);
    let reply = server.embed(&ask("a")).await;
    reply.is_error(404).says("small, text-embedding-3-small");
    assert_eq!(reply.json["error"]["code"], "model_not_found");
    assert_eq!(reply.json["error"]["param"], "model");
}

#[tokio::test]
async fn a_model_is_removed_from_the_cache_by_its_name() {
    let server = Running::start(&["--model", "m1,m2"]).await;
    for model in ["m1", "m2"] {
        server.embed(&json!({"model": model, "input": ["a", "b"]})).await.vectors();
    }
    let delete = |query: &str| server.client.delete(server.url(&format!("/cache{query}")));
    for wrong in ["", "?model=", "?modle=m1", "?model=m1&all=1"] {
        server.send(delete(wrong)).await.is_error(400);
    }
    let reply = server.send(delete("?model=m%31")).await;
    assert_eq!((reply.status, reply.json), (200, json!({"model": "m1", "removed": 2})));
    assert_eq!(server.stats().await["cache"]["entries"], 2);
}

#[tokio::test]
async fn vectors_leave_after_their_time() {
    let server = Running::start(&["--ttl", "300ms"]).await;
    server.embed(&ask("a")).await.vectors();
    server.embed(&ask("a")).await.vectors();
    assert_eq!(server.stats().await["model"]["inputs"], 1);
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    server.embed(&ask("a")).await.vectors();
    assert_eq!(server.stats().await["model"]["inputs"], 2);
}

#[tokio::test]
async fn the_other_routes_answer() {
    let server = Running::start(&[]).await;
    let health = server.send(server.client.get(server.url("/health"))).await;
    assert_eq!((health.status, health.json), (200, json!({"status": "ok"})));
    let page = server.client.get(server.url("/")).send().await.unwrap();
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let page = page.text().await.unwrap();
    for id in ["hit-ratio", "entries", "bytes", "evictions", "p50", "p99", "rps", "model-calls"] {
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
    assert!(!page.contains("http://") && !page.contains("https://"), "needs nothing from outside");
}

#[tokio::test]
async fn a_small_cache_evicts_and_goes_on_to_answer() {
    // 1 MiB holds some 320 vectors of 768 dimensions.
    let server = Running::start(&["--cache-mb", "1"]).await;
    for round in 0..10 {
        let texts: Vec<String> = (0..100).map(|i| format!("text {round} {i}")).collect();
        assert_eq!(server.embed(&ask(texts)).await.vectors().len(), 100);
    }
    let cache = server.stats().await["cache"].clone();
    assert!(cache["evictions"].as_u64().unwrap() > 500, "{cache}");
    assert!(cache["bytes"].as_u64().unwrap() <= 1 << 20, "{cache}");
}
