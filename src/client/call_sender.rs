//! The sending of one attempt at a call, through the layers round it.

use serde::Serialize;

use super::ServiceClient;
use super::call::{CallDeadline, RequestSpec};
use super::decode::CallTarget;
use super::layer::{LayeredCall, NextCall, OutgoingCall};
use super::options::{RequestKind, RequestOptions};
use super::sent_attempt::{AttemptFilter, SentAttempt};
use super::sent_call::SentCall;
use crate::base::catch::catch;
use crate::error::Result;
use crate::message::MessageId;
use crate::resilience::ServicePolicies;

/// A call as each attempt sends it.
pub(super) struct CallSender<'a, Req: ?Sized> {
    pub(super) client: &'a ServiceClient,
    pub(super) target: CallTarget<'a>,
    pub(super) request: &'a Req,
    /// The payload as JSON text, if the client has layers.
    pub(super) payload: &'a str,
    pub(super) options: &'a RequestOptions,
    pub(super) kind: RequestKind,
}

/// An attempt, as it is to be sent.
#[derive(Clone, Copy)]
pub(super) struct AttemptSpec<'a> {
    pub(super) number: u32,
    pub(super) limit: CallDeadline,
    /// The message id of all attempts, if there may be several.
    pub(super) message_id: Option<MessageId>,
    pub(super) policies: Option<&'a ServicePolicies>,
    /// The instances that have failed.
    pub(super) tried: &'a [Box<str>],
}

impl<Req: Serialize + ?Sized> CallSender<'_, Req> {
    /// Sends the request of an attempt through the layers round it.
    pub(super) fn send(&self, attempt: &mut SentAttempt, spec: AttemptSpec<'_>) {
        let extensions = self.client.inner.extensions.as_deref();
        let layers = extensions.map_or(&[][..], |extensions| &extensions.attempt_layers);
        if layers.is_empty() {
            match self.send_request(self.options, attempt, spec) {
                Ok(sent) => attempt.sent = Some(sent),
                Err(error) => attempt.ended = Some(Err(error)),
            }
            return;
        }
        let mut outgoing = OutgoingCall {
            target: self.target,
            payload: self.payload,
            attempt: spec.number,
            deadline: spec.limit.deadline,
            headers: self.client.headers(self.options),
        };
        let mut start = |outgoing: &mut OutgoingCall<'_>| {
            let options = self.options.with_headers(outgoing.headers.clone());
            match self.send_request(&options, attempt, spec) {
                Ok(sent) => {
                    attempt.sent = Some(sent);
                    LayeredCall::pending()
                }
                Err(error) => LayeredCall::ended(Err(error)),
            }
        };
        let next = NextCall {
            layers,
            start: &mut start,
        };
        let layered = catch(|| next.run(&mut outgoing))
            .unwrap_or_else(|panic| LayeredCall::ended(Err(self.target.layer_panicked(&panic))));
        attempt.ended = layered.ended;
        attempt.on_end = layered.on_end;
    }

    fn send_request(
        &self,
        options: &RequestOptions,
        attempt: &mut SentAttempt,
        spec: AttemptSpec<'_>,
    ) -> Result<SentCall> {
        let AttemptSpec {
            policies, tried, ..
        } = spec;
        let request = RequestSpec {
            target: self.target,
            options,
            kind: self.kind,
            limit: spec.limit,
            attempt: spec.number,
            message_id: spec.message_id,
            // A caller that blocks takes the time itself.
            is_timed: policies.is_some() && self.kind == RequestKind::AsyncCall,
        };
        let mut filter = AttemptFilter {
            policies,
            tried,
            attempt,
        };
        self.client
            .start_call_to(request, self.request, &mut filter)
    }
}
