//! The messages of a batch: what goes into one, and how it is sent.

use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use crate::client::call::CallDeadline;
use crate::client::decode::CallTarget;
use crate::client::options::Kind;
use crate::client::sent_call::SentCall;
use crate::client::{CallOptions, ServiceClient};
use crate::error::Result;
use crate::message::batch::{BATCH_ACTION, Items};
use crate::message::{ServiceMessage, new_message_id};
use crate::topology;

/// What goes into one message.
#[derive(Default)]
pub(super) struct BatchMessage {
    items: Items,
    pub(super) calls: Vec<BatchedCall>,
}

/// A call in a message.
pub(super) struct BatchedCall {
    /// Which of the batch's it is.
    pub(super) at: usize,
    payload: Range<usize>,
}

impl BatchMessage {
    /// Adds the call that is `at` this place of the batch. Where it would make the message
    /// too large it is alone in the next, which is returned.
    pub(super) fn add<Req: Serialize + ?Sized>(
        &mut self,
        at: usize,
        action: &str,
        request: &Req,
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

/// A message of a batch.
pub(super) struct SentMessage {
    pub(super) message: BatchMessage,
    pub(super) sent: SentAs,
}

/// How it was sent.
pub(super) enum SentAs {
    /// As it is.
    BatchSupport(Result<SentCall>),
    /// Each of its calls as a message.
    OneByOne(Vec<Result<SentCall>>),
}

impl SentMessage {
    pub(super) fn sent(&self) -> impl Iterator<Item = &SentCall> {
        let sent = match &self.sent {
            SentAs::BatchSupport(sent) => std::slice::from_ref(sent),
            SentAs::OneByOne(sent) => sent,
        };
        sent.iter().flatten()
    }
}

/// What all calls of a batch have in common.
pub(super) struct BatchContext {
    pub(super) client: ServiceClient,
    pub(super) service: String,
    pub(super) options: CallOptions,
    pub(super) kind: Kind,
    pub(super) actions: Vec<Arc<str>>,
    pub(super) number: u64,
}

impl BatchContext {
    pub(super) fn target<'a>(&'a self, action: &'a str) -> CallTarget<'a> {
        CallTarget {
            service: &self.service,
            action,
        }
    }

    /// Sends what goes into one message.
    pub(super) fn send(&self, message: &BatchMessage, limit: CallDeadline) -> SentAs {
        let batch_support = &self.client.inner.router.batch_support;
        match &message.calls[..] {
            [_] => self.send_one_by_one(message, limit),
            _ if !batch_support.is_supported(&self.routing_key()) => {
                self.send_one_by_one(message, limit)
            }
            _ => SentAs::BatchSupport(self.send_as_batch(message, limit)),
        }
    }

    fn send_as_batch(&self, message: &BatchMessage, limit: CallDeadline) -> Result<SentCall> {
        let target = self.target(BATCH_ACTION);
        target.check()?;
        let (client, options) = (&self.client, &self.options);
        let route = client.inner.route(target, options, limit.deadline)?;
        let items = &message.items;
        let encode = |envelope: &ServiceMessage<'_, ()>| items.encode(envelope);
        let request = client.request_of(target, (), options, self.kind, limit, encode)?;
        client.enqueue(target, request, route, self.kind, limit)
    }

    /// Sends the calls of a message one by one.
    pub(super) fn send_one_by_one(&self, message: &BatchMessage, limit: CallDeadline) -> SentAs {
        let send = |call: &BatchedCall| {
            let target = self.target(&self.actions[call.at]);
            let payload = message.items.payload(call.payload.clone());
            self.client
                .start_call_until(target, &payload, &self.options, self.kind, limit)
        };
        SentAs::OneByOne(message.calls.iter().map(send).collect())
    }

    /// Where its messages go, unless a balancer picks somebody.
    pub(super) fn routing_key(&self) -> String {
        match &self.options.instance {
            Some(id) => topology::instance_queue(&self.service, id),
            None => topology::request_key(&self.service),
        }
    }
}
