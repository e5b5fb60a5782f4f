//! The replies to a batch.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::client::ServiceClient;
use crate::client::call_outcome::{CallOutcome, ReplyBody};
use crate::client::decode::CallTarget;
use crate::error::{Error, ErrorKind, Result};

/// The results of a [`Batch`](crate::Batch)'s calls, in their order: each has a reply, or an
/// error of its own.
#[must_use = "the replies hold the errors of the calls"]
pub struct BatchReplies {
    pub(super) client: ServiceClient,
    pub(super) service: String,
    pub(super) actions: Vec<Arc<str>>,
    pub(super) batch: u64,
    /// The bodies of the messages that hold replies, undecoded.
    pub(super) bodies: Vec<ReplyBody>,
    /// The results that have not been taken.
    pub(super) results: Vec<Option<BatchedResult>>,
}

/// The key of one call of a batch, by which its reply is taken.
pub struct CallKey<T> {
    at: usize,
    batch: u64,
    reply: PhantomData<fn() -> T>,
}

impl<T> CallKey<T> {
    pub(super) fn new(at: usize, batch: u64) -> Self {
        Self {
            at,
            batch,
            reply: PhantomData,
        }
    }
}

/// Needs no `Debug` of the reply's type, which the key does not hold.
impl<T> fmt::Debug for CallKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallKey")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// The result of one call of a batch.
pub(super) enum BatchedResult {
    /// A reply among others in one body.
    Reply {
        in_body: usize,
        range: Range<usize>,
        was_resent: bool,
    },
    /// The outcome of a call that was sent alone.
    Outcome(CallOutcome),
    Failed(Error),
}

impl BatchReplies {
    /// Takes the reply to one call.
    ///
    /// # Errors
    ///
    /// Fails as [`ServiceClient::call`] does, for this call; with [`ErrorKind::Misuse`] if the
    /// key is another batch's.
    pub fn take<T: DeserializeOwned>(&mut self, key: CallKey<T>) -> Result<T> {
        if key.batch != self.batch {
            return Err(Error::new(
                ErrorKind::Misuse,
                format!(
                    "this key belongs to a call of another batch, not of this one to {}",
                    self.service
                ),
            ));
        }
        self.result(key.at)
    }

    /// Returns all replies, in the order of the calls, where they are of one type. A reply that
    /// was taken before is [`ErrorKind::Misuse`].
    pub fn into_results<T: DeserializeOwned>(mut self) -> Vec<Result<T>> {
        (0..self.results.len()).map(|at| self.result(at)).collect()
    }

    /// Returns the number of calls.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// Returns true if there were no calls.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    fn result<T: DeserializeOwned>(&mut self, at: usize) -> Result<T> {
        let target = CallTarget {
            service: &self.service,
            action: &self.actions[at],
        };
        match self.results[at].take() {
            Some(BatchedResult::Reply {
                in_body,
                range,
                was_resent,
            }) => {
                let result = target.decode_resent(&self.bodies[in_body][range], was_resent);
                result.map_err(|error| error.with_attempts(1))
            }
            Some(BatchedResult::Outcome(outcome)) => {
                let result = self.client.inner.result(target, outcome);
                result.map_err(|error| error.with_attempts(1))
            }
            Some(BatchedResult::Failed(error)) => Err(error),
            None => Err(Error::new(
                ErrorKind::Misuse,
                format!("the reply of {target} has been taken already"),
            )),
        }
    }
}

impl fmt::Debug for BatchReplies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchReplies")
            .field("service", &self.service)
            .field("calls", &self.results.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_can_be_shown_whatever_its_reply_is() {
        struct NoDebug;
        let key = CallKey::<NoDebug>::new(7, 1);
        assert_eq!(format!("{key:?}"), "CallKey { at: 7, .. }");
    }
}

/// Asserts that results which are dropped are warned of.
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// fn call(batch: coney::Batch) {
///     batch.call();
/// }
/// ```
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// fn hurry(client: &coney::ServiceClient) {
///     client.with_deadline(std::time::Instant::now());
/// }
/// ```
///
/// ```
/// #![deny(unused_must_use)]
/// fn call(batch: coney::Batch, client: &coney::ServiceClient) {
///     let _ = batch.call();
///     let _ = client.with_deadline(std::time::Instant::now());
/// }
/// ```
#[cfg(doctest)]
struct MustUse;
