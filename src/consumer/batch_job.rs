//! A message that holds many requests, and the workers that share it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::executor::{HandlerOutcome, RequestExecutor, panicked, unknown_action};
use super::reply_target::{ReplyTarget, TOO_LARGE};
use super::request::{DeliveryInfo, Request};
use super::tracked::Tracked;
use crate::base::catch::catch;
use crate::base::name::{check_action, check_short_string, shown};
use crate::message::batch::{self, Item};
use crate::message::{CODE_UNKNOWN_ACTION, Headers, Reply, ServiceMessage, Span};
use crate::transport::{Delivery, Message, Replier};

/// How often an item asks again whose request another worker is at, and for how long if it
/// has no deadline: it holds up a worker meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a reply without a deadline waits until it can be sent.
const REPLY_PATIENCE: Duration = Duration::from_secs(10);

/// Its items are taken one at a time by whoever is free. When the last of them has been
/// answered, the message is acknowledged.
pub(crate) struct BatchJob {
    message: Arc<Message>,
    /// Until it is settled. Dropped before that, it goes back into its queue.
    delivery: Mutex<Option<Tracked>>,
    replier: Option<Replier>,
    envelope: Envelope,
    info: DeliveryInfo,
    items: Vec<BatchItem>,
    /// The replies that go into the batch's own.
    replies: Vec<OnceLock<Vec<u8>>>,
    /// How many bytes these have.
    kept: AtomicUsize,
    /// The first item that nobody has taken.
    next: AtomicUsize,
    unanswered: AtomicUsize,
}

/// What all items have in common.
struct Envelope {
    source_service: Span,
    headers: Span,
    timestamp: i64,
    reply_to: String,
    correlation_id: Option<String>,
    message_id: Span,
}

/// One request.
struct BatchItem {
    action: Span,
    message_id: Span,
    payload: Span,
    /// Its own, where it has some.
    headers: Option<Span>,
    /// If it is answered on its own.
    correlation_id: Option<Span>,
}

