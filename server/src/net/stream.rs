//! A socket with the time-outs that HTTP has none of: for the headers, for a pause between requests,
//! and for an answer to be read, all of it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::connection::Connection;
use super::listener::Limits;
use super::unreadable;

/// The socket of one connection.
#[derive(Debug)]
pub(super) struct Stream {
    socket: TcpStream,
    connection: Arc<Connection>,
    limits: Arc<Limits>,
    wakes: Arc<TimedWaker>,
    waker: Waker,
    read_timer: Option<Pin<Box<Sleep>>>,
    /// Runs from the first byte that the client did not take until all are taken.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// What is written in place of a refusal without a body, and how much of it is written.
    refusal: Option<(Vec<u8>, usize)>,
}

/// Passes wakes on and notes when they came: under load a task runs a while after its socket became
/// readable, and a request has waited since then.
#[derive(Debug, Default)]
struct TimedWaker(Mutex<Woken>);

#[derive(Debug, Default)]
struct Woken {
    inner: Option<Waker>,
    at: Option<Instant>,
}

impl Wake for TimedWaker {
    fn wake(self: Arc<Self>) {
        let inner = {
            let mut woken = self.0.lock();
            woken.at.get_or_insert_with(Instant::now);
            woken.inner.clone()
        };
        if let Some(inner) = inner {
            inner.wake();
        }
    }
}

impl Stream {
    pub(super) fn new(socket: TcpStream, connection: Arc<Connection>, limits: Arc<Limits>) -> Self {
        let wakes = Arc::<TimedWaker>::default();
        let waker = Waker::from(Arc::clone(&wakes));
        let (read_timer, write_timer, refusal) = (None, None, None);
        Self { socket, connection, limits, wakes, waker, read_timer, write_timer, refusal }
    }

    /// Ends the answer and reads on for a while what the client still sends. A socket that is closed
    /// with bytes unread is reset, and the answer is lost to a client that has not read it yet (RFC
    /// 9112, section 9.6). Bounded by `limits`, in bytes and in time.
    pub(super) async fn close(mut self) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let limits = Arc::clone(&self.limits);
        let drain = async {
            if self.socket.shutdown().await.is_err() {
                return;
            }
            let mut left = limits.discard_bytes;
            let mut buffer = [0_u8; 8192];
            while left > 0 {
                match self.socket.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => left = left.saturating_sub(read),
                }
            }
        };
        let _ = tokio::time::timeout(limits.discard_timeout, drain).await;
    }

    /// Whether the client had its time to read; the connection is reset then, as what the kernel
    /// still holds of the answer would stay there.
    fn poll_write_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let timeout = self.limits.write_timeout;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        if let Err(error) = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "a connection that is not reset");
        }
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the answer was not read in time"))
    }
}

impl Stream {
    /// Whether `head` is the HTTP library's refusal of what is no HTTP. It has no body; one is written
    /// with it.
    fn is_refusal(&self, head: &[u8]) -> bool {
        self.refusal.is_some()
            || head.starts_with(b"HTTP/1.1 4") && self.connection.is_between_requests()
    }

    /// Writes the refusal with its body, and says that `head` is written once all of that is.
    fn poll_refusal(&mut self, cx: &mut Context<'_>, head: &[u8]) -> Poll<io::Result<usize>> {
        let (answer, mut written) =
            self.refusal.take().unwrap_or_else(|| (unreadable::answer(head), 0));
        while written < answer.len() {
            match Pin::new(&mut self.socket).poll_write(cx, &answer[written..]) {
                Poll::Ready(Ok(more)) if more > 0 => written += more,
                Poll::Ready(result) => return Poll::Ready(result),
                Poll::Pending => {
                    self.refusal = Some((answer, written));
                    return self.poll_write_timer(cx).map(Err);
                }
            }
        }
        Poll::Ready(Ok(head.len()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let woken = {
            let mut woken = this.wakes.0.lock();
            if woken.inner.as_ref().is_none_or(|inner| !inner.will_wake(cx.waker())) {
                woken.inner = Some(cx.waker().clone());
            }
            woken.at.take()
        };
        let before = buffer.filled().len();
        let mut timed = Context::from_waker(&this.waker);
        if let Poll::Ready(result) = Pin::new(&mut this.socket).poll_read(&mut timed, buffer) {
            if buffer.filled().len() > before {
                this.connection.received(woken.unwrap_or_else(Instant::now));
            }
            this.read_timer = None;
            return Poll::Ready(result);
        }
        let Some(deadline) = this.connection.read_deadline(&this.limits) else {
            this.read_timer = None;
            return Poll::Pending;
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        let timer =
            this.read_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        ready!(timer.as_mut().poll(cx));
        let late = "nothing more came in time";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, late)))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_refusal(bytes) {
            return this.poll_refusal(cx, bytes);
        }
        match Pin::new(&mut this.socket).poll_write(cx, bytes) {
            Poll::Pending => this.poll_write_timer(cx).map(Err),
            ready => ready,
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(head) = slices.first()
            && this.is_refusal(head)
        {
            return this.poll_refusal(cx, head);
        }
        match Pin::new(&mut this.socket).poll_write_vectored(cx, slices) {
            Poll::Pending => this.poll_write_timer(cx).map(Err),
            ready => ready,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// Called when everything was written: flushing a socket does nothing by itself.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
        this.write_timer = None;
        this.connection.written();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
