//! What is known of one connection, by its stream and by the handlers of its requests.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::monitor::Watch;
use crate::net::Active;
use crate::service::Suspect;

use super::listener::Limits;

/// One connection. The stream tells it of bytes, the handlers of requests and answers.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Whether its inputs made calls fail.
    pub(crate) suspect: Suspect,
    state: Mutex<State>,
}

/// A short lock: nothing but the fields is touched under it.
#[derive(Debug)]
struct State {
    stage: ReadStage,
    /// When the first byte of the request that is under way had come.
    began: Option<Instant>,
    /// Whether there is an answer to what was asked last.
    answered: bool,
    /// Whom to tell once it is written.
    answer: Option<(Watch, Active)>,
}

/// What is waited for from the client, since when.
#[derive(Debug, Clone, Copy)]
enum ReadStage {
    /// A request.
    Idle(Instant),
    /// The rest of its headers.
    Headers(Instant),
    /// Nothing that the stream should end: a body has a time-out of its own.
    Request,
}

impl Connection {
    pub(crate) fn new() -> Self {
        let stage = ReadStage::Idle(Instant::now());
        let state = State { stage, began: None, answered: false, answer: None };
        Self { suspect: Suspect::default(), state: Mutex::new(state) }
    }

    /// Bytes had come at `when`.
    pub(super) fn received(&self, when: Instant) {
        let mut state = self.state.lock();
        if let ReadStage::Idle(_) = state.stage {
            state.stage = ReadStage::Headers(when);
            state.began = Some(when);
        }
    }

    /// When the stream should give up if nothing more comes.
    pub(super) fn read_deadline(&self, limits: &Limits) -> Option<Instant> {
        let (since, limit): (Instant, Duration) = match self.state.lock().stage {
            ReadStage::Idle(since) => (since, limits.idle_timeout),
            ReadStage::Headers(since) => (since, limits.header_timeout),
            ReadStage::Request => return None,
        };
        since.checked_add(limit)
    }

    /// The headers are there. Says when their first byte was.
    pub(super) fn request_began(&self) {
        self.state.lock().stage = ReadStage::Request;
    }

    /// Whether nobody answers a request now: what is written then is the HTTP library's own refusal
    /// of something that it could not read.
    pub(super) fn is_between_requests(&self) -> bool {
        !matches!(self.state.lock().stage, ReadStage::Request)
    }

    /// When the first byte of the request had come.
    pub(crate) fn began(&self) -> Instant {
        self.state.lock().began.unwrap_or_else(Instant::now)
    }

    /// To be told when the answer is written; dropped if the connection ends before.
    pub(crate) fn finish_when_written(&self, watch: Watch, active: Active) {
        let before = self.state.lock().answer.replace((watch, active));
        drop(before);
    }

    /// The request has its answer, to be written.
    pub(super) fn answered(&self) {
        self.state.lock().answered = true;
    }

    /// Everything that was to be written is with the kernel. After an answer, that is its end.
    pub(super) fn written(&self) {
        let answer = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.answered) {
                return;
            }
            state.stage = ReadStage::Idle(Instant::now());
            state.began = None;
            state.answer.take()
        };
        if let Some((watch, active)) = answer {
            watch.written();
            drop(active);
        }
    }
}
