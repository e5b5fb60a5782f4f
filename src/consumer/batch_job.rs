//! A job for workers: the requests of one batch message.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::executor::{HandlerOutcome, RequestExecutor, panicked, unknown_action};
use super::pool::Turn;
use super::reply_target::ReplyTarget;
use super::request::{DeliveryInfo, Request};
use super::tracked::Tracked;
use crate::base::catch::catch;
use crate::base::name::{check_action, check_short_string, shown};
use crate::error_code;
use crate::message::batch::{self, Item};
use crate::message::{Headers, Reply, ServiceMessage, Span};
use crate::transport::{Delivery, Message, Replier};

/// The interval at which an item checks again whether another worker has finished its request.
const IN_PROGRESS_INTERVAL: Duration = Duration::from_millis(20);

/// The longest time for which an item without a deadline waits for another worker to finish its
/// request: the item blocks a worker meanwhile.
const IN_PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for which a worker handles items of a batch before it turns to other jobs that wait.
/// A turn costs less than a microsecond.
const TURN: Duration = Duration::from_millis(1);

/// The longest time for which a reply without a deadline waits until it can be sent.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// A batch that several workers can handle at a time. Free workers take its items one by one;
/// when the last item has its reply, the message is acknowledged.
pub(crate) struct BatchJob {
    message: Arc<Message>,
    /// The delivery of the batch, until it is settled. If dropped before that, the message goes
    /// back into its queue.
    delivery: Mutex<Option<Tracked>>,
    replier: Option<Replier>,
    envelope: Envelope,
    info: DeliveryInfo,
    items: Vec<BatchItem>,
    /// The replies to be sent inside the batch's own reply.
    replies: Vec<OnceLock<Vec<u8>>>,
    /// The total size of these replies, in bytes.
    reply_bytes: AtomicUsize,
    /// The index of the first item that no worker has taken.
    next: AtomicUsize,
    /// The number of items without a reply.
    unanswered: AtomicUsize,
}

/// The fields that all items share.
struct Envelope {
    source_service: Span,
    headers: Span,
    timestamp: i64,
    reply_to: String,
    correlation_id: Option<String>,
    message_id: Span,
}

/// One request of a batch.
struct BatchItem {
    action: Span,
    message_id: Span,
    payload: Span,
    /// The item's own headers, if any; the batch's apply otherwise.
    headers: Option<Span>,
    /// The correlation id, if the item gets a reply message of its own.
    correlation_id: Option<Span>,
}

