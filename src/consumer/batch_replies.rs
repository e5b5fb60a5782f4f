//! The replies of a batch that go in one message.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use super::batch_job::{BatchItem, BatchJob};
use super::executor::RequestExecutor;
use super::reply_target::ReplyTarget;
use crate::error_code;
use crate::message::Reply;

impl BatchJob {
    /// Keeps a reply until all items have one; replaces it by an error if it would make the
    /// replies larger than one message may be.
    pub(super) fn keep(
        &self,
        at: usize,
        body: Vec<u8>,
        target: &ReplyTarget<'_>,
        executor: &RequestExecutor,
    ) {
        let add = |bytes: usize| {
            let bytes = bytes.saturating_add(body.len());
            (bytes <= executor.max_body()).then_some(bytes)
        };
        let order = Ordering::Relaxed;
        let fits =
            body.len() <= USUAL_FAILURE || self.reply_bytes.fetch_update(order, order, add).is_ok();
        let body = match fits {
            true => body,
            false => does_not_fit(target, body.len()),
        };
        let _ = self.replies[at].set(body);
    }

    /// Sends the batch's own reply, if it has one, and acknowledges the message: all items have
    /// replies.
    pub(super) fn finish(&self, executor: &RequestExecutor) {
        let Some(delivery) = self.delivery.lock().take() else {
            return;
        };
        if self.replies.is_empty() && !self.items.is_empty() {
            return delivery.ack();
        }
        let target = ReplyTarget {
            instance_id: executor.instance_id.as_deref(),
            reply_to: Some(&self.envelope.reply_to),
            correlation_id: self.envelope.correlation_id.as_deref(),
            message_id: self.envelope.message_id.get(&self.message.body),
            may_have_run: self.info.redelivered,
        };
        let data = self.data(&target, executor);
        let body = Reply::success_with_json(target.instance_id, &data, target.message_id);
        let body = body.unwrap_or_else(|error| target.failure(&error.to_string(), None));
        delivery.done(target.publication(body, executor.max_body()));
    }

    /// Returns the items' replies as a JSON array. Replies that would make it too large for a
    /// message are replaced by errors.
    fn data(&self, target: &ReplyTarget<'_>, executor: &RequestExecutor) -> Vec<u8> {
        // An escaped name takes up to six times its bytes.
        let names = |target: &ReplyTarget<'_>| {
            let instance = target.instance_id.unwrap_or_default();
            6 * (target.message_id.len() + instance.len())
        };
        let max = executor
            .max_body()
            .saturating_sub(USUAL_FAILURE + names(target));
        let replies = || self.items.iter().zip(&self.replies);
        let size: usize = replies().map(|(_, reply)| reply_len(reply) + 1).sum();
        let mut data = Vec::with_capacity(size.min(max) + 2);
        data.push(b'[');
        // The least room that the replies after this one take.
        let at_least = |item: &BatchItem, reply: &OnceLock<Vec<u8>>| {
            let failure = USUAL_FAILURE + names(&self.target(item, executor));
            reply_len(reply).min(failure) + 1
        };
        let fits = size <= max;
        let mut later: usize = match fits {
            true => 0,
            false => replies().map(|(item, reply)| at_least(item, reply)).sum(),
        };
        for (item, reply) in replies() {
            if data.len() > 1 {
                data.push(b',');
            }
            let reply = match reply.get() {
                Some(reply) => &**reply,
                None => b"null",
            };
            if fits {
                data.extend_from_slice(reply);
                continue;
            }
            let target = self.target(item, executor);
            later -= (reply.len()).min(USUAL_FAILURE + names(&target)) + 1;
            if data.len() + reply.len() + later < max || reply.len() <= USUAL_FAILURE {
                data.extend_from_slice(reply);
            } else {
                data.extend_from_slice(&does_not_fit(&target, reply.len()));
            }
        }
        data.push(b']');
        data
    }
}

/// The largest size of an error's reply without the names in it, in bytes.
const USUAL_FAILURE: usize = 256;

fn does_not_fit(target: &ReplyTarget<'_>, bytes: usize) -> Vec<u8> {
    let fault =
        format!("the reply is {bytes} bytes long, too large next to the others of its batch");
    target.failure(&fault, Some(error_code::REPLY_TOO_LARGE))
}

/// Returns the size of a reply in bytes; a missing one is sent as `null`.
fn reply_len(reply: &OnceLock<Vec<u8>>) -> usize {
    reply.get().map_or("null".len(), Vec::len)
}
