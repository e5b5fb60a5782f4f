use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::options::Kind;
use super::outcome::Target;
use super::{CallOptions, ServiceClient};
use crate::deadline;
use crate::error::Result;
use crate::message::{Body, CorrelationId, ServiceMessage};
use crate::name::check_short_string;
use crate::topology::{self, SERVICE_EXCHANGE};
use crate::transport::{Properties, Publication, Ticket};

/// A request before it is handed over.
pub(super) struct Request {
    pub(super) id: CorrelationId,
    pub(super) ticket: Arc<Ticket>,
    pub(super) publication: Publication,
}

/// How long a call or command may take, and until when.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
}

/// From this size on encoding twice costs less than holding what cannot be sent.
const ENCODED_AGAIN: usize = 16 << 10;

impl Limit {
    fn left(self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

impl ServiceClient {
    /// Starts a request's clock.
    pub(super) fn begin(&self, options: &CallOptions) -> Limit {
        let mut timeout = options.timeout.unwrap_or(self.inner.timeout);
        if let Some(until) = self.until {
            timeout = timeout.min(until.saturating_duration_since(Instant::now()));
        }
        Limit {
            timeout,
            deadline: deadline::after(timeout),
        }
    }

    /// Encodes a request.
    pub(super) fn request<Req: Serialize + ?Sized>(
        &self,
        target: Target<'_>,
        request: &Req,
        options: &CallOptions,
        kind: Kind,
        limit: Limit,
    ) -> Result<Request> {
        self.request_of(
            target,
            request,
            options,
            kind,
            limit,
            |message| match kind {
                Kind::Command => message.encode().map(Into::into),
                Kind::Call | Kind::AsyncCall => message.encode_awaiting_reply_queue(),
            },
        )
    }

    /// Encodes a request, and finds it room among those that wait to be sent. While there is
    /// none, a large one is not held in memory: it is encoded again when there is.
    pub(super) fn request_with_room<Req: Serialize + ?Sized>(
        &self,
        target: Target<'_>,
        request: &Req,
        options: &CallOptions,
        kind: Kind,
        limit: Limit,
    ) -> Result<Request> {
        let encode = || self.request(target, request, options, kind, limit);
        let mut encoded = encode()?;
        let bytes = encoded.publication.body.len();
        if bytes < ENCODED_AGAIN {
            return Ok(encoded); // the transport finds it room
        }
        let broker = &self.inner.broker;
        if let Ok(room) = broker.reserve(bytes, None) {
            encoded.publication.room = room;
            return Ok(encoded);
        }
        drop(encoded);
        let room = broker.reserve(bytes, Some(limit.deadline));
        let room = room.map_err(|error| target.not_sent(error))?;
        let mut encoded = encode()?;
        encoded.publication.room = room;
        Ok(encoded)
    }

    /// The same, encoded by `encode`.
    pub(super) fn request_of<P>(
        &self,
        target: Target<'_>,
        payload: P,
        options: &CallOptions,
        kind: Kind,
        limit: Limit,
        encode: impl FnOnce(&ServiceMessage<'_, P>) -> Result<Body>,
    ) -> Result<Request> {
        let id = CorrelationId::random();
        let correlation_id = id.to_text();
        let mut message = ServiceMessage {
            headers: options.wire_headers(limit.left(), kind),
            ..ServiceMessage::with_correlation_id(
                correlation_id.as_str(),
                &self.inner.name,
                target.service,
                target.action,
                payload,
            )
        };
        if let Some(id) = &options.message_id {
            check_short_string("message id", id)?;
            message.message_id = id.as_str().into();
        }
        let body = encode(&message).map_err(|error| match kind {
            Kind::Command => error.about(format_args!("cannot send {target}")),
            Kind::Call | Kind::AsyncCall => target.not_sent(error),
        })?;
        let message_id = message.message_id.into_owned();
        let ticket = Arc::new(Ticket::until(limit.deadline));
        let publication = Publication {
            properties: Properties {
                persistent: options.persistent.unwrap_or(kind != Kind::AsyncCall),
                message_id: Some(message_id),
                correlation_id: Some(correlation_id),
                // Set to what is left of it when it is sent.
                expiration: (kind != Kind::Command).then_some(Duration::ZERO),
                ..Properties::json()
            },
            mandatory: true,
            ticket: Some(Arc::clone(&ticket)),
            idempotent: options.idempotent,
            ..Publication::new(
                SERVICE_EXCHANGE,
                topology::request_key(target.service),
                body,
            )
        };
        Ok(Request {
            id,
            ticket,
            publication,
        })
    }
}