impl BatchJob {
    /// Reads a batch. It is complete only after [`with_delivery`](BatchJob::with_delivery).
    ///
    /// # Errors
    ///
    /// Returns a text that says why the payload cannot be read as a batch.
    pub(super) fn read(
        envelope: &ServiceMessage<'_>,
        message: &Arc<Message>,
        target: &ReplyTarget<'_>,
        info: DeliveryInfo,
    ) -> Result<Self, String> {
        let Some(reply_to) = target.reply_to else {
            return Err("the batch names no reply queue".to_owned());
        };
        let body = &message.body;
        let items = batch::read(envelope.payload.as_str())
            .map_err(|fault| format!("the payload is not a batch: {fault}"))?;
        for item in &items {
            let id = item.correlation_id.as_ref();
            let id = id.map(|id| check_short_string("correlation id", &id.0));
            id.unwrap_or(Ok(()))
                .map_err(|fault| format!("an item of the batch is invalid: {fault}"))?;
        }
        let in_batch = items.iter().any(|item| item.correlation_id.is_none());
        let in_batch = if in_batch { items.len() } else { 0 };
        let read_item = |item: Item<'_>| BatchItem {
            action: Span::of(&item.action, body),
            message_id: Span::of(&item.message_id, body),
            payload: Span::of(item.payload.as_str(), body),
            headers: item.headers.map(|it| Span::of(it.as_str(), body)),
            correlation_id: item.correlation_id.map(|id| Span::of(&id.0, body)),
        };
        Ok(Self {
            message: Arc::clone(message),
            delivery: Mutex::new(None),
            replier: None,
            envelope: Envelope {
                source_service: Span::of(&envelope.source_service, body),
                headers: Span::of(envelope.headers.as_str(), body),
                timestamp: envelope.timestamp,
                reply_to: reply_to.to_owned(),
                correlation_id: target.correlation_id.map(str::to_owned),
                message_id: Span::of(&envelope.message_id, body),
            },
            info,
            replies: (0..in_batch).map(|_| OnceLock::new()).collect(),
            reply_bytes: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(items.len()),
            items: items.into_iter().map(read_item).collect(),
        })
    }

    /// Adds the delivery that carried the batch.
    pub(super) fn with_delivery(mut self, delivery: Tracked) -> Self {
        self.replier = delivery.delivery().replier();
        self.delivery = Mutex::new(Some(delivery));
        self
    }

    /// Returns the delivery, if it has not been settled.
    pub(crate) fn into_delivery(self) -> Option<Delivery> {
        self.delivery.into_inner().map(Tracked::into_delivery)
    }

    /// Starts no further item.
    pub(crate) fn stop(&self) {
        self.next.store(self.items.len(), Ordering::Relaxed);
    }

    /// Returns true if there is an item that no worker has taken.
    pub(crate) fn has_more(&self) -> bool {
        self.next.load(Ordering::Relaxed) < self.items.len()
    }

    /// Starts no further item and leaves the delivery unsettled: the broker has requeued the
    /// message.
    pub(crate) fn abandon(&self) {
        self.stop();
        if let Some(delivery) = self.delivery.lock().take() {
            delivery.forget();
        }
    }

    /// Handles items until all have been taken, or the worker's turn is over.
    pub(crate) fn work(&self, executor: &RequestExecutor, turn: &dyn Turn) {
        if self.items.is_empty() {
            return self.finish(executor);
        }
        let begun = Instant::now();
        // The index never wraps: it exceeds the number of items by at most one per turn.
        while let Some((at, item)) = self.take() {
            let target = self.target(item, executor);
            // A reply store is user code too and may panic, and every item needs a reply.
            let body = catch(|| self.handle(item, executor, &target));
            let body = body.unwrap_or_else(|_| {
                let error = panicked(&shown(item.action.get(&self.message.body)));
                target.failure(error.message(), error.code())
            });
            match (target.correlation_id, &self.replier) {
                (Some(_), Some(replier)) => {
                    let until = executor.deadline(&self.headers(item), self.info, &target);
                    let until = until.unwrap_or_else(|| Instant::now() + REPLY_TIMEOUT);
                    target.send(replier, body, executor.max_body(), until);
                }
                (Some(_), None) => {}
                (None, _) => self.keep(at, body, &target, executor),
            }
            if self.unanswered.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.finish(executor);
            }
            if turn.others_wait() && begun.elapsed() >= TURN {
                return;
            }
        }
    }

    /// Keeps a reply until all items have one; replaces it by an error if it would make the
    /// replies larger than one message may be.
    fn keep(&self, at: usize, body: Vec<u8>, target: &ReplyTarget<'_>, executor: &RequestExecutor) {
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

    fn take(&self) -> Option<(usize, &BatchItem)> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        Some((at, self.items.get(at)?))
    }

    fn headers<'a>(&'a self, item: &'a BatchItem) -> Headers<'a> {
        let headers = item.headers.as_ref().unwrap_or(&self.envelope.headers);
        Headers::of(headers.get(&self.message.body))
    }

    fn target<'a>(&'a self, item: &'a BatchItem, executor: &'a RequestExecutor) -> ReplyTarget<'a> {
        let body = &self.message.body;
        ReplyTarget {
            instance_id: executor.instance_id.as_deref(),
            reply_to: Some(&self.envelope.reply_to),
            correlation_id: item.correlation_id.as_ref().map(|id| id.get(body)),
            message_id: item.message_id.get(body),
            may_have_run: self.info.redelivered,
        }
    }

    /// Runs one request and returns the body of its reply.
    fn handle(
        &self,
        item: &BatchItem,
        executor: &RequestExecutor,
        target: &ReplyTarget<'_>,
    ) -> Vec<u8> {
        let body = &self.message.body;
        let request = Request {
            message_id: target.message_id,
            source_service: self.envelope.source_service.get(body),
            action: item.action.get(body),
            timestamp: self.envelope.timestamp,
            headers: self.headers(item),
            payload: item.payload.get(body),
        };
        let checked = check_action(request.action)
            .and_then(|()| check_short_string("message id", request.message_id));
        if let Err(fault) = checked {
            return target.failure(&fault.to_string(), Some(error_code::BAD_ENVELOPE));
        }
        let Some(handler) = executor.handlers.get(request.action) else {
            let fault = unknown_action(request.action);
            return target.failure(&fault, Some(error_code::UNKNOWN_ACTION));
        };
        let begin = Instant::now();
        let deadline = executor.deadline(&request.headers, self.info, target);
        let mut info = self.info;
        loop {
            match executor.run(&request, handler, info, target) {
                HandlerOutcome::Done(body) => return body.unwrap_or_default(),
                HandlerOutcome::Failed(error) => {
                    return target.failure(error.message(), error.code());
                }
                // One item alone cannot be put off. At its deadline it is `expired`.
                HandlerOutcome::Unavailable(refusal) => {
                    return executor.busy_reply(target, &refusal);
                }
                HandlerOutcome::OverLimit(over) => {
                    return executor.limited_reply(target, request.action, over);
                }
                HandlerOutcome::InProgress
                    if deadline.is_some() || begin.elapsed() < IN_PROGRESS_TIMEOUT =>
                {
                    info.is_admitted = true;
                    thread::sleep(IN_PROGRESS_INTERVAL);
                }
                HandlerOutcome::InProgress => {
                    let fault = "another worker is still handling the same request";
                    return target.failure(fault, Some(error_code::IN_PROGRESS));
                }
            }
        }
    }

    /// Sends the batch's own reply, if it has one, and acknowledges the message: all items have
    /// replies.
    fn finish(&self, executor: &RequestExecutor) {
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
