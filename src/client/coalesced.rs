//! Replies to messages that hold several calls.

use std::sync::Arc;

use super::batch_support;
use super::call_outcome::ReplyBody;
use super::router::Router;
use crate::message::reply_batch::ReplyBatch;
use crate::message::{CorrelationId, range_in};
use crate::transport::Publication;

impl Router {
    /// Handles one reply to a message that held several calls: the server could not read the
    /// message, or answers all of its calls in one. Calls of a service that does not know
    /// batches are returned, to be sent one by one.
    pub(super) fn answered_as_batch(
        &self,
        calls: &[CorrelationId],
        body: Vec<u8>,
    ) -> Vec<Publication> {
        if batch_support::is_unknown(&body) {
            let requests = self.take_for_single_send(calls);
            if let Some(request) = requests.first() {
                self.batch_support.mark_unsupported(&request.routing_key);
            }
            return requests;
        }
        let body = Arc::new(body);
        let replies = batch_support::replies(&body).filter(|replies| replies.len() == calls.len());
        // An error is each call's own. Any other success must not be taken for a reply.
        let whole = match replies.is_none() && batch_support::is_success(&body) {
            true => 0..0,
            false => 0..body.len(),
        };
        for (at, &id) in calls.iter().enumerate() {
            let part = match &replies {
                // Answered on its own.
                Some(replies) if replies[at].get() == "null" => continue,
                Some(replies) => range_in(&body, replies[at].get()),
                None => whole.clone(),
            };
            self.answered(Some(id), ReplyBody::Part(Arc::clone(&body), part));
        }
        Vec::new()
    }

    /// Handles a batch of replies, each with the correlation id of its call. False if the
    /// body is something else.
    pub(super) fn answered_in_reply_batch(&self, body: &Arc<Vec<u8>>) -> bool {
        let Ok(reply_batch) = ReplyBatch::decode(body) else {
            return false;
        };
        for reply in reply_batch.replies.0 {
            let id = CorrelationId::parse(&reply.correlation_id);
            let part = range_in(body, reply.body());
            self.answered(id, ReplyBody::Part(Arc::clone(body), part));
        }
        true
    }
}
