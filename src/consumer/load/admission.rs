//! The decision whether a request runs, waits or is refused.

use std::time::{Duration, Instant};

use super::action_times::{ActionTimes, TimeLeft};
use super::bulkhead::{BulkheadAnswer, Bulkheads};
use super::estimate::{Backlog, Means, QueueDepth};
use super::saturation::{Occupancy, Saturation};
use super::shed::{Shed, Shedder};

/// The time that a caller is asked to wait for a place in a bulkhead whose action has not run often
/// enough to know better.
const FIRST_BUSY_AFTER: Duration = Duration::from_secs(1);

/// The settings of a [`LoadControl`]. Actions have numbers, which their owner chooses.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadSettings {
    /// The number of actions: their numbers are below it.
    pub(crate) actions: usize,
    pub(crate) shed: Option<Shed>,
    /// The actions with bulkheads, and how many of their requests may run at a time.
    pub(crate) at_most: Vec<(usize, usize)>,
}

/// A request that a worker has taken and may run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) action: usize,
    /// True if a caller waits for the reply. Other requests are never refused.
    pub(crate) is_call: bool,
    /// The time for which the caller still waits, if it is known.
    pub(crate) left: Option<Duration>,
    /// The whole time that the caller has for the call, if it is known.
    pub(crate) timeout: Option<Duration>,
    /// True for one request of each message: for a message of its own, and for the first request of
    /// a batch.
    pub(crate) opens_message: bool,
    /// True if the request can wait in this process without its worker; false in a batch.
    pub(crate) may_wait: bool,
}

/// The decision about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// The request runs. The ticket goes to [`LoadControl::finished`] afterwards.
    Run(RunTicket),
    /// The request waits in this process, after the others of its action, until
    /// [`LoadControl::finished`] or [`LoadControl::resume`] calls for it.
    PutAside,
    /// The call is answered as busy.
    Busy { after: Duration, reason: BusyReason },
    /// The command is republished to the queue of its action's bulkhead.
    Move,
    /// The call is answered as expired: it has less time left than its action takes.
    Expired,
}

/// The reason why a call is refused as busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BusyReason {
    /// Too many requests wait in the queue.
    Overload,
    /// As many requests of the action run as may at a time.
    Bulkhead,
}

/// The leave to run one request. Given back exactly once, by [`LoadControl::finished`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a ticket that is not given back occupies a place in its action's bulkhead"]
pub(crate) struct RunTicket {
    pub(crate) action: usize,
    began: Instant,
    opens_message: bool,
    is_probe: bool,
}

/// The admission of requests, and what it is based on.
#[derive(Debug)]
pub(crate) struct LoadControl {
    saturation: Saturation,
    backlog: Backlog,
    times: ActionTimes,
    shedder: Option<Shedder>,
    bulkheads: Bulkheads,
}

impl LoadControl {
    pub(crate) fn new(settings: &LoadSettings) -> Self {
        Self {
            saturation: Saturation::default(),
            backlog: Backlog::default(),
            times: ActionTimes::new(settings.actions),
            shedder: settings.shed.as_ref().map(Shedder::new),
            bulkheads: Bulkheads::new(&settings.at_most),
        }
    }

