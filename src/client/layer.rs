//! Layers: code of the program's around each call of a client.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::CallReply;
use super::decode::CallTarget;
use crate::base::catch::catch;
use crate::error::{Error, Result};

/// Code that runs around each call of a client, or around each attempt at it: to add headers, to
/// measure, to log, to refuse, or to answer by itself.
///
/// Closures implement it: see [`layer`](crate::client::ServiceClientBuilder::layer). The first layer
/// that was added is the outermost. A layer runs on the calling thread, so it must not block for
/// long; what it gives to [`LayeredCall::map`] runs when the answer is there, on the thread that
/// waits for it or on the client's callback thread.
pub trait CallLayer: Send + Sync + 'static {
    /// Handles a call: runs `next` with it, or ends it.
    fn call(&self, call: &mut OutgoingCall<'_>, next: NextCall<'_>) -> LayeredCall;
}

impl<F> CallLayer for F
where
    F: Fn(&mut OutgoingCall<'_>, NextCall<'_>) -> LayeredCall + Send + Sync + 'static,
{
    fn call(&self, call: &mut OutgoingCall<'_>, next: NextCall<'_>) -> LayeredCall {
        self(call, next)
    }
}

/// A call on its way through the layers of a client.
pub struct OutgoingCall<'a> {
    pub(super) target: CallTarget<'a>,
    pub(super) payload: &'a str,
    /// The number of the attempt; 0 in the layers around the whole call.
    pub(super) attempt: u32,
    pub(super) deadline: Instant,
    pub(super) headers: Vec<(String, String)>,
}

impl OutgoingCall<'_> {
    /// Returns the called service.
    pub fn service(&self) -> &str {
        self.target.service
    }

    /// Returns the called action.
    pub fn action(&self) -> &str {
        self.target.action
    }

    /// Returns the payload as JSON text.
    pub fn payload(&self) -> &str {
        self.payload
    }

    /// Returns the number of the attempt, from 1 on; `None` in the layers around the whole call.
    pub fn attempt(&self) -> Option<u32> {
        (self.attempt > 0).then_some(self.attempt)
    }

    /// Returns the time left until the deadline.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Returns the header of that name, as the call's options or a layer have set it last.
    pub fn header(&self, name: &str) -> Option<&str> {
        let set = self.headers.iter().rev().find(|(set, _)| set == name);
        set.map(|(_, value)| &**value)
    }

    /// Sets a header of the envelope, which the handler reads by
    /// [`Context::header`](crate::Context::header).
    pub fn set_header(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        self.headers.retain(|(set, _)| *set != name);
        self.headers.push((name, value.into()));
    }
}

impl fmt::Debug for OutgoingCall<'_> {
    /// Shows neither payload nor headers, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingCall")
            .field("service", &self.target.service)
            .field("action", &self.target.action)
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

/// The rest of a call's way: the layers further in, and then the call itself.
pub struct NextCall<'a> {
    pub(super) layers: &'a [Arc<dyn CallLayer>],
    pub(super) start: &'a mut dyn FnMut(&mut OutgoingCall<'_>) -> LayeredCall,
}

impl NextCall<'_> {
    /// Goes on with the call.
    pub fn run(self, call: &mut OutgoingCall<'_>) -> LayeredCall {
        match self.layers.split_first() {
            Some((first, layers)) => first.call(
                call,
                NextCall {
                    layers,
                    start: self.start,
                },
            ),
            None => (self.start)(call),
        }
    }
}

impl fmt::Debug for NextCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NextCall").finish_non_exhaustive()
    }
}

/// The code that a layer runs on an answer or an error.
pub(super) type OnEnd = Box<dyn FnOnce(Result<CallReply>) -> Result<CallReply> + Send>;

/// Passes a result through the code of the layers, innermost first. A panic of one is an error of the
/// call, which the layers further out get.
pub(super) fn run_on_end(
    on_end: Vec<OnEnd>,
    target: CallTarget<'_>,
    result: Result<CallReply>,
) -> Result<CallReply> {
    on_end.into_iter().fold(result, |result, on_end| {
        let caught = catch(|| keeping_what_ran(on_end, result));
        caught.unwrap_or_else(|panic| Err(target.layer_panicked(&panic)))
    })
}

/// A call that has gone through a layer: its answer may be there, or still to come.
#[must_use = "the call that a layer returns is the one that its caller gets"]
pub struct LayeredCall {
    /// The result, unless it is still to come.
    pub(super) ended: Option<Result<CallReply>>,
    /// The code of the layers for the result that is still to come, innermost first.
    pub(super) on_end: Vec<OnEnd>,
}

impl LayeredCall {
    /// Creates a call that is under way.
    pub(super) fn pending() -> Self {
        Self {
            ended: None,
            on_end: Vec::new(),
        }
    }

    /// Returns true if its request may have run, or be on its way.
    pub(super) fn may_have_run(&self) -> bool {
        self.ended.as_ref().is_none_or(may_have_run)
    }

    /// Creates a call that has ended: the answer of a layer that does not run `next`.
    pub fn ended(result: Result<CallReply>) -> Self {
        Self {
            ended: Some(result),
            on_end: Vec::new(),
        }
    }

    /// Creates a call that a layer refuses; its error is [`ErrorKind::Rejected`](crate::ErrorKind::Rejected).
    pub fn refused(reason: impl fmt::Display) -> Self {
        Self::ended(Err(Error::refused_by_layer(&reason)))
    }

    /// Passes the result through `on_end` when it is there: at once, or when the reply to an
    /// asynchronous call has come and is waited for. `on_end` does not run for a call that is
    /// dropped before.
    pub fn map(
        mut self,
        on_end: impl FnOnce(Result<CallReply>) -> Result<CallReply> + Send + 'static,
    ) -> Self {
        match self.ended {
            Some(result) => Self::ended(keeping_what_ran(on_end, result)),
            None => {
                self.on_end.push(Box::new(on_end));
                self
            }
        }
    }
}

/// Returns true if the request of a call that has ended like this may have run.
fn may_have_run(result: &Result<CallReply>) -> bool {
    (result.as_ref()).map_or_else(|error| !error.is_safe_to_retry(), |_| true)
}

/// Keeps an error that a layer puts in the place of a result from claiming that nothing ran.
pub(super) fn keep_what_ran(may_have_run: bool, result: Result<CallReply>) -> Result<CallReply> {
    result.map_err(|error| match may_have_run {
        true => error.with_nothing_ran(false),
        false => error,
    })
}

fn keeping_what_ran(
    on_end: impl FnOnce(Result<CallReply>) -> Result<CallReply>,
    result: Result<CallReply>,
) -> Result<CallReply> {
    let may_have_run = may_have_run(&result);
    keep_what_ran(may_have_run, on_end(result))
}

impl fmt::Debug for LayeredCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredCall")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
