use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::options::Kind;
use super::outcome::Target;
use super::{CallOptions, ServiceClient};
use crate::deadline;
use crate::error::Result;
use crate::message::{CorrelationId, ServiceMessage};
use crate::name::{check_action, check_service, check_short_string};
use crate::topology::{self, SERVICE_EXCHANGE};
use crate::transport::{Properties, Publication, Ticket};

/// A request before it is handed over.
pub(super) struct Request {
    pub(super) id: CorrelationId,
    pub(super) ticket: Arc<Ticket>,
    pub(super) deadline: Instant,
    pub(super) timeout: Duration,
    pub(super) publication: Publication,
}

impl ServiceClient {
    /// Encodes a request and puts a time limit on it.
    pub(super) fn request<Req: Serialize + ?Sized>(
        &self,
        target: Target<'_>,
        request: &Req,
        options: &CallOptions,
        kind: Kind,
    ) -> Result<Request> {
        check_service(target.service)?;
        check_action(target.action)?;
        let mut timeout = options.timeout.unwrap_or(self.inner.timeout);
        if let Some(until) = self.until {
            timeout = timeout.min(until.saturating_duration_since(Instant::now()));
        }
        let deadline = deadline::after(timeout);
        let id = CorrelationId::random();
        let correlation_id = id.to_text();
        let mut message = ServiceMessage {
            headers: options.wire_headers(timeout, kind),
            ..ServiceMessage::with_correlation_id(
                correlation_id.as_str(),
                &self.inner.name,
                target.service,
                target.action,
                request,
            )
        };
        if let Some(id) = &options.message_id {
            check_short_string("message id", id)?;
            message.message_id = id.as_str().into();
        }
        let body = match kind {
            Kind::Command => message.encode().map(Into::into),
            Kind::Call | Kind::AsyncCall => message.encode_awaiting_reply_queue(),
        };
        let body = body.map_err(|error| target.not_sent(error))?;
        let message_id = message.message_id.into_owned();
        let ticket = Arc::new(Ticket::until(deadline));
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
            deadline,
            timeout,
            publication,
        })
    }
}
