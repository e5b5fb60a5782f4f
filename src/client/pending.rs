//! The first of several results that are still to come.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, unbounded};

use super::call_outcome::CallOutcome;
use crate::base::callbacks::Notifier;
use crate::base::deadline;
use crate::transport::ConfirmReceiver;

/// A result that is still to come: a [`PendingReply`](crate::PendingReply), a
/// [`PendingConfirm`](crate::PendingConfirm) or a
/// [`PendingBatch`](crate::batch::PendingBatch). Not for other types to implement.
#[expect(private_bounds, reason = "seals the trait")]
pub trait Pending: Progress {}

/// The part of [`Pending`] that programs do not see.
pub(crate) trait Progress {
    /// Returns true if waiting would return at once. Blocks only to send calls again: those of a batch,
    /// and the next attempt of a call with policies.
    fn is_ready(&mut self) -> bool;

    /// Returns the moment after which waiting returns at once in any case.
    fn deadline(&self) -> Instant;

    /// Returns the channel or the confirm that the next progress comes by.
    fn ready_on(&self) -> ReadyOn<'_>;
}

/// The way by which a pending result makes progress.
pub(crate) enum ReadyOn<'a> {
    Reply(&'a Receiver<CallOutcome>),
    Confirm(&'a ConfirmReceiver),
    /// Nothing: the result is ready.
    Nothing,
}

impl<P: Progress + ?Sized> Progress for &mut P {
    fn is_ready(&mut self) -> bool {
        (**self).is_ready()
    }

    fn deadline(&self) -> Instant {
        (**self).deadline()
    }

    fn ready_on(&self) -> ReadyOn<'_> {
        (**self).ready_on()
    }
}

impl<P: Pending + ?Sized> Pending for &mut P {}

/// Blocks until one of `pending` is ready, at most `timeout`, and returns its index: its
/// `try_wait` returns `Some` then. `None` if none is ready in time, or there are none. A result
/// whose deadline has passed is ready, and so is one that was taken already: remove it before the
/// next round. A [`PendingBatch`](crate::batch::PendingBatch), or a call that is
/// [tried again](crate::resilience::Retry), may make it block for longer, to send calls again.
///
/// Results of one type can stay in their `Vec`; of several types, pass `&mut dyn Pending`s.
///
/// ```
/// use std::time::Duration;
/// use coney::client::{Pending, wait_any};
/// # use coney::{Broker, ServiceClient, ServiceServer};
/// # let broker = Broker::memory();
/// # let server = ServiceServer::builder(&broker, "math")
/// #     .respond("double", |n: u64| n * 2)
/// #     .respond("slow", |n: u64| { std::thread::sleep(Duration::from_millis(100)); n })
/// #     .start()?;
/// # let client = ServiceClient::new(&broker, "order-service")?;
/// let mut slow = client.call_async::<u64>("math", "slow", &1)?;
/// let mut fast = client.call_async::<u64>("math", "double", &2)?;
/// let mut both: [&mut dyn Pending; 2] = [&mut slow, &mut fast];
/// assert_eq!(wait_any(&mut both, Duration::from_secs(5)), Some(1));
/// assert_eq!(fast.wait()?, 4);
///
/// let calls = (0..3).map(|n| client.call_async::<u64>("math", "double", &n));
/// let mut calls = calls.collect::<coney::Result<Vec<_>>>()?;
/// let mut sum = 0;
/// while let Some(first) = wait_any(&mut calls, Duration::from_secs(5)) {
///     sum += calls.swap_remove(first).wait()?;
/// }
/// assert_eq!(sum, 6);
/// # Ok::<(), coney::Error>(())
/// ```
pub fn wait_any<P: Pending>(pending: &mut [P], timeout: Duration) -> Option<usize> {
    let end = deadline::after(timeout);
    let (ready, confirmed) = unbounded();
    loop {
        // Before looking: a confirm in between is not missed then.
        for one in pending.iter() {
            if let ReadyOn::Confirm(confirm) = one.ready_on() {
                confirm.set_notifier(Notifier::new(ready.clone(), 0));
            }
        }
        let now = Instant::now();
        let is_ready = |one: &mut P| one.is_ready() || one.deadline() <= now;
        if let Some(at) = pending.iter_mut().position(is_ready) {
            return Some(at);
        }
        let first = pending.iter().map(|one| one.deadline()).min()?;
        if now >= end {
            return None;
        }
        let mut select = Select::new();
        select.recv(&confirmed);
        for one in pending.iter() {
            if let ReadyOn::Reply(replies) = one.ready_on() {
                select.recv(replies);
            }
        }
        let _ = select.ready_deadline(first.min(end));
        confirmed.try_iter().for_each(drop);
    }
}
