//! From a request to one that is on its way.

use std::sync::Arc;
use std::thread::{self, Thread};

use serde::Serialize;

use super::discovery::Route;
use super::options::Kind;
use super::outcome::Target;
use super::pending::{PendingCall, Refusal, Waiter};
use super::request::{Limit, Request};
use super::slot::Slot;
use super::{CallOptions, Sent, ServiceClient};
use crate::error::Result;

impl ServiceClient {
    /// Sends a request whose reply is waited for.
    pub(super) fn start_call<Req: Serialize + ?Sized>(
        &self,
        target: Target<'_>,
        request: &Req,
        options: &CallOptions,
        kind: Kind,
    ) -> Result<Sent> {
        self.start_within(target, request, options, kind, self.begin(options))
    }

    /// The same, until then.
    pub(super) fn start_within<Req: Serialize + ?Sized>(
        &self,
        target: Target<'_>,
        request: &Req,
        options: &CallOptions,
        kind: Kind,
        limit: Limit,
    ) -> Result<Sent> {
        target.check()?;
        let route = self.inner.route(target, options, limit.deadline)?;
        let mut request = self.request_with_room(target, request, options, kind, limit)?;
        request.publication.sharing = self.inner.coalesce;
        self.hand_over(target, request, route, kind, limit)
    }

    /// Enters a request in the table and gives it to the transport.
    pub(super) fn hand_over(
        &self,
        target: Target<'_>,
        request: Request,
        route: Route,
        kind: Kind,
        limit: Limit,
    ) -> Result<Sent> {
        let Request {
            id,
            ticket,
            mut publication,
        } = request;
        let router = &self.inner.router;
        let balanced = route.apply(&mut publication);
        publication.sharing = publication
            .sharing
            .filter(|_| router.together.is_possible(&publication.routing_key));
        let slot = Slot::take();
        // One that may do something else meanwhile must not be woken from it.
        let thread = (kind == Kind::Call).then(thread::current);
        let thread_id = thread.as_ref().map(Thread::id);
        let call = PendingCall {
            ticket: Arc::clone(&ticket),
            waiter: Waiter::Thread(slot.sender(), thread),
            kept: publication
                .idempotent
                .then(|| Box::new(publication.clone())),
            sent_in: None,
            balanced: balanced.map(Box::new),
        };
        router.insert(id, call).map_err(|refusal| match refusal {
            Refusal::Closed(cause) => target.closed(&cause),
            Refusal::Full(max) => target.too_many_in_flight(max),
        })?;
        if let Err(error) = self.inner.wire.publish(publication, None, limit.deadline) {
            router.forget(id);
            return Err(target.not_sent(error));
        }
        Ok(Sent {
            id,
            ticket,
            slot,
            woken: thread_id,
            timeout: limit.timeout,
        })
    }
}