    /// Decides about a request that a worker has taken; the worker counts as busy in `occupancy`.
    ///
    /// A call that would be too late anyhow is the first to go, as it needs nothing. A place in a
    /// bulkhead comes last: only a request that nothing else refuses gets one.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        occupancy: &Occupancy,
    ) -> Admitted {
        self.saturation.update(now, occupancy);
        if arrival.opens_message {
            self.backlog.taken();
        }
        let is_probe = match self.check_time(now, arrival) {
            TimeLeft::TooLittle => return Admitted::Expired,
            TimeLeft::Enough => false,
            TimeLeft::Probe => true,
        };
        if arrival.is_call
            && let Some(after) = self.shed(now, arrival, occupancy)
        {
            let reason = BusyReason::Overload;
            return Admitted::Busy { after, reason };
        }
        let Arrival {
            action, is_call, ..
        } = *arrival;
        let prefetch = occupancy.prefetch;
        let answer = self
            .bulkheads
            .admit(action, is_call, arrival.may_wait, prefetch);
        match answer {
            BulkheadAnswer::Run => Admitted::Run(ticket(now, arrival, is_probe)),
            BulkheadAnswer::PutAside => Admitted::PutAside,
            BulkheadAnswer::Move => Admitted::Move,
            BulkheadAnswer::Busy => Admitted::Busy {
                after: self.busy_after(action),
                reason: BusyReason::Bulkhead,
            },
        }
    }

    /// Decides about a request that was put aside and to which a place has passed. Returns also
    /// whether the place has passed on to the next one of the action, because this one is too late.
    pub(crate) fn resume(&mut self, now: Instant, arrival: &Arrival) -> (Admitted, bool) {
        match self.check_time(now, arrival) {
            TimeLeft::TooLittle => {
                let passed_on = self.bulkheads.finished(arrival.action);
                (Admitted::Expired, passed_on)
            }
            left => {
                let is_probe = left == TimeLeft::Probe;
                (Admitted::Run(ticket(now, arrival, is_probe)), false)
            }
        }
    }

    /// Records that a request which was put aside has been removed: its connection was lost, or the
    /// server shuts down.
    pub(crate) fn removed(&mut self, action: usize) {
        self.bulkheads.removed(action);
    }

    /// Takes a ticket back. `ran` is false if the handler did not run after all, because the
    /// request was a repeated one for example. Returns true if the first request of the action that
    /// was put aside is to be [resumed](LoadControl::resume).
    pub(crate) fn finished(
        &mut self,
        now: Instant,
        ticket: RunTicket,
        ran: bool,
        occupancy: &Occupancy,
    ) -> bool {
        self.saturation.update(now, occupancy);
        if ran {
            let took = now.saturating_duration_since(ticket.began);
            let (action, opens_message) = (ticket.action, ticket.opens_message);
            self.times
                .add(now, action, took, opens_message, ticket.is_probe);
        }
        self.bulkheads.finished(ticket.action)
    }

    /// Returns whether the caller of a call waits for long enough.
    fn check_time(&mut self, now: Instant, arrival: &Arrival) -> TimeLeft {
        match arrival.left {
            Some(left) if arrival.is_call => self.times.check(now, arrival.action, left),
            _ => TimeLeft::Enough,
        }
    }

    fn shed(&mut self, now: Instant, arrival: &Arrival, occupancy: &Occupancy) -> Option<Duration> {
        let shedder = self.shedder.as_mut()?;
        if let Some(timeout) = arrival.timeout {
            shedder.add_timeout(timeout);
        }
        let handling = self.times.means()?.request;
        let estimate = self.wait(now, occupancy);
        let shedder = self.shedder.as_mut()?;
        shedder.refuse(now, estimate, handling, occupancy.workers)
    }

    /// Returns the time after which a place in the action's bulkhead is likely to be free.
    fn busy_after(&mut self, action: usize) -> Duration {
        let (waiting, places) = self.bulkheads.waiting(action);
        let rounds = u32::try_from(waiting / places + 1).unwrap_or(u32::MAX);
        let median = self.times.median(action);
        median.map_or(FIRST_BUSY_AFTER, |median| {
            median.saturating_mul(rounds).min(10 * FIRST_BUSY_AFTER)
        })
    }

    /// Returns the estimated wait of a request that arrives now.
    pub(crate) fn wait(&self, now: Instant, occupancy: &Occupancy) -> Duration {
        let is_saturated = self.saturation.since(now).is_some();
        let means = self.times.means().unwrap_or_default();
        self.backlog.wait(now, is_saturated, occupancy, means)
    }

    /// Returns the mean time of a request, if any has ended.
    pub(crate) fn handling_time(&self) -> Option<Duration> {
        self.times.means().map(|Means { request, .. }| request)
    }

    /// Returns the moment since which the workers have been saturated; `None` if they are not.
    pub(crate) fn saturated_since(&self, now: Instant) -> Option<Instant> {
        self.saturation.since(now)
    }

    /// Records a change of the use of the workers beside those that come with a request. To be
    /// called before [`next_sample`](LoadControl::next_sample): idle workers take no requests.
    pub(crate) fn update(&mut self, now: Instant, occupancy: &Occupancy) {
        self.saturation.update(now, occupancy);
    }

    /// Returns the moment of the next sample of the queues' depth; `None` while none is worth its
    /// cost.
    pub(crate) fn next_sample(&self) -> Option<Instant> {
        self.saturation.next_sample()
    }

    /// Records that a sample is being taken.
    pub(crate) fn sampling(&mut self, now: Instant) {
        self.saturation.sampling(now);
    }

    /// Records a sample of the queues' depth.
    pub(crate) fn sampled(&mut self, now: Instant, depth: &QueueDepth) {
        self.backlog.sampled(now, depth);
    }
}

fn ticket(now: Instant, arrival: &Arrival, is_probe: bool) -> RunTicket {
    RunTicket {
        action: arrival.action,
        began: now,
        opens_message: arrival.opens_message,
        is_probe,
    }
}
