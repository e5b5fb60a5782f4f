//! The messages of a batch: their contents, and how they are sent.

use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use crate::base::catch::catch;
use crate::client::ServiceClient;
use crate::client::call::{CallDeadline, RequestSpec};
use crate::client::decode::CallTarget;
use crate::client::discovery::AnyInstance;
use crate::client::options::{RequestKind, RequestOptions};
use crate::client::sent_call::SentCall;
use crate::error::{Error, ErrorKind, Result};
use crate::message::batch::{BATCH_ACTION, BatchItems};
use crate::message::{ServiceMessage, new_message_id};
use crate::topology;

/// The calls of one message, encoded.
#[derive(Default)]
pub(super) struct BatchMessage {
    items: BatchItems,
    pub(super) calls: Vec<BatchedCall>,
}

/// A call in a message.
pub(super) struct BatchedCall {
    /// The index of the call in the batch.
    pub(super) at: usize,
    payload: Range<usize>,
}

impl BatchMessage {
    /// Adds the call with the index `at`. If it would make the message too large, returns the
    /// next message, which holds it alone.
    pub(super) fn add(
        &mut self,
        at: usize,
        action: &str,
        request: &(impl Serialize + ?Sized),
        most_bytes: usize,
    ) -> Result<Option<Self>> {
        let (start, payload) = self.items.push(action, &new_message_id(), request)?;
        if self.items.len() <= most_bytes || self.calls.is_empty() {
            self.calls.push(BatchedCall { at, payload });
            return Ok(None);
        }
        let payload = payload.start - start..payload.end - start;
        Ok(Some(Self {
            items: self.items.split_off(start),
            calls: vec![BatchedCall { at, payload }],
        }))
    }
}

/// A message on its way.
pub(super) struct SentMessage {
    pub(super) sent: Result<SentCall>,
    pub(super) calls: SentCalls,
}

/// The calls of a message on its way.
pub(super) enum SentCalls {
    /// Several calls as a batch.
    Batch(BatchMessage),
    /// One call as an ordinary request: its index in the batch.
    Single(usize),
}

/// The settings that all calls of a batch share.
pub(super) struct BatchContext {
    pub(super) client: ServiceClient,
    pub(super) service: String,
    pub(super) options: RequestOptions,
    pub(super) kind: RequestKind,
    pub(super) actions: Vec<Arc<str>>,
    /// The number of the batch, by which its [`CallKey`](super::CallKey)s are recognised.
    pub(super) number: u64,
}

impl BatchContext {
    pub(super) fn target<'a>(&'a self, action: &'a str) -> CallTarget<'a> {
        CallTarget {
            service: &self.service,
            action,
        }
    }

    /// Returns the target of the call with the index `at`.
    pub(super) fn target_of(&self, at: usize) -> CallTarget<'_> {
        self.target(&self.actions[at])
    }

    /// Sends one message: its calls as a batch, or one by one to a service that does not know
    /// batches.
    pub(super) fn send(&self, message: BatchMessage, limit: CallDeadline) -> Vec<SentMessage> {
        let batch_support = &self.client.inner.router.batch_support;
        if message.calls.len() < 2 || !batch_support.is_supported(&self.routing_key()) {
            return self.send_one_by_one(&message, limit);
        }
        vec![SentMessage {
            sent: self.catch_panic(BATCH_ACTION, || self.send_as_batch(&message, limit)),
            calls: SentCalls::Batch(message),
        }]
    }

    fn send_as_batch(&self, message: &BatchMessage, limit: CallDeadline) -> Result<SentCall> {
        let target = self.target(BATCH_ACTION);
        target.check()?;
        let (client, options) = (&self.client, &self.options);
        let route = client
            .inner
            .route(target, options, limit.deadline, &mut AnyInstance)?;
        let items = &message.items;
        let encode = |envelope: &ServiceMessage<'_, ()>| items.encode(envelope);
        let spec = RequestSpec::only(target, options, self.kind, limit);
        let request = client.request_of(spec, (), encode)?;
        client.enqueue(spec, request, route, None)
    }

    /// Sends the calls of a message one by one.
    pub(super) fn send_one_by_one(
        &self,
        message: &BatchMessage,
        limit: CallDeadline,
    ) -> Vec<SentMessage> {
        let send = |call: &BatchedCall| {
            let target = self.target_of(call.at);
            let payload = message.items.payload(call.payload.clone());
            let sent = self.catch_panic(target.action, || {
                let spec = RequestSpec::only(target, &self.options, self.kind, limit);
                self.client.start_call_to(spec, &payload, &mut AnyInstance)
            });
            SentMessage {
                sent,
                calls: SentCalls::Single(call.at),
            }
        };
        message.calls.iter().map(send).collect()
    }

    /// Converts a panic of the balancer into an error: the other calls of the batch go on.
    fn catch_panic(
        &self,
        action: &str,
        send: impl FnOnce() -> Result<SentCall>,
    ) -> Result<SentCall> {
        catch(send).unwrap_or_else(|panic| {
            let target = self.target(action);
            let fault = format!("{target} was not sent: picking an instance panicked: {panic}");
            Err(Error::new(ErrorKind::Misuse, fault).with_nothing_ran(true))
        })
    }

    /// Returns the routing key of the batch's messages, unless a balancer picks an instance.
    pub(super) fn routing_key(&self) -> String {
        match &self.options.instance {
            Some(id) => topology::instance_queue(&self.service, id),
            None => topology::request_key(&self.service),
        }
    }
}
