//! A message that holds many requests, and the workers that share it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::answer::{Answer, TOO_LARGE, too_large};
use super::dispatch::{Dispatch, Handlers, unknown_action};
use super::request::{Circumstances, Request};
use super::run::{Verdict, panicked, shown};
use crate::message::batch::{Item, MOST_ITEMS};
use crate::message::{CODE_UNKNOWN_ACTION, Headers, Reply, ServiceMessage, Span};
use crate::name::{check_action, check_short_string};
use crate::transport::{Delivery, Message};

/// How often an item asks again whose request another worker is at.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Its items are taken one at a time by whoever is free. When the last of them has been
/// answered, the message is acknowledged.
pub(crate) struct Batch {
    message: Arc<Message>,
    /// Until it is settled. Dropped before that, it goes back into its queue.
    delivery: Mutex<Option<Delivery>>,
    envelope: Envelope,
    circumstances: Circumstances,
    items: Vec<Part>,
    /// The replies that go into the batch's own.
    replies: Vec<OnceLock<Vec<u8>>>,
    /// The first item that nobody has taken.
    next: AtomicUsize,
    unanswered: AtomicUsize,
}

/// What all items have in common.
struct Envelope {
    source_service: Span,
    headers: Headers<'static>,
    timestamp: i64,
    reply_to: String,
    correlation_id: Option<String>,
    message_id: Span,
}

/// One request.
struct Part {
    action: Span,
    message_id: Span,
    payload: Span,
    /// Its own, where it has some.
    headers: Option<Headers<'static>>,
    /// If it is answered on its own.
    correlation_id: Option<Span>,
}

