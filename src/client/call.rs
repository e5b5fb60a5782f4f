//! The way of a request to the link: deadline, encoding, pending table.

use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ServiceClient;
use super::decode::CallTarget;
use super::discovery::{InstanceFilter, Route};
use super::options::{RequestKind, RequestOptions};
use super::pending_table::{PendingCall, Refusal, Waiter, Wake};
use super::reply_slot::ReplySlot;
use super::sent_call::SentCall;
use crate::base::deadline;
use crate::base::moment::Moment;
use crate::base::name::check_short_string;
use crate::error::Result;
use crate::message::{Body, CorrelationId, MessageId, ServiceMessage};
use crate::resilience::Place;
use crate::topology::{self, SERVICE_EXCHANGE};
use crate::transport::{Properties, Publication, SendState};

/// A request before it is given to the transport.
pub(super) struct PreparedCall {
    pub(super) id: CorrelationId,
    pub(super) send_state: Arc<SendState>,
    pub(super) publication: Publication,
}

/// The time that a call or command may take, and its end.
#[derive(Clone, Copy)]
pub(super) struct CallDeadline {
    /// The moment when the call or command began.
    pub(super) began: Instant,
    /// The time that the options give such a call, where no deadline of the client's cuts it short.
    pub(super) full: Duration,
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
}

/// A request to be made: its target, its options, and its place among the attempts at a call.
#[derive(Clone, Copy)]
pub(super) struct RequestSpec<'a> {
    pub(super) target: CallTarget<'a>,
    pub(super) options: &'a RequestOptions,
    pub(super) kind: RequestKind,
    pub(super) limit: CallDeadline,
    /// The number of this attempt, from 1 on.
    pub(super) attempt: u32,
    /// The message id of all attempts, if there may be several.
    pub(super) message_id: Option<MessageId>,
    /// True if the time to the reply is measured.
    pub(super) is_timed: bool,
}

/// The size in bytes from which encoding twice costs less than holding a body that cannot be
/// sent yet.
const ENCODED_TWICE: usize = 16 << 10;

impl CallDeadline {
    /// Returns the time that is left.
    pub(super) fn left(self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }
}

impl<'a> RequestSpec<'a> {
    /// Creates the specification of a request that is sent once.
    pub(super) fn only(
        target: CallTarget<'a>,
        options: &'a RequestOptions,
        kind: RequestKind,
        limit: CallDeadline,
    ) -> Self {
        Self {
            target,
            options,
            kind,
            limit,
            attempt: 1,
            message_id: None,
            is_timed: false,
        }
    }
}

impl ServiceClient {
    /// Computes the deadline of a request that begins now.
    pub(super) fn deadline_for(&self, options: &RequestOptions) -> CallDeadline {
        let began = Instant::now();
        let full = options.timeout.unwrap_or(self.inner.timeout);
        let mut timeout = full;
        if let Some(until) = self.until {
            timeout = timeout.min(until.saturating_duration_since(began));
        }
        CallDeadline {
            began,
            full,
            timeout,
            deadline: deadline::after_moment(began, timeout),
        }
    }

    /// Encodes a request.
    pub(super) fn request<Req: Serialize + ?Sized>(
        &self,
        spec: RequestSpec<'_>,
        request: &Req,
    ) -> Result<PreparedCall> {
        self.request_of(spec, request, |message| match spec.kind {
            RequestKind::Command => message.encode().map(Into::into),
            RequestKind::Call | RequestKind::AsyncCall => message.encode_awaiting_reply_queue(),
        })
    }

    /// Encodes a request, and reserves room for it in the outgoing queue. While there is
    /// none, a large body is not held in memory: it is encoded again when there is.
    pub(super) fn request_with_room<Req: Serialize + ?Sized>(
        &self,
        spec: RequestSpec<'_>,
        request: &Req,
    ) -> Result<PreparedCall> {
        let encode = || self.request(spec, request);
        let mut encoded = encode()?;
        let bytes = encoded.publication.body.len();
        if bytes < ENCODED_TWICE {
            return Ok(encoded); // the transport reserves its room
        }
        let broker = &self.inner.broker;
        if let Ok(room) = broker.reserve(bytes, None) {
            encoded.publication.room = room;
            return Ok(encoded);
        }
        drop(encoded);
        let room = broker.reserve(bytes, Some(spec.limit.deadline));
        let room = room.map_err(|error| spec.target.not_sent(error))?;
        let mut encoded = encode()?;
        encoded.publication.room = room;
        Ok(encoded)
    }

