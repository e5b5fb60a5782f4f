//! The way of a blocking call: layers, fallback, cache, attempts.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

use super::action_cache::{
    ActionCache, BackgroundCall, CacheRead, CachedAnswer, CachedRequest, Fill,
};
use super::answer::{Answer, CallReply, Origin};
use super::attempts::Attempts;
use super::call::CallDeadline;
use super::call_sender::CallSender;
use super::decode::CallTarget;
use super::extensions::{ActionExtensions, Extensions};
use super::fallback::{self, Fallback};
use super::layer::{LayeredCall, NextCall, OutgoingCall, keep_what_ran};
use super::options::{CacheUse, RequestKind, RequestOptions};
use super::{CallOptions, ServiceClient};
use crate::base::catch::catch;
use crate::base::deadline;
use crate::error::{Error, ErrorKind, Result};

impl ServiceClient {
    /// Calls with options, as [`call_with`](ServiceClient::call_with), and returns the answer with
    /// its [origin](Origin): the service, the cache, or a fallback.
    ///
    /// # Errors
    ///
    /// Fails as [`call`](ServiceClient::call) does.
    ///
    /// ```
    /// use coney::client::Origin;
    /// use coney::{Broker, CallOptions, ServiceClient};
    ///
    /// let client = ServiceClient::builder(&Broker::memory(), "shop")
    ///     .fallback("stock", "count", |_article: &String, _error| Some(0))
    ///     .build()?;
    /// let stock = client.call_detailed::<u64>("stock", "count", "apple", &CallOptions::new())?;
    /// assert_eq!((*stock, stock.origin()), (0, Origin::Fallback));
    /// # Ok::<(), coney::Error>(())
    /// ```
    pub fn call_detailed<Resp: DeserializeOwned>(
        &self,
        service: &str,
        action: &str,
        request: &(impl Serialize + ?Sized),
        options: &CallOptions,
    ) -> Result<Answer<Resp>> {
        let target = CallTarget { service, action };
        let reply = self.answer(target, request, &options.request)?;
        let value = target.decode_reply(&reply)?;
        Ok(Answer::new(value, reply.origin, reply.attempts))
    }

    /// Calls, and blocks until the answer is there, at most until the deadline.
    pub(super) fn answer<Req: Serialize + ?Sized>(
        &self,
        target: CallTarget<'_>,
        request: &Req,
        options: &RequestOptions,
    ) -> Result<CallReply> {
        let limit = self.deadline_for(options);
        self.check_call(target)?;
        let calls = self.own_service.as_deref();
        let _counted = calls.and_then(|calls| calls.begin(target.service));
        let call = CallSender {
            client: self,
            target,
            request,
            payload: "",
            options,
            kind: RequestKind::Call,
        };
        let Some(extensions) = self.extensions_of(target) else {
            let policies = self.inner.policies(target.service);
            return Attempts::new(policies, options, limit).run(&call);
        };
        let payload = target.encode(request)?;
        ExtendedCall::new(self, extensions, target, &payload, limit).answer(options)
    }

    /// Returns what the client does beside sending such a call, and applying policies to it, if
    /// anything: its layers, and what it does for the action.
    pub(super) fn extensions_of(
        &self,
        target: CallTarget<'_>,
    ) -> Option<(&Extensions, Option<&ActionExtensions>)> {
        let extensions = self.inner.extensions.as_deref()?;
        let action = extensions.action(target.service, target.action);
        (action.is_some() || extensions.has_layers()).then_some((extensions, action))
    }
}

impl Attempts {
    /// Drives a blocking call until it ends.
    fn run<Req: Serialize + ?Sized>(mut self, call: &CallSender<'_, Req>) -> Result<CallReply> {
        let far = deadline::after(Duration::MAX);
        let result = self.advance(call, far);
        result.unwrap_or_else(|| Err(call.client.inner.unreported(call.target)))
    }
}