impl Batch {
    /// Reads a batch. It is not complete without its [delivery](Batch::with).
    ///
    /// # Errors
    ///
    /// What is wrong with the payload.
    pub(super) fn read(
        envelope: &ServiceMessage<'_>,
        message: &Arc<Message>,
        answer: &Answer<'_>,
        circumstances: Circumstances,
    ) -> Result<Self, String> {
        let Some(reply_to) = answer.reply_to else {
            return Err("nobody waits for the replies to this batch".to_owned());
        };
        let body = &message.body;
        let items: Vec<Item<'_>> = serde_json::from_str(envelope.payload.as_str())
            .map_err(|fault| format!("the payload is not a batch: {fault}"))?;
        if items.len() > MOST_ITEMS {
            return Err(format!(
                "the batch holds {} requests; at most {MOST_ITEMS} are allowed",
                items.len()
            ));
        }
        let in_batch = items.iter().any(|item| item.correlation_id.is_none());
        let in_batch = if in_batch { items.len() } else { 0 };
        let part = |item: Item<'_>| Part {
            action: Span::of(&item.action, body),
            message_id: Span::of(&item.message_id, body),
            payload: Span::of(item.payload.as_str(), body),
            headers: item.headers.map(Headers::into_owned),
            correlation_id: item.correlation_id.map(|id| Span::of(&id, body)),
        };
        Ok(Self {
            message: Arc::clone(message),
            delivery: Mutex::new(None),
            envelope: Envelope {
                source_service: Span::of(&envelope.source_service, body),
                headers: envelope.headers.clone().into_owned(),
                timestamp: envelope.timestamp,
                reply_to: reply_to.to_owned(),
                correlation_id: answer.correlation_id.map(str::to_owned),
                message_id: Span::of(&envelope.message_id, body),
            },
            circumstances,
            replies: (0..in_batch).map(|_| OnceLock::new()).collect(),
            next: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(items.len()),
            items: items.into_iter().map(part).collect(),
        })
    }

    /// The same with what it came in.
    pub(super) fn with(self, delivery: Delivery) -> Self {
        *self.delivery.lock() = Some(delivery);
        self
    }

    /// What it came in, if it has not been settled.
    pub(crate) fn into_delivery(self) -> Option<Delivery> {
        self.delivery.into_inner()
    }

    /// Is there an item that nobody has taken?
    pub(crate) fn has_more(&self) -> bool {
        self.next.load(Ordering::Relaxed) < self.items.len()
    }

    /// The broker has taken it back: nobody begins with another item, and what is
    /// answered goes nowhere.
    pub(crate) fn abandon(&self) {
        self.next.store(self.items.len(), Ordering::Relaxed);
        if let Some(delivery) = self.delivery.lock().take() {
            delivery.forget();
        }
    }

    /// Handles items until all have been taken.
    pub(crate) fn work(&self, dispatch: &Dispatch) {
        if self.items.is_empty() {
            return self.finish(dispatch);
        }
        // Never wraps: as many are too many to be added to it as there are workers.
        while let Some((at, item)) = self.take() {
            let answer = self.answer(item, dispatch);
            // A reply store is the user's code too, and an item must be answered.
            let body = catch_unwind(AssertUnwindSafe(|| self.handle(item, dispatch, &answer)));
            let body = body.unwrap_or_else(|_| {
                let error = panicked(&shown(item.action.get(&self.message.body)));
                answer.failure(error.message(), error.code())
            });
            match answer.correlation_id {
                Some(_) => {
                    if let Some(delivery) = &*self.delivery.lock() {
                        answer.send(delivery, body, dispatch.max_body);
                    }
                }
                None => drop(self.replies[at].set(body)),
            }
            if self.unanswered.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.finish(dispatch);
            }
        }
    }

    fn take(&self) -> Option<(usize, &Part)> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        Some((at, self.items.get(at)?))
    }

    fn answer<'a>(&'a self, item: &'a Part, dispatch: &'a Dispatch) -> Answer<'a> {
        let body = &self.message.body;
        Answer {
            instance_id: dispatch.instance_id.as_deref(),
            reply_to: Some(&self.envelope.reply_to),
            correlation_id: item.correlation_id.as_ref().map(|id| id.get(body)),
            message_id: item.message_id.get(body),
        }
    }

    /// Runs one request and gives the body of its reply.
    fn handle(&self, item: &Part, dispatch: &Dispatch, answer: &Answer<'_>) -> Vec<u8> {
        let body = &self.message.body;
        let request = Request {
            message_id: answer.message_id,
            source_service: self.envelope.source_service.get(body),
            action: item.action.get(body),
            timestamp: self.envelope.timestamp,
            headers: item.headers.as_ref().unwrap_or(&self.envelope.headers),
            payload: item.payload.get(body),
        };
        let checked = check_action(request.action)
            .and_then(|()| check_short_string("message id", request.message_id))
            .and_then(|()| {
                check_short_string("correlation id", answer.correlation_id.unwrap_or_default())
            });
        if let Err(fault) = checked {
            return answer.failure(&fault.to_string(), Some("bad_envelope"));
        }
        let handler = match &dispatch.handlers {
            Handlers::ByAction(handlers) => handlers.get(request.action),
            Handlers::One(handler) => Some(handler),
        };
        let Some(handler) = handler else {
            let fault = unknown_action(request.action);
            return answer.failure(&fault, Some(CODE_UNKNOWN_ACTION));
        };
        let begin = Instant::now();
        loop {
            match dispatch.run(&request, handler, self.circumstances, answer) {
                Verdict::Done(body) => return body.unwrap_or_default(),
                Verdict::Failed(error) => return answer.failure(error.message(), error.code()),
                // It cannot be put off alone.
                Verdict::InProgress if begin.elapsed() < dispatch.lease() => {
                    thread::sleep(ASK_AGAIN);
                }
                Verdict::InProgress => {
                    let fault = "the same request is being handled, and takes too long";
                    return answer.failure(fault, Some("in_progress"));
                }
            }
        }
    }

    /// All items have been answered.
    fn finish(&self, dispatch: &Dispatch) {
        let Some(delivery) = self.delivery.lock().take() else {
            return;
        };
        if self.replies.is_empty() && !self.items.is_empty() {
            return delivery.ack();
        }
        let answer = Answer {
            instance_id: dispatch.instance_id.as_deref(),
            reply_to: Some(&self.envelope.reply_to),
            correlation_id: self.envelope.correlation_id.as_deref(),
            message_id: self.envelope.message_id.get(&self.message.body),
        };
        let data = self.data(dispatch);
        let body = Reply::success_round(answer.instance_id, &data, answer.message_id);
        let body = body.unwrap_or_else(|error| answer.failure(&error.to_string(), None));
        match answer.publication(body, dispatch.max_body) {
            Some(reply) => delivery.ack_with(reply),
            None => delivery.ack(),
        }
    }

    /// The items' replies as an array. Those that would make it too large for a message
    /// are answered with an error.
    fn data(&self, dispatch: &Dispatch) -> Vec<u8> {
        /// What the message holds beside it.
        const FRAME: usize = 1_024;
        let max = dispatch.max_body.saturating_sub(FRAME);
        let size: usize = self
            .replies
            .iter()
            .filter_map(OnceLock::get)
            .map(Vec::len)
            .sum();
        let mut data = Vec::with_capacity(size.min(max) + self.replies.len() + 2);
        data.push(b'[');
        for (item, reply) in self.items.iter().zip(&self.replies) {
            if data.len() > 1 {
                data.push(b',');
            }
            match reply.get() {
                None => data.extend_from_slice(b"null"),
                Some(reply) if data.len() + reply.len() <= max => data.extend_from_slice(reply),
                Some(reply) => {
                    let fault = too_large(reply.len(), max.saturating_sub(data.len()));
                    let answer = self.answer(item, dispatch);
                    data.extend_from_slice(&answer.failure(&fault, Some(TOO_LARGE)));
                }
            }
        }
        data.push(b']');
        data
    }
}