    /// Prepares a request whose body `encode` writes.
    pub(super) fn request_of<P>(
        &self,
        spec: RequestSpec<'_>,
        payload: P,
        encode: impl FnOnce(&ServiceMessage<'_, P>) -> Result<Body>,
    ) -> Result<PreparedCall> {
        let RequestSpec {
            target,
            options,
            kind,
            limit,
            ..
        } = spec;
        let now = Moment::now();
        let id = CorrelationId::random_at(now);
        let correlation_id = id.to_text();
        let message_id = match options.message_id.as_deref() {
            Some(id) => {
                check_short_string("message id", id)?;
                id.to_owned()
            }
            None => {
                let id = spec.message_id.unwrap_or_else(|| MessageId::random_at(now));
                id.to_text()
            }
        };
        let message = ServiceMessage {
            headers: options.wire_headers(
                now,
                limit.left(now.at()),
                kind,
                spec.attempt,
                self.passed_on.as_deref(),
            ),
            ..ServiceMessage::with_ids(
                now,
                message_id,
                correlation_id.as_str(),
                &self.inner.name,
                target.service,
                target.action,
                payload,
            )
        };
        let body = encode(&message).map_err(|error| match kind {
            RequestKind::Command => error.about(format_args!("cannot send {target}")),
            RequestKind::Call | RequestKind::AsyncCall => target.not_sent(error),
        })?;
        let message_id = message.message_id.into_owned();
        let send_state = Arc::new(SendState::until(limit.deadline));
        let publication = Publication {
            properties: Properties {
                persistent: options.persistent.unwrap_or(kind != RequestKind::AsyncCall),
                message_id: Some(message_id),
                correlation_id: Some(correlation_id),
                // Set to the remaining time when it is sent.
                expiration: (kind != RequestKind::Command).then_some(Duration::ZERO),
                ..Properties::json()
            },
            mandatory: true,
            send_state: Some(Arc::clone(&send_state)),
            idempotent: options.idempotent,
            ..Publication::new(
                SERVICE_EXCHANGE,
                topology::request_key(target.service),
                body,
            )
        };
        Ok(PreparedCall {
            id,
            send_state,
            publication,
        })
    }
}

impl ServiceClient {
    /// Checks the names of a call, and that this is no forked child: there, another thread of the
    /// parent may have held the locks of the policies or the cache.
    pub(super) fn check_call(&self, target: CallTarget<'_>) -> Result<()> {
        target.check()?;
        let checked = self.inner.broker.check_not_forked();
        checked.map_err(|error| target.not_sent(error))
    }

    /// Starts one attempt at a call that is [checked](Self::check_call), to an instance that
    /// `filter` allows.
    pub(super) fn start_call_to<Req: Serialize + ?Sized>(
        &self,
        spec: RequestSpec<'_>,
        request: &Req,
        filter: &mut dyn InstanceFilter,
    ) -> Result<SentCall> {
        let target = spec.target;
        let deadline = spec.limit.deadline;
        let route = self.inner.route(target, spec.options, deadline, filter)?;
        let mut request = self.request_with_room(spec, request)?;
        request.publication.coalesce = self.inner.coalesce;
        self.enqueue(spec, request, route, filter.take_place())
    }

    /// Adds a call to the pending table and gives its request to the transport.
    pub(super) fn enqueue(
        &self,
        spec: RequestSpec<'_>,
        request: PreparedCall,
        route: Route,
        place: Option<Place>,
    ) -> Result<SentCall> {
        let RequestSpec {
            target,
            kind,
            limit,
            ..
        } = spec;
        let PreparedCall {
            id,
            send_state,
            mut publication,
        } = request;
        let router = &self.inner.router;
        let balanced = route.apply(&mut publication);
        publication.coalesce = publication
            .coalesce
            .filter(|_| router.batch_support.is_supported(&publication.routing_key));
        let slot = ReplySlot::take();
        // A thread that may do something else meanwhile must not be unparked from it.
        let thread = (kind == RequestKind::Call).then(thread::current);
        let thread_id = thread.as_ref().map(Thread::id);
        let call = PendingCall {
            send_state: Arc::clone(&send_state),
            waiter: Waiter {
                slot: slot.sender(),
                wake: thread.map_or(Wake::Nothing, Wake::Thread),
            },
            resend_copy: publication
                .idempotent
                .then(|| Box::new(publication.clone())),
            sent_in: None,
            began: (spec.is_timed || balanced.is_some()).then(Instant::now),
            balanced: balanced.map(Box::new),
            place,
        };
        router.insert(id, call).map_err(|refusal| match refusal {
            Refusal::Closed(cause) => target.closed(&cause),
            Refusal::Full(max) => target.too_many_in_flight(max),
        })?;
        if let Err(error) = self.inner.handle.publish(publication, None, limit.deadline) {
            router.forget(id);
            return Err(target.not_sent(error));
        }
        Ok(SentCall {
            id,
            send_state,
            slot,
            woken: thread_id,
            timeout: limit.timeout,
        })
    }
}
