//! Accepts connections and serves each in a task of its own.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt as _;

use super::connection::Connection;
use super::stream::Stream;

/// The most bytes of a request's first line and headers, and of what is read of a body at a time.
const READ_BUFFER: usize = 64 << 10;

/// Connections over the limit that are told so at a time; further ones are closed without a word.
const TOLD: usize = 64;

/// The pause after the system could not give a connection (out of descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What bounds a connection.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    /// As many permits, of which each connection holds one.
    pub(crate) places: Arc<Semaphore>,
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) write_timeout: Duration,
    /// What is read and thrown away of a client that still sends when it was answered.
    pub(crate) discard_bytes: usize,
    pub(crate) discard_timeout: Duration,
}

/// What the connections are told of the server. The end is that the channel is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Serving,
    /// Each connection ends with the request that it is at.
    Stopping,
}

/// Serves `router` on `listener` until it is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Arc<Limits>,
    stage: watch::Receiver<Stage>,
) {
    let told = Arc::new(Semaphore::new(TOLD));
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                // That of the one connection, which is gone, or of the process, which has to wait.
                tracing::debug!(%error, "a connection could not be accepted");
                if !is_of_the_connection(&error) {
                    tracing::warn!(%error, "connections cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let limits = Arc::clone(&limits);
        match Arc::clone(&limits.places).try_acquire_owned() {
            Ok(place) => {
                let connection = serve_connection(socket, router.clone(), limits, stage.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(_) => {
                if let Ok(turn) = Arc::clone(&told).try_acquire_owned() {
                    tokio::spawn(async move {
                        refuse(socket, limits).await;
                        drop(turn);
                    });
                }
            }
        }
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn refuse(socket: TcpStream, limits: Arc<Limits>) {
    let message = format!("{} connections are open, which is the limit", limits.max_connections);
    let body = serde_json::json!({
        "error": {
            "message": message,
            "type": "server_error",
            "param": null,
            "code": "too_many_connections",
        }
    })
    .to_string();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    // The buffer of a new socket has room for it.
    if socket.writable().await.is_ok() && socket.try_write(answer.as_bytes()).is_ok() {
        Stream::new(socket, Arc::new(Connection::new()), limits).close().await;
    }
}

async fn serve_connection(
    socket: TcpStream,
    router: Router,
    limits: Arc<Limits>,
    mut stage: watch::Receiver<Stage>,
) {
    // An answer is in one buffer: waiting for more to send gains nothing.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "a connection without TCP_NODELAY");
    }
    let connection = Arc::new(Connection::new());
    let stream = Stream::new(socket, Arc::clone(&connection), limits);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        answer(router.clone(), Arc::clone(&connection), request)
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).max_buf_size(READ_BUFFER);
    server.keep_alive(*stage.borrow_and_update() == Stage::Serving);
    // The time-outs are the stream's: hyper's own for headers would end idle connections too.
    server.header_read_timeout(None);
    let mut http = server.serve_connection(TokioIo::new(stream), service);
    let result = loop {
        let polled = std::future::poll_fn(|cx| http.poll_without_shutdown(cx));
        tokio::select! {
            biased;
            result = polled => break result,
            changed = stage.changed() => match changed {
                Ok(()) => Pin::new(&mut http).graceful_shutdown(),
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
        // Of what could not be read: the client may still be sending it.
        if !error.is_parse() {
            return;
        }
    }
    let stream = http.into_parts().io.into_inner();
    tokio::select! {
        () = stream.close() => {}
        () = ended(stage) => {}
    }
}

async fn ended(mut stage: watch::Receiver<Stage>) {
    while stage.changed().await.is_ok() {}
}

type Answer = Result<Response<Body>, std::convert::Infallible>;

/// Boxed: hyper wants a future that can be moved.
fn answer(
    router: Router,
    connection: Arc<Connection>,
    request: hyper::Request<Incoming>,
) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
    connection.request_began();
    let mut request: Request = request.map(Body::new);
    request.extensions_mut().insert(Arc::clone(&connection));
    Box::pin(async move {
        let answer = router.oneshot(request).await;
        connection.answered();
        answer
    })
}
