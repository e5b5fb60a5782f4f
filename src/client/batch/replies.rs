use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::client::ServiceClient;
use crate::client::call_outcome::{CallOutcome, ReplyBody};
use crate::client::decode::CallTarget;
use crate::error::{Error, ErrorKind, Result};

/// What became of the calls of a [`Batch`](crate::Batch): each has a reply, or an error of
/// its own, in the order asked.
pub struct BatchReplies {
    pub(super) client: ServiceClient,
    pub(super) service: String,
    pub(super) actions: Vec<Arc<str>>,
    pub(super) batch: u64,
    /// The messages that hold replies, undecoded.
    pub(super) bodies: Vec<ReplyBody>,
    /// Until they are taken.
    pub(super) results: Vec<Option<BatchedResult>>,
}

/// Which call of a batch it is, for taking its reply.
#[derive(Debug)]
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

/// How a call of a batch ended.
pub(super) enum BatchedResult {
    /// With a reply among others.
    Reply {
        in_body: usize,
        range: Range<usize>,
    },
    /// As a call alone.
    CallOutcome(CallOutcome),
    Failed(Error),
}

impl BatchReplies {
    /// The reply to one call.
    ///
    /// # Errors
    ///
    /// As [`ServiceClient::call`], for this call;
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) if it was asked for in
    /// another batch.
    pub fn take<T: DeserializeOwned>(&mut self, asked: CallKey<T>) -> Result<T> {
        if asked.batch != self.batch {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "this reply was asked for in another batch, not in this one to {}",
                    self.service
                ),
            ));
        }
        self.result(asked.at)
    }

    /// All replies, in the order asked, where they are of one type. Those that were taken
    /// before are [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    pub fn into_results<T: DeserializeOwned>(mut self) -> Vec<Result<T>> {
        (0..self.results.len()).map(|at| self.result(at)).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    fn result<T: DeserializeOwned>(&mut self, at: usize) -> Result<T> {
        let target = CallTarget {
            service: &self.service,
            action: &self.actions[at],
        };
        match self.results[at].take() {
            Some(BatchedResult::Reply { in_body, range }) => {
                target.decode(&self.bodies[in_body][range])
            }
            Some(BatchedResult::CallOutcome(outcome)) => self.client.inner.result(target, outcome),
            Some(BatchedResult::Failed(error)) => Err(error),
            None => Err(Error::new(
                ErrorKind::Closed,
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
