//! The layer that counts failed attempts, and reports when consuming is to pause.

use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::context::Context;
use super::failure_rate::FailureRate;
use super::handler_error::{HandlerError, HandlerResult};
use super::layer::{HandlerLayer, HandlerReply, NextHandler};
use super::pause_on_failures::PauseOnFailures;
use crate::base::name::shown;
use crate::verdict::Verdict;

/// The meter of failed attempts: the innermost layer around handlers, so that it sees what they
/// return and not what other layers make of it.
pub(crate) struct FailureMeter {
    settings: PauseOnFailures,
    state: Mutex<State>,
    tripped: Sender<()>,
}

struct State {
    rate: FailureRate,
    /// The action of the attempt that caused the last pause.
    last: String,
}

/// A pause, and its reason as a text.
pub(crate) struct FailurePause {
    pub(crate) until: Instant,
    pub(crate) reason: String,
}

impl FailureMeter {
    /// Creates a meter, and the receiver of a signal when consuming is to pause.
    pub(crate) fn new(settings: &PauseOnFailures) -> (Self, Receiver<()>) {
        let (tripped, signal) = bounded(1);
        (Self::with_signal(settings, tripped), signal)
    }

    /// Creates a meter that sends a message to `tripped`, which has room for one, when consuming is
    /// to pause.
    pub(crate) fn with_signal(settings: &PauseOnFailures, tripped: Sender<()>) -> Self {
        Self {
            settings: settings.clone(),
            state: Mutex::new(State {
                rate: FailureRate::new(settings),
                last: String::new(),
            }),
            tripped,
        }
    }

    /// Returns the present pause, if there is one.
    pub(crate) fn paused(&self, now: Instant) -> Option<FailurePause> {
        let mut state = self.state.lock();
        let pause = state.rate.paused(now)?;
        let reason = format!(
            "too many failures: {} of {} attempts within {:?}, the last of them at {}",
            pause.failed, pause.attempts, self.settings.window, state.last
        );
        let until = pause.until;
        Some(FailurePause { until, reason })
    }

    /// Returns whether the end of an attempt is a failure; `None` if it says nothing about the
    /// handler.
    fn is_failure(&self, error: &HandlerError, is_call: bool) -> Option<bool> {
        if error.is_busy() || error.is_undecodable() {
            return None;
        }
        let is_lost = match Verdict::of_code(error.code()) {
            Verdict::Failed => true,
            // The caller decides what a call's own error means.
            _ => !is_call && error.is_retryable(),
        };
        Some(is_lost || self.settings.is_failure(error))
    }

    fn ended(&self, action: &str, began: Instant, failed: bool) {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.rate.ended(now, began, failed) {
            state.last = shown(action).into_owned();
            drop(state);
            // A full channel has the signal already.
            let _ = self.tripped.try_send(());
        }
    }
}

impl HandlerLayer for FailureMeter {
    fn handle(&self, context: &Context<'_>, next: NextHandler<'_>) -> HandlerResult<HandlerReply> {
        let mut attempt = Attempt {
            meter: self,
            action: context.action(),
            began: Instant::now(),
            failed: Some(true),
        };
        let result = next.run();
        attempt.failed = match &result {
            Ok(_) => Some(false),
            Err(error) => self.is_failure(error, context.wants_reply),
        };
        result
    }
}

/// An attempt that runs. Dropped by a panic, it counts as failed.
struct Attempt<'a> {
    meter: &'a FailureMeter,
    action: &'a str,
    began: Instant,
    failed: Option<bool>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(failed) = self.failed {
            self.meter.ended(self.action, self.began, failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_requests_own_faults_are_no_failures() {
        let settings = PauseOnFailures::new().failure(|error| error.code() == Some("down"));
        let (meter, _signal) = FailureMeter::new(&settings);
        let new = || HandlerError::new("");
        let busy = || HandlerError::busy("", Duration::ZERO);
        for (error, of_command, of_call) in [
            (new(), Some(true), Some(false)),
            (new().do_not_retry(), Some(false), Some(false)),
            (new().with_code("not_found"), Some(true), Some(false)),
            (new().with_code("down"), Some(true), Some(true)),
            (
                new().with_code("down").do_not_retry(),
                Some(true),
                Some(true),
            ),
            (
                new().with_reserved_code("bad_reply").do_not_retry(),
                Some(true),
                Some(true),
            ),
            (new().undecodable(), None, None),
            (busy(), None, None),
        ] {
            assert_eq!(meter.is_failure(&error, false), of_command);
            assert_eq!(meter.is_failure(&error, true), of_call);
        }
    }

    #[test]
    fn a_pause_is_signalled_once_and_shows_its_reason() {
        let (meter, signal) = FailureMeter::new(&PauseOnFailures::new().minimum_attempts(2));
        let began = Instant::now();
        meter.ended("mail", began, true);
        assert!(signal.try_recv().is_err() && meter.paused(began).is_none());
        meter.ended("mail", began, true);
        meter.ended("mail", began, true);
        assert!(signal.try_recv().is_ok() && signal.try_recv().is_err());
        let reason = meter.paused(Instant::now()).map(|pause| pause.reason);
        assert_eq!(
            reason.as_deref(),
            Some("too many failures: 2 of 2 attempts within 10s, the last of them at mail")
        );
    }
}