impl BatchJob {
    /// Reads a batch. It is not complete without its [delivery](BatchJob::with).
    ///
    /// # Errors
    ///
    /// What is wrong with the payload.
    pub(super) fn read(
        envelope: &ServiceMessage<'_>,
        message: &Arc<Message>,
        answer: &ReplyTarget<'_>,
        info: DeliveryInfo,
    ) -> Result<Self, String> {
        let Some(reply_to) = answer.reply_to else {
            return Err("nobody waits for the replies to this batch".to_owned());
        };
        let body = &message.body;
        let items = batch::read(envelope.payload.as_str())
            .map_err(|fault| format!("the payload is not a batch: {fault}"))?;
        for item in &items {
            let id = item.correlation_id.as_ref();
            let id = id.map(|id| check_short_string("correlation id", &id.0));
            id.unwrap_or(Ok(()))
                .map_err(|fault| format!("the batch has an item of which {fault}"))?;
        }
        let in_batch = items.iter().any(|item| item.correlation_id.is_none());
        let in_batch = if in_batch { items.len() } else { 0 };
        let part = |item: Item<'_>| BatchItem {
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
                correlation_id: answer.correlation_id.map(str::to_owned),
                message_id: Span::of(&envelope.message_id, body),
            },
            info,
            replies: (0..in_batch).map(|_| OnceLock::new()).collect(),
            kept: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(items.len()),
            items: items.into_iter().map(part).collect(),
        })
    }

    /// The same with what it came in.
    pub(super) fn with(mut self, delivery: Tracked) -> Self {
        self.replier = delivery.delivery().replier();
        self.delivery = Mutex::new(Some(delivery));
        self
    }

    /// What it came in, if it has not been settled.
    pub(crate) fn into_delivery(self) -> Option<Delivery> {
        self.delivery.into_inner().map(Tracked::into_delivery)
    }

    /// Begins with no other item.
    pub(crate) fn stop(&self) {
        self.next.store(self.items.len(), Ordering::Relaxed);
    }

    /// Is there an item that nobody has taken?
    pub(crate) fn has_more(&self) -> bool {
        self.next.load(Ordering::Relaxed) < self.items.len()
    }

    /// The broker has taken it back: nobody begins with another item.
    pub(crate) fn abandon(&self) {
        self.stop();
        if let Some(delivery) = self.delivery.lock().take() {
            delivery.forget();
        }
    }

    /// Handles items until all have been taken.
    pub(crate) fn work(&self, executor: &RequestExecutor) {
        if self.items.is_empty() {
            return self.finish(executor);
        }
        // Never wraps: as many are too many to be added to it as there are workers.
        while let Some((at, item)) = self.take() {
            let answer = self.answer(item, executor);
            // A reply store is the user's code too, and an item must be answered.
            let body = catch(|| self.handle(item, executor, &answer));
            let body = body.unwrap_or_else(|_| {
                let error = panicked(&shown(item.action.get(&self.message.body)));
                answer.failure(error.message(), error.code())
            });
            match (answer.correlation_id, &self.replier) {
                (Some(_), Some(replier)) => {
                    let until = executor.deadline(&self.headers(item), self.info, &answer);
                    let until = until.unwrap_or_else(|| Instant::now() + REPLY_PATIENCE);
                    answer.send(replier, body, executor.max_body(), until);
                }
                (Some(_), None) => {}
                (None, _) => self.keep(at, body, &answer, executor),
            }
            if self.unanswered.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.finish(executor);
            }
        }
    }

    /// Keeps a reply until the others are there, unless they are too much already.
    fn keep(&self, at: usize, body: Vec<u8>, answer: &ReplyTarget<'_>, executor: &RequestExecutor) {
        let with_it = |kept: usize| {
            let kept = kept.saturating_add(body.len());
            (kept <= executor.max_body()).then_some(kept)
        };
        let order = Ordering::Relaxed;
        let fits =
            body.len() <= USUAL_FAILURE || self.kept.fetch_update(order, order, with_it).is_ok();
        let body = match fits {
            true => body,
            false => does_not_fit(answer, body.len()),
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

    fn answer<'a>(&'a self, item: &'a BatchItem, executor: &'a RequestExecutor) -> ReplyTarget<'a> {
        let body = &self.message.body;
        ReplyTarget {
            instance_id: executor.instance_id.as_deref(),
            reply_to: Some(&self.envelope.reply_to),
            correlation_id: item.correlation_id.as_ref().map(|id| id.get(body)),
            message_id: item.message_id.get(body),
        }
    }

    /// Runs one request and gives the body of its reply.
    fn handle(
        &self,
        item: &BatchItem,
        executor: &RequestExecutor,
        answer: &ReplyTarget<'_>,
    ) -> Vec<u8> {
        let body = &self.message.body;
        let request = Request {
            message_id: answer.message_id,
            source_service: self.envelope.source_service.get(body),
            action: item.action.get(body),
            timestamp: self.envelope.timestamp,
            headers: self.headers(item),
            payload: item.payload.get(body),
        };
        let checked = check_action(request.action)
            .and_then(|()| check_short_string("message id", request.message_id));
        if let Err(fault) = checked {
            return answer.failure(&fault.to_string(), Some("bad_envelope"));
        }
        let Some(handler) = executor.handlers.get(request.action) else {
            let fault = unknown_action(request.action);
            return answer.failure(&fault, Some(CODE_UNKNOWN_ACTION));
        };
        let begin = Instant::now();
        let deadline = executor.deadline(&request.headers, self.info, answer);
        loop {
            match executor.run(&request, handler, self.info, answer) {
                HandlerOutcome::Done(body) => return body.unwrap_or_default(),
                HandlerOutcome::Failed(error) => {
                    return answer.failure(error.message(), error.code());
                }
                // It cannot be put off alone. At its deadline it is `expired`.
                HandlerOutcome::Unavailable(fault) => {
                    return answer.busy(fault, executor.busy_retry_after());
                }
                HandlerOutcome::InProgress if deadline.is_some() || begin.elapsed() < PATIENCE => {
                    thread::sleep(ASK_AGAIN);
                }
                HandlerOutcome::InProgress => {
                    let fault = "the same request is being handled, and takes too long";
                    return answer.failure(fault, Some("in_progress"));
                }
            }
        }
    }

    /// All items have been answered.
    fn finish(&self, executor: &RequestExecutor) {
        let Some(delivery) = self.delivery.lock().take() else {
            return;
        };
        if self.replies.is_empty() && !self.items.is_empty() {
            return delivery.ack();
        }
        let answer = ReplyTarget {
            instance_id: executor.instance_id.as_deref(),
            reply_to: Some(&self.envelope.reply_to),
            correlation_id: self.envelope.correlation_id.as_deref(),
            message_id: self.envelope.message_id.get(&self.message.body),
        };
        let data = self.data(&answer, executor);
        let body = Reply::success_round(answer.instance_id, &data, answer.message_id);
        let body = body.unwrap_or_else(|error| answer.failure(&error.to_string(), None));
        delivery.done(answer.publication(body, executor.max_body()));
    }

    /// The items' replies as an array. Those that would make it too large for a message
    /// are answered with an error.
    fn data(&self, answer: &ReplyTarget<'_>, executor: &RequestExecutor) -> Vec<u8> {
        // A name takes up to six times its bytes.
        let names = |answer: &ReplyTarget<'_>| {
            let instance = answer.instance_id.unwrap_or_default();
            6 * (answer.message_id.len() + instance.len())
        };
        let max = executor
            .max_body()
            .saturating_sub(USUAL_FAILURE + names(answer));
        let replies = || self.items.iter().zip(&self.replies);
        let size: usize = replies().map(|(_, reply)| reply_len(reply) + 1).sum();
        let mut data = Vec::with_capacity(size.min(max) + 2);
        data.push(b'[');
        // What those that come later take at least.
        let at_least = |item: &BatchItem, reply: &OnceLock<Vec<u8>>| {
            let failure = USUAL_FAILURE + names(&self.answer(item, executor));
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
            let answer = self.answer(item, executor);
            later -= (reply.len()).min(USUAL_FAILURE + names(&answer)) + 1;
            if data.len() + reply.len() + later < max || reply.len() <= USUAL_FAILURE {
                data.extend_from_slice(reply);
            } else {
                data.extend_from_slice(&does_not_fit(&answer, reply.len()));
            }
        }
        data.push(b']');
        data
    }
}

/// An error's reply takes no more, without the names in it.
const USUAL_FAILURE: usize = 256;

fn does_not_fit(answer: &ReplyTarget<'_>, bytes: usize) -> Vec<u8> {
    let fault = format!("the reply is {bytes} bytes long, which is too much beside the others");
    answer.failure(&fault, Some(TOO_LARGE))
}

/// One that is not there stands as `null`.
fn reply_len(reply: &OnceLock<Vec<u8>>) -> usize {
    reply.get().map_or("null".len(), Vec::len)
}