impl CallTarget<'_> {
    /// Encodes the payload of a call as JSON text.
    pub(super) fn encode<Req: Serialize + ?Sized>(self, request: &Req) -> Result<Box<RawValue>> {
        to_raw_value(request).map_err(|error| {
            let fault = format!("cannot call {self}: cannot encode the payload as JSON: {error}");
            Error::new(ErrorKind::Encode, fault)
        })
    }
}

/// A call of a client with layers, or with a cache or a fallback for the action.
#[derive(Clone, Copy)]
pub(super) struct ExtendedCall<'a> {
    pub(super) client: &'a ServiceClient,
    extensions: &'a Extensions,
    action: Option<&'a ActionExtensions>,
    pub(super) target: CallTarget<'a>,
    pub(super) payload: &'a RawValue,
    pub(super) limit: CallDeadline,
}

impl<'a> ExtendedCall<'a> {
    pub(super) fn new(
        client: &'a ServiceClient,
        (extensions, action): (&'a Extensions, Option<&'a ActionExtensions>),
        target: CallTarget<'a>,
        payload: &'a RawValue,
        limit: CallDeadline,
    ) -> Self {
        Self {
            client,
            extensions,
            action,
            target,
            payload,
            limit,
        }
    }

    fn answer(self, options: &RequestOptions) -> Result<CallReply> {
        let layers = &self.extensions.layers;
        if layers.is_empty() {
            return self.answer_within(options);
        }
        let layered = self.through_layers(options, &mut |options| {
            LayeredCall::ended(self.answer_within(options))
        });
        let ended = layered.ended;
        ended.unwrap_or_else(|| Err(self.client.inner.unreported(self.target)))
    }

