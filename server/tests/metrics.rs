//! `/metrics`, in a process of its own: the recorder is that of the process.

mod support;

use support::{Running, ask};

#[tokio::test]
async fn metrics_are_those_of_the_cache_and_of_the_server() {
    let server = Running::start(&[]).await;
    for _ in 0..3 {
        server.embed(&ask("a")).await.vectors();
    }
    server.post("{").await.is_error(400);
    let response = server.client.get(server.url("/metrics")).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    let text = response.text().await.unwrap();
    for line in [
        r#"embedding_cache_hits_total{cache="default"} 2"#,
        r#"embedding_cache_misses_total{cache="default"} 1"#,
        r#"embedding_cache_entries{cache="default"} 1"#,
        r#"embedding_cache_load_seconds_count{cache="default"} 1"#,
        r#"embedding_cache_server_requests_total{status="200"} 3"#,
        r#"embedding_cache_server_requests_total{status="400"} 1"#,
        r"embedding_cache_server_request_seconds_count 3",
        r"embedding_cache_server_model_calls_total 1",
        r"embedding_cache_server_model_call_seconds_count 1",
        r"embedding_cache_server_requests_in_flight 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    // Each metric says what it is.
    let named = |prefix: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
        lines.filter_map(|line| line.split(' ').next()).collect::<Vec<_>>()
    };
    let (typed, helped) = (named("# TYPE "), named("# HELP "));
    assert!(typed.len() > 20, "{typed:?}");
    for name in typed {
        assert!(helped.contains(&name), "{name} has no help");
    }
}
