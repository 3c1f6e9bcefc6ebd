//! `/metrics`, in a process of its own: the recorder is that of the process.

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory as _;
use embedding_cache_server::Options;
use support::redis::Redis;
use support::upstream::{Mode, Upstream};
use support::{Running, ask};

/// All words that begin with `prefix`.
fn words<'a>(text: &'a str, prefix: &'a str) -> BTreeSet<&'a str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(move |c| !is_word(c)).filter(|word| word.starts_with(prefix)).collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[tokio::test]
async fn metrics_are_those_of_the_cache_and_of_the_server_and_the_dashboard_knows_them() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("cache").to_str().unwrap().to_owned();
    let (upstream, redis) = (Upstream::start(Mode::Good).await, Redis::start());
    let (url, redis) = (upstream.url(), redis.url());
    // Another one's counts are not these: the recorder is that of the process, so it comes first and
    // is asked for nothing.
    let server = Running::start(
        &[
            &["--upstream", &url, "--redis", &redis, "--tier-deadline", "5s"][..],
            &["--snapshot", &snapshot, "--snapshot-every", "100ms", "--model", support::MODEL],
        ]
        .concat(),
    )
    .await;
    for _ in 0..3 {
        server.embed(&ask("a")).await.vectors();
    }
    server.post("{").await.is_error(400);
    server.until(|stats| stats["snapshot"]["saves"].as_u64() > Some(0)).await;
    let response = server.client.get(server.url("/metrics")).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    let text = response.text().await.unwrap();
    for line in [
        r#"embedding_cache_hits_total{cache="default"} 2"#,
        r#"embedding_cache_misses_total{cache="default"} 1"#,
        r#"embedding_cache_entries{cache="default"} 1"#,
        r#"embedding_cache_load_seconds_count{cache="default"} 1"#,
        r#"embedding_cache_tier_misses_total{cache="default"} 1"#,
        r#"embedding_cache_tier_breaker_open{cache="default"} 0"#,
        r#"embedding_cache_server_requests_total{status="200"} 3"#,
        r#"embedding_cache_server_requests_total{status="400"} 1"#,
        r"embedding_cache_server_request_seconds_count 3",
        r"embedding_cache_server_model_calls_total 1",
        r"embedding_cache_server_model_call_seconds_count 1",
        r"embedding_cache_server_requests_in_flight 0",
        r"embedding_cache_server_snapshot_failures_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    // Each metric says what it is.
    let named = |prefix: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
        lines.filter_map(|line| line.split(' ').next()).collect::<Vec<_>>()
    };
    let (typed, helped) = (named("# TYPE "), named("# HELP "));
    assert!(typed.len() > 40, "{typed:?}");
    for name in typed {
        assert!(helped.contains(&name), "{name} has no help");
    }
    // Each that the dashboard or the document names is there.
    let dashboard = read("ops/dashboard.json");
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    let document = read("../docs/server.md");
    let mut names = words(&dashboard, "embedding_cache_");
    assert!(names.len() > 30, "{names:?}");
    names.extend(words(&document, "embedding_cache_"));
    let there = words(&text, "embedding_cache_");
    for name in names {
        // The start of several, as in `embedding_cache_tier_*`.
        let is_start = name.ends_with('_') && there.iter().any(|found| found.starts_with(name));
        assert!(there.contains(name) || is_start, "{name} is in no /metrics");
    }
}

#[test]
fn the_document_and_the_examples_name_the_options_that_there_are() {
    let command = Options::command();
    let mut options = BTreeSet::new();
    let mut variables = BTreeSet::new();
    for argument in command.get_arguments() {
        options.extend(argument.get_long().map(|name| format!("--{name}")));
        variables.extend(argument.get_env().map(|name| name.to_str().unwrap().to_owned()));
    }
    let document = read("../docs/server.md");
    for option in &options {
        let named = document.contains(&format!("`{option}`"));
        assert!(
            named || ["--help", "--version"].contains(&option.as_str()),
            "{option} is not told of"
        );
    }
    for file in ["../docs/server.md", "Dockerfile", "ops/compose.yaml"] {
        let text = read(file);
        for name in words(&text, "EMBEDDING_CACHE_SERVER_") {
            let is_start = name.ends_with('_');
            assert!(is_start || variables.contains(name), "{file}: {name} is no variable");
        }
        // What stands in a line of a command.
        for line in text.lines().filter(|line| line.contains("embedding-cache-server ")) {
            for word in
                line.split([' ', '`', '=']).filter(|word| word.starts_with("--") && word.len() > 2)
            {
                let known = options.contains(word) || OTHER.contains(&word);
                assert!(known, "{file}: {word} is no option: {line}");
            }
        }
    }
}

/// Options of cargo and docker that stand in the same lines.
const OTHER: [&str; 8] =
    ["--release", "--path", "--locked", "--bins", "--mount", "--from", "--chown", "--examples"];
