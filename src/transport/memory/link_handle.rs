//! Links of the memory broker: the calling thread carries out every operation.

use std::sync::Arc;
use std::time::Instant;

use super::queue::{LinkId, QueueId};
use super::shared_state::SharedState;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{
    ConfirmOutcome, ConfirmSender, Delivery, Disposition, Limits, LinkHandle, PartialReply,
    Publication, Settler,
};

/// An open link of the memory broker.
pub(super) struct MemoryLinkHandle {
    pub(super) limits: Arc<Limits>,
    pub(super) shared: Arc<SharedState>,
    pub(super) link: LinkId,
}

impl LinkHandle for MemoryLinkHandle {
    fn publish(
        &self,
        publication: Publication,
        confirm: Option<ConfirmSender>,
        _deadline: Instant,
    ) -> Result<()> {
        publication.check(&self.limits)?;
        if self.shared.owner.is_another() {
            let fault = "the memory broker is in the process from which this one was forked, and \
                         cannot be used here";
            return Err(Error::new(ErrorKind::Misuse, fault).with_nothing_ran(true));
        }
        let mut guard = self.shared.state.lock();
        let state = guard.as_mut().ok_or_else(closed)?;
        let queues = state.route(
            &publication.exchange,
            &publication.routing_key,
            &publication.properties.headers,
        )?;
        let now = Instant::now();
        for &queue in &queues {
            state.expire(queue, now);
        }
        let (full, queues): (Vec<QueueId>, Vec<QueueId>) =
            queues.into_iter().partition(|&queue| state.is_full(queue));
        let Some(&first) = full.first() else {
            state.publish(self.link, publication, confirm, &queues, now);
            self.shared.wake_timer(&mut guard);
            return Ok(());
        };
        // As in RabbitMQ with `reject-publish`, the other queues get the message all the same.
        let fault = state.full_error_text(first);
        if !queues.is_empty() {
            state.publish(self.link, publication, None, &queues, now);
        }
        self.shared.wake_timer(&mut guard);
        match confirm {
            Some(confirm) => confirm.settle(ConfirmOutcome::Refused(fault)),
            None if queues.is_empty() => {
                let full = Error::new(ErrorKind::Broker, fault);
                return Err(full.with_nothing_ran(true));
            }
            None => {}
        }
        Ok(())
    }

    fn get(&self, queue: &str, _deadline: Instant) -> Result<Option<(Delivery, usize)>> {
        let got = self
            .shared
            .with(|state| state.get(self.link, queue, Instant::now()));
        got.ok_or_else(closed)?
    }

    fn get_own(&self, _deadline: Instant) -> Result<Option<(Delivery, usize)>> {
        let got = self
            .shared
            .with(|state| state.get_own(self.link, Instant::now()));
        got.ok_or_else(closed)?
    }

    /// Returns at once, because every operation is complete when its call returns.
    fn flush(&self, _deadline: Instant) -> Result<()> {
        Ok(())
    }

    fn stop_consuming(&self, _deadline: Instant) -> Result<()> {
        self.shared.with(|state| state.stop_consuming(self.link));
        Ok(())
    }

    fn resume_consuming(&self, _deadline: Instant) -> Result<()> {
        let resumed = self
            .shared
            .with(|state| state.start_consuming(self.link, Instant::now()));
        resumed.ok_or_else(closed)?
    }

    fn set_prefetch(&self, count: u16, _deadline: Instant) -> Result<()> {
        self.shared
            .with(|state| state.set_prefetch(self.link, count.max(1), Instant::now()));
        Ok(())
    }

    fn delete_own_queue(&self, _deadline: Instant) -> Result<()> {
        self.shared.with(|state| state.delete_own_queues(self.link));
        Ok(())
    }

    fn close(&self) {
        if self.shared.owner.is_another() {
            return;
        }
        let sink = self
            .shared
            .with(|state| state.close(self.link, Instant::now()));
        drop(sink); // outside the lock: dropping the last reference may run any code
    }
}

impl Settler for MemoryLinkHandle {
    fn settle(&self, _session: u64, tag: u64, outcome: Disposition) {
        let outcome = outcome.checked(&self.limits);
        self.shared
            .with(|state| state.settle(self.link, tag, outcome, Instant::now()));
    }

    /// Sends the reply; never blocks, because replies are accepted beyond a queue's bound.
    fn reply(&self, _session: u64, tag: u64, reply: PartialReply<'_>) {
        self.shared
            .with(|state| state.reply(self.link, tag, reply.into_publication(), Instant::now()));
    }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the memory broker has been closed").with_nothing_ran(true)
}
