//! An asynchronous call on its way: what it needs to go on when it is waited for.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::value::RawValue;

use super::ServiceClient;
use super::action_cache::Fill;
use super::answer::CallReply;
use super::attempts::Attempts;
use super::call_pipeline::{ExtendedCall, finish_fill, from_cache, or_fallback};
use super::call_sender::CallSender;
use super::core::ClientCore;
use super::decode::CallTarget;
use super::layer::{self, LayeredCall, OnEnd};
use super::options::{CacheUse, RequestKind, RequestOptions};
use super::sent_call::SentCall;
use crate::error::Result;

/// An asynchronous call on its way. It goes on when it is waited for: to try again, and to pass its
/// result through the cache, the fallback and the layers.
pub(super) struct StartedCall {
    client: ServiceClient,
    service: String,
    action: String,
    /// The data to send the request again; none if that cannot happen.
    resend: Option<Box<Resend>>,
    attempts: Attempts,
    fill: Option<Fill>,
    on_end: Vec<OnEnd>,
    /// The result, once it is known and until it is taken.
    result: Option<Result<CallReply>>,
}

struct Resend {
    payload: Box<RawValue>,
    options: RequestOptions,
}

impl ServiceClient {
    /// Starts an asynchronous call, and sends its first attempt, unless it has to wait for its turn.
    pub(super) fn start_async<Req: Serialize + ?Sized>(
        &self,
        target: CallTarget<'_>,
        request: &Req,
        options: &RequestOptions,
    ) -> Result<StartedCall> {
        let limit = self.deadline_for(options);
        self.check_call(target)?;
        if let Some(extensions) = self.extensions_of(target) {
            let payload = target.encode(request)?;
            let call = ExtendedCall::new(self, extensions, target, &payload, limit);
            return StartedCall::start_extended(call, options);
        }
        let policies = self.inner.policies(target.service);
        let attempts = Attempts::new(policies, options, limit);
        let mut started = StartedCall::new(self, target, attempts);
        let resend = match started.attempts.may_send_later() {
            true => Some(Resend::new(target.encode(request)?, options)),
            false => None,
        };
        let first = CallSender {
            client: self,
            target,
            request,
            payload: "",
            options,
            kind: RequestKind::AsyncCall,
        };
        let result = started.attempts.start(&first);
        started.resend = resend;
        started.result = result.transpose()?.map(Ok);
        Ok(started)
    }
}

impl Resend {
    fn new(payload: Box<RawValue>, options: &RequestOptions) -> Box<Self> {
        Box::new(Self {
            payload,
            options: options.clone(),
        })
    }
}

impl StartedCall {
    fn new(client: &ServiceClient, target: CallTarget<'_>, attempts: Attempts) -> Self {
        Self {
            client: client.clone(),
            service: target.service.to_owned(),
            action: target.action.to_owned(),
            resend: None,
            attempts,
            fill: None,
            on_end: Vec::new(),
            result: None,
        }
    }

    /// Starts a call through the layers, from the cache if it has an answer.
    fn start_extended(call: ExtendedCall<'_>, options: &RequestOptions) -> Result<Self> {
        let policies = call.client.inner.policies(call.target.service);
        let attempts = Attempts::new(policies, options, call.limit);
        let mut started = Self::new(call.client, call.target, attempts);
        let layered = call.through_layers(options, &mut |options| started.begin(call, options));
        started.on_end = layered.on_end;
        if let Some(result) = layered.ended {
            // A layer may have ended a call that is under way.
            started.attempts.abandon(&call.client.inner);
            started.result = Some(Ok(result?));
        }
        Ok(started)
    }

    /// Begins the call within the layers.
    fn begin(&mut self, call: ExtendedCall<'_>, options: &RequestOptions) -> LayeredCall {
        if let Some(cache) = call.cache(options) {
            let found = call.with_cached_request(options, |request| match options.cache {
                CacheUse::Refresh => Err(cache.begin_fill(request)),
                CacheUse::Default | CacheUse::Bypass => {
                    cache.peek(request).ok_or_else(|| cache.begin_fill(request))
                }
            });
            match found {
                Ok(answer) => {
                    let result = answer.map(from_cache);
                    return LayeredCall::ended(call.or_fallback(result));
                }
                Err(fill) => self.fill = Some(fill),
            }
        }
        let sender = call.sender(options, RequestKind::AsyncCall);
        let result = self.attempts.start(&sender);
        self.resend = Some(Resend::new(call.payload.to_owned(), options));
        match result {
            Some(result) => LayeredCall::ended(self.finish(result)),
            None => LayeredCall::pending(),
        }
    }

    /// Drives the call until it ends, and waits at most until `until`; `None` means not yet. The
    /// result is taken.
    pub(super) fn advance(&mut self, until: Instant) -> Option<Result<CallReply>> {
        if let Some(result) = self.result.take() {
            return Some(result);
        }
        let resend = self.resend.as_deref();
        if resend.is_none() && self.attempts.is_due() {
            // A layer has returned the pending call of another request.
            return Some(Err(self.client.inner.unreported(self.target())));
        }
        let options = RequestOptions::default();
        let call = CallSender {
            client: &self.client,
            target: CallTarget {
                service: &self.service,
                action: &self.action,
            },
            request: resend.map_or(RawValue::NULL, |resend| &resend.payload),
            payload: resend.map_or("null", |resend| resend.payload.get()),
            options: resend.map_or(&options, |resend| &resend.options),
            kind: RequestKind::AsyncCall,
        };
        let result = self.attempts.advance(&call, until)?;
        let result = self.finish(result);
        let on_end = std::mem::take(&mut self.on_end);
        Some(layer::run_on_end(on_end, self.target(), result))
    }

    /// Drives the call without waiting, and returns true if its result is there.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.result.is_none() {
            self.result = self.advance(Instant::now());
        }
        self.result.is_some()
    }

    /// Passes the result of the attempts through the cache and the fallback.
    fn finish(&mut self, result: Result<CallReply>) -> Result<CallReply> {
        let result = match self.fill.take() {
            Some(fill) => finish_fill(fill, result),
            None => result,
        };
        let Some(resend) = &self.resend else {
            return result;
        };
        let extensions = self.client.inner.extensions.as_deref();
        let action = extensions.and_then(|it| it.action(&self.service, &self.action));
        let fallback = action.and_then(|action| action.fallback.as_ref());
        or_fallback(fallback, &resend.payload, result)
    }

    /// Returns the moment of the next step if nothing happens before.
    pub(super) fn next_step(&self) -> Instant {
        self.attempts.next_step()
    }

    /// Returns the request that is on its way.
    pub(super) fn sent(&self) -> Option<&SentCall> {
        self.attempts.sent().filter(|_| self.result.is_none())
    }

    pub(super) fn core(&self) -> &Arc<ClientCore> {
        &self.client.inner
    }

    /// Returns the service and the action.
    pub(super) fn target(&self) -> CallTarget<'_> {
        CallTarget {
            service: &self.service,
            action: &self.action,
        }
    }

    /// Abandons the call.
    pub(super) fn abandon(&mut self) {
        self.attempts.abandon(&self.client.inner);
    }
}