    /// Runs the layers round the whole call, and `start` within them, with the headers that they
    /// have set. A panic of a layer is an error of the call.
    pub(super) fn through_layers(
        self,
        options: &RequestOptions,
        start: &mut dyn FnMut(&RequestOptions) -> LayeredCall,
    ) -> LayeredCall {
        let mut outgoing = OutgoingCall {
            target: self.target,
            payload: self.payload.get(),
            attempt: 0,
            deadline: self.limit.deadline,
            headers: self.client.headers(options),
        };
        let mut may_have_run = false;
        let mut start = |outgoing: &mut OutgoingCall<'_>| {
            let started = start(&options.with_headers(outgoing.headers.clone()));
            may_have_run = started.may_have_run();
            started
        };
        let next = NextCall {
            layers: &self.extensions.layers,
            start: &mut start,
        };
        let mut layered = catch(|| next.run(&mut outgoing))
            .unwrap_or_else(|panic| LayeredCall::ended(Err(self.target.layer_panicked(&panic))));
        // A layer may end a call that is on its way.
        layered.ended = layered
            .ended
            .map(|ended| keep_what_ran(may_have_run, ended));
        layered
    }

    /// Answers from the cache, by the service, or by the fallback.
    fn answer_within(self, options: &RequestOptions) -> Result<CallReply> {
        let Some(cache) = self.cache(options) else {
            return self.or_fallback(self.by_service(options));
        };
        let read = self.with_cached_request(options, |request| match options.cache {
            CacheUse::Refresh => CacheRead::Lead(cache.begin_fill(request)),
            CacheUse::Default | CacheUse::Bypass => cache.read(request),
        });
        self.or_fallback(match read {
            CacheRead::Answer(answer) => Ok(from_cache(answer)),
            CacheRead::Error(error) => Err(error.with_attempts(0)),
            CacheRead::Lead(fill) => finish_fill(fill, self.by_service(options)),
        })
    }

    fn by_service(self, options: &RequestOptions) -> Result<CallReply> {
        let policies = self.client.inner.policies(self.target.service);
        let attempts = Attempts::new(policies, options, self.limit);
        attempts.run(&self.sender(options, RequestKind::Call))
    }

    /// Returns the call as each attempt sends it.
    pub(super) fn sender<'b>(
        self,
        options: &'b RequestOptions,
        kind: RequestKind,
    ) -> CallSender<'b, RawValue>
    where
        'a: 'b,
    {
        CallSender {
            client: self.client,
            target: self.target,
            request: self.payload,
            payload: self.payload.get(),
            options,
            kind,
        }
    }

    /// Returns the cache of the action, unless the call is not to use it: an answer of one instance
    /// is not that of the service.
    pub(super) fn cache(self, options: &RequestOptions) -> Option<&'a dyn ActionCache> {
        let cache = self.action?.cache.as_deref()?;
        let uses_it = options.cache != CacheUse::Bypass && options.instance.is_none();
        uses_it.then_some(cache)
    }

    /// Passes the request to the cache.
    pub(super) fn with_cached_request<R>(
        self,
        options: &RequestOptions,
        then: impl FnOnce(&CachedRequest<'_>) -> R,
    ) -> R {
        let headers = |name: &str| self.client.header_json(options, name);
        let refresh = || self.background_call(options);
        then(&CachedRequest {
            payload: self.payload.get(),
            headers: &headers,
            deadline: self.limit.deadline,
            refresh: &refresh,
        })
    }

    /// Returns a call that repeats the request later, with its own deadline and past the cache and
    /// the fallback. It does not keep the client open.
    fn background_call(self, options: &RequestOptions) -> BackgroundCall {
        let core = Arc::downgrade(&self.client.inner);
        let (service, action) = (
            self.target.service.to_owned(),
            self.target.action.to_owned(),
        );
        let payload = self.payload.to_owned();
        let passed_on = self.client.passed_on.clone();
        let mut options = options.clone();
        // With it, a server that deduplicates would reply as before.
        options.message_id = None;
        Box::new(move || {
            let target = CallTarget {
                service: &service,
                action: &action,
            };
            let inner = core
                .upgrade()
                .ok_or_else(|| target.closed("the client is gone"))?;
            let client = ServiceClient {
                passed_on,
                ..ServiceClient::of(inner)
            };
            let policies = client.inner.policies(&service);
            let attempts = Attempts::new(policies, &options, client.deadline_for(&options));
            let reply = attempts.run(&CallSender {
                client: &client,
                target,
                request: &*payload,
                payload: payload.get(),
                options: &options,
                kind: RequestKind::Call,
            })?;
            Ok(reply.json().to_owned())
        })
    }

    /// Lets the fallback of the action stand in for an error of an unavailable service.
    pub(super) fn or_fallback(self, result: Result<CallReply>) -> Result<CallReply> {
        let fallback = self.action.and_then(|action| action.fallback.as_ref());
        or_fallback(fallback, self.payload, result)
    }
}

/// Lets a fallback stand in for an error of an unavailable service.
pub(super) fn or_fallback(
    fallback: Option<&Fallback>,
    payload: &RawValue,
    result: Result<CallReply>,
) -> Result<CallReply> {
    result.or_else(|error| {
        let fallback = fallback.filter(|_| error.is_unavailable());
        match fallback.and_then(|it| fallback::run(it, payload.get(), &error)) {
            Some(text) => {
                let reply = CallReply::shared(text.into(), Origin::Fallback);
                Ok(reply.with_attempts(error.attempts()))
            }
            None => Err(error),
        }
    })
}

/// Converts an answer from the cache.
pub(super) fn from_cache(answer: CachedAnswer) -> CallReply {
    let origin = match answer.is_stale {
        true => Origin::Stale,
        false => Origin::Cache,
    };
    CallReply::shared(answer.text, origin)
}

/// Stores the result in the cache. A stale answer may stand in for an error.
pub(super) fn finish_fill(fill: Fill, result: Result<CallReply>) -> Result<CallReply> {
    match (fill.finish(result.as_ref().map(CallReply::json)), result) {
        (Some(stale), Err(error)) => Ok(from_cache(stale).with_attempts(error.attempts())),
        (_, result) => result,
    }
}
