//! A job for workers: the requests of one batch message.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::bulkheads::{Bulkheads, Entry};
use super::executor::{HandlerOutcome, RequestExecutor, panicked, unknown_action};
use super::lane::Class;
use super::load::LoadGate;
use super::reply_target::ReplyTarget;
use super::request::{DeliveryInfo, Request};
use super::tracked::Tracked;
use super::turn::Turn;
use crate::base::catch::catch;
use crate::base::name::{check_action, check_short_string, shown};
use crate::error_code;
use crate::message::batch::{self, Item};
use crate::message::{Headers, ServiceMessage, Span};
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
    pub(super) message: Arc<Message>,
    /// The delivery of the batch, until it is settled. If dropped before that, the message goes
    /// back into its queue.
    pub(super) delivery: Mutex<Option<Tracked>>,
    replier: Option<Replier>,
    pub(super) envelope: Envelope,
    pub(super) info: DeliveryInfo,
    pub(super) items: Vec<BatchItem>,
    /// The replies to be sent inside the batch's own reply.
    pub(super) replies: Vec<OnceLock<Vec<u8>>>,
    /// The total size of these replies, in bytes.
    pub(super) reply_bytes: AtomicUsize,
    /// The index of the first item that no worker has taken.
    next: AtomicUsize,
    /// The number of items without a reply.
    unanswered: AtomicUsize,
    /// The gate that counts the items that no worker has taken.
    load: Option<Arc<LoadGate>>,
}

/// The fields that all items share.
pub(super) struct Envelope {
    pub(super) source_service: Span,
    pub(super) headers: Span,
    pub(super) timestamp: i64,
    pub(super) reply_to: String,
    pub(super) correlation_id: Option<String>,
    pub(super) message_id: Span,
}

/// One request of a batch.
pub(super) struct BatchItem {
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
            load: None,
        })
    }

    /// Adds the delivery that carried the batch, and counts its items in `load`.
    pub(super) fn with_delivery(mut self, delivery: Tracked, load: &Arc<LoadGate>) -> Self {
        load.add_batched(self.items.len());
        self.load = Some(Arc::clone(load));
        self.replier = delivery.delivery().replier();
        self.delivery = Mutex::new(Some(delivery));
        self
    }

    /// Returns the delivery, if it has not been settled.
    pub(crate) fn into_delivery(self) -> Option<Delivery> {
        self.delivery.lock().take().map(Tracked::into_delivery)
    }

    /// Starts no further item.
    pub(crate) fn stop(&self) {
        let items = self.items.len();
        let next = self.next.swap(items, Ordering::Relaxed);
        if let Some(load) = &self.load {
            load.remove_batched(items.saturating_sub(next));
        }
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

    /// Handles items until all have been taken, or the worker's turn is over. Returns those that
    /// have to wait for a place in the class of their action.
    pub(crate) fn work(
        &self,
        executor: &RequestExecutor,
        bulkheads: &Bulkheads,
        turn: &dyn Turn,
    ) -> Vec<(Class, usize)> {
        let mut waiting = Vec::new();
        if self.items.is_empty() {
            self.finish(executor);
        }
        let begun = Instant::now();
        // The index never wraps: it exceeds the number of items by at most one per turn.
        while let Some((at, item)) = self.take() {
            let action = item.action.get(&self.message.body);
            match bulkheads.enter(action, turn) {
                Some(Entry::Wait(class)) => waiting.push((class, at)),
                Some(Entry::Full(bulkhead)) => waiting.push((bulkhead.class, at)),
                // The place is given back afterwards.
                Some(Entry::Run(_place)) => self.run(at, executor, turn),
                None => self.run(at, executor, turn),
            }
            let is_due = turn.others_wait() || !waiting.is_empty();
            if is_due && begun.elapsed() >= TURN {
                break;
            }
        }
        waiting
    }

    /// Handles one item.
    pub(crate) fn run(&self, at: usize, executor: &RequestExecutor, turn: &dyn Turn) {
        let item = &self.items[at];
        let target = self.target(item, executor);
        // A reply store is user code too and may panic, and every item needs a reply.
        let body = catch(|| self.handle(at, executor, &target, turn));
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
    }

    fn take(&self) -> Option<(usize, &BatchItem)> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let item = self.items.get(at)?;
        if let Some(load) = &self.load {
            load.remove_batched(1);
        }
        Some((at, item))
    }

    fn headers<'a>(&'a self, item: &'a BatchItem) -> Headers<'a> {
        let headers = item.headers.as_ref().unwrap_or(&self.envelope.headers);
        Headers::of(headers.get(&self.message.body))
    }

    pub(super) fn target<'a>(
        &'a self,
        item: &'a BatchItem,
        executor: &'a RequestExecutor,
    ) -> ReplyTarget<'a> {
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
        at: usize,
        executor: &RequestExecutor,
        target: &ReplyTarget<'_>,
        turn: &dyn Turn,
    ) -> Vec<u8> {
        let (item, body) = (&self.items[at], &self.message.body);
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
        let mut info = DeliveryInfo {
            opens_message: at == 0,
            ..self.info
        };
        loop {
            match executor.run(&request, handler, info, target, turn) {
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
}

impl Drop for BatchJob {
    fn drop(&mut self) {
        self.stop();
    }
}
