//! What is wrong is told at the start, and no password with it.

use std::time::{Duration, Instant};

use embedding_cache_redis::RedisTier;

use crate::support::{BlackHole, ENGINES, Engine, Server, flush, key, patient, vector};

#[tokio::test]
async fn an_address_that_cannot_be_read_is_named_without_its_password() {
    for address in
        ["", "cache:6379", "http://cache", "redis://:hunter2@", "redis://u:hunter2@h:99999"]
    {
        let error = RedisTier::builder(address).connect().await.unwrap_err();
        assert!(error.is_invalid_address(), "{address}: {error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
    let error = RedisTier::builder("redis://h").prefix("a{b").connect().await.unwrap_err();
    assert!(error.is_invalid_prefix() && error.to_string().contains("a{b"), "{error}");
    let error = RedisTier::builder("redis://h").prefix("a".repeat(65)).lazy().unwrap_err();
    assert!(error.is_invalid_prefix());
    let shown = format!("{:?}", RedisTier::builder("redis://u:hunter2@h"));
    assert!(!shown.contains("hunter2"), "{shown}");
    let lazy = RedisTier::builder("redis://u:hunter2@h").lazy().unwrap();
    assert!(!format!("{lazy:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_right_are_told() {
    for engine in ENGINES {
        let server = Server::start_with(engine, &["--requirepass", "right"]);
        let host = format!("127.0.0.1:{}", server.port);
        let connect = |name: &str| RedisTier::builder(format!("redis://{name}@{host}")).connect();
        for wrong in [":hunter2", "name:hunter2"] {
            let error = connect(wrong).await.unwrap_err();
            assert!(error.is_refused(), "{engine:?} {error}");
            assert!(error.to_string().contains(&host), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let error = RedisTier::builder(format!("redis://{host}")).connect().await.unwrap_err();
        assert!(error.is_refused(), "{error}");
        assert!(connect(":right").await.is_ok());
    }
    // A user who may not see the nonces; and one with the rights that are documented, and no other.
    let users = tempfile::tempdir().unwrap();
    let file = users.path().join("users.acl");
    let rights = "+get +mget +set +hgetall +hset +hsetnx +publish +subscribe";
    let text = format!(
        "user blind on >pw ~emb:ec1:* &emb:ec1:* {}\nuser cache on >pw ~emb:ec1:* &emb:ec1:inv {rights}\n",
        rights.replace("+hgetall ", "")
    );
    std::fs::write(&file, text).unwrap();
    let server = Server::start_with(Engine::Redis, &["--aclfile", file.to_str().unwrap()]);
    let connect = |name: &str| {
        RedisTier::builder(format!("redis://{name}:pw@127.0.0.1:{}", server.port)).connect()
    };
    assert!(connect("blind").await.unwrap_err().is_refused());
    let first = patient(connect("cache").await.unwrap());
    first.put(key(1), vector(1)).await.unwrap();
    flush(&first).await;
    let second = patient(connect("cache").await.unwrap());
    assert_eq!(second.get_through(&key(1)).await.unwrap(), vector(1));
    first.invalidate_all_through().await.unwrap();
    assert_eq!(first.stats().tier.failures_refused + second.stats().tier.failures_refused, 0);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_in_time_and_can_be_done_without() {
    let hole = BlackHole::start();
    for address in ["redis://127.0.0.1:1", &hole.address] {
        let started = Instant::now();
        let error = RedisTier::builder(address).connect().await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        assert!(RedisTier::builder(address).lazy().is_ok());
    }
}

#[cfg(not(feature = "tls"))]
#[tokio::test]
async fn an_address_of_tls_without_the_feature_says_so() {
    let error = RedisTier::builder("rediss://127.0.0.1").lazy().unwrap_err();
    assert!(error.is_invalid_address() && error.to_string().contains("tls"), "{error}");
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_takes_the_certificates_that_it_is_given_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl")
            .args(arguments)
            .output()
            .expect("openssl is needed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (ca, ca_key, cert, cert_key) =
        (path("ca.crt"), path("ca.key"), path("s.crt"), path("s.key"));
    let request = path("s.csr");
    let names = path("names");
    std::fs::write(&names, "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        &ca_key,
        "-out",
        &ca,
        "-days",
        "2",
        "-subj",
        "/CN=test authority",
    ]);
    openssl(&[
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        &cert_key,
        "-out",
        &request,
        "-subj",
        "/CN=server",
    ]);
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-CAcreateserial",
        "-out",
        &cert,
        "-days",
        "2",
        "-extfile",
        &names,
    ]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start_with(
        Engine::Redis,
        &[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &cert_key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            "no",
        ],
    );
    let address = format!("rediss://127.0.0.1:{port}");
    let pem = std::fs::read(&ca).unwrap();
    let tier = RedisTier::builder(&address).root_certificate(pem.clone()).connect().await.unwrap();
    let first = patient(tier);
    first.put(key(1), vector(1)).await.unwrap();
    flush(&first).await;
    let tier = RedisTier::builder(&address).root_certificate(pem).connect().await.unwrap();
    let second = patient(tier);
    assert_eq!(second.get_through(&key(1)).await.unwrap(), vector(1));
    // Nobody whom the system trusts has signed it.
    let error = RedisTier::builder(&address).connect().await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    drop(server);
}
