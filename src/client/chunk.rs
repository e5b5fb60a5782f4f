//! The messages of a batch: what goes into one, and how it is sent.

use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use super::options::Kind;
use super::outcome::Target;
use super::request::Limit;
use super::{CallOptions, Sent, ServiceClient};
use crate::error::Result;
use crate::message::batch::{BATCH_ACTION, Items};
use crate::message::{ServiceMessage, new_message_id};
use crate::topology;

/// What goes into one message.
#[derive(Default)]
pub(super) struct Chunk {
    items: Items,
    pub(super) calls: Vec<InChunk>,
}

/// A call in a message.
pub(super) struct InChunk {
    /// Which of the batch's it is.
    pub(super) at: usize,
    payload: Range<usize>,
}

impl Chunk {
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
            self.calls.push(InChunk { at, payload });
            return Ok(None);
        }
        let payload = payload.start - start..payload.end - start;
        Ok(Some(Self {
            items: self.items.split_off(start),
            calls: vec![InChunk { at, payload }],
        }))
    }
}

/// A message of a batch.
pub(super) struct Part {
    pub(super) chunk: Chunk,
    pub(super) sent: PartSent,
}

/// How it was sent.
pub(super) enum PartSent {
    /// As it is.
    Together(Result<Sent>),
    /// Each of its calls as a message.
    Alone(Vec<Result<Sent>>),
}

impl Part {
    pub(super) fn sent(&self) -> impl Iterator<Item = &Sent> {
        let sent = match &self.sent {
            PartSent::Together(sent) => std::slice::from_ref(sent),
            PartSent::Alone(sent) => sent,
        };
        sent.iter().flatten()
    }
}

/// What all calls of a batch have in common.
pub(super) struct Calls {
    pub(super) client: ServiceClient,
    pub(super) service: String,
    pub(super) options: CallOptions,
    pub(super) kind: Kind,
    pub(super) actions: Vec<Arc<str>>,
    pub(super) number: u64,
}

impl Calls {
    pub(super) fn target<'a>(&'a self, action: &'a str) -> Target<'a> {
        Target {
            service: &self.service,
            action,
        }
    }

    /// Sends what goes into one message.
    pub(super) fn send(&self, chunk: &Chunk, limit: Limit) -> PartSent {
        let together = &self.client.inner.router.together;
        match &chunk.calls[..] {
            [_] => self.send_alone(chunk, limit),
            _ if !together.is_possible(&self.routing_key()) => self.send_alone(chunk, limit),
            _ => PartSent::Together(self.send_together(chunk, limit)),
        }
    }

    fn send_together(&self, chunk: &Chunk, limit: Limit) -> Result<Sent> {
        let target = self.target(BATCH_ACTION);
        target.check()?;
        let (client, options) = (&self.client, &self.options);
        let route = client.inner.route(target, options, limit.deadline)?;
        let items = &chunk.items;
        let encode = |envelope: &ServiceMessage<'_, ()>| items.encode(envelope);
        let request = client.request_of(target, (), options, self.kind, limit, encode)?;
        client.hand_over(target, request, route, self.kind, limit)
    }

    /// Sends the calls of a message one by one.
    pub(super) fn send_alone(&self, chunk: &Chunk, limit: Limit) -> PartSent {
        let send = |call: &InChunk| {
            let target = self.target(&self.actions[call.at]);
            let payload = chunk.items.payload(call.payload.clone());
            self.client
                .start_within(target, &payload, &self.options, self.kind, limit)
        };
        PartSent::Alone(chunk.calls.iter().map(send).collect())
    }

    /// Where its messages go, unless a balancer picks somebody.
    pub(super) fn routing_key(&self) -> String {
        match &self.options.instance {
            Some(id) => topology::instance_queue(&self.service, id),
            None => topology::request_key(&self.service),
        }
    }
}
