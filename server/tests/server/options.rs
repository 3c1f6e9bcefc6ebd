//! Options that cannot be satisfied are refused at the start, by the program and by the library.

use clap::Parser as _;
use embedding_cache_server::{Options, Server};

#[tokio::test]
async fn contradictions_are_refused() {
    for (arguments, words) in [
        (&["--model", "a,b,a"][..], "twice"),
        (&["--model", "a=1000"][..], "768"),
        (&["--listen", "192.0.2.1:1"][..], "192.0.2.1:1"),
    ] {
        let fixed = ["embedding-cache-server", "--listen", "127.0.0.1:0"];
        let arguments = if arguments[0] == "--listen" {
            [&fixed[..1], arguments].concat()
        } else {
            [&fixed[..], arguments].concat()
        };
        let options = Options::try_parse_from(arguments).unwrap();
        let error = Server::bind(options).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn nonsense_is_refused() {
    for arguments in [
        &["--max-concurrency", "0"][..],
        &["--max-batch", "0"],
        &["--max-body-bytes", "0"],
        &["--cache-mb", "0"],
        &["--cache-mb", "18446744073709551615"],
        &["--ttl", "-1s"],
        &["--upstream", "example.com"],
        &["--upstream-retries", "11"],
        &["--listen", "everywhere"],
        &["--model", ""],
    ] {
        let arguments = [&["embedding-cache-server"], arguments].concat();
        let wrong = match Options::try_parse_from(&arguments) {
            Ok(options) => options.check().is_err(),
            Err(_) => true,
        };
        assert!(wrong, "{arguments:?}");
    }
}
