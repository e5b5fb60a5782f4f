//! The decision whether a request runs, waits or is refused.

use std::time::{Duration, Instant};

use super::action_times::{ActionTimes, TimeLeft};
use super::estimate::{Backlog, Means, QueueDepth, is_fresh};
use super::saturation::{Occupancy, Saturation};
use super::shed::{Shed, Shedder};

/// The settings of a [`LoadControl`]. Actions have numbers, which their owner chooses.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadSettings {
    /// The number of actions: their numbers are below it.
    pub(crate) actions: usize,
    pub(crate) shed: Option<Shed>,
    /// True if an action has a bound.
    pub(crate) has_bounds: bool,
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
}

impl Arrival {
    /// Returns the time for which the call has waited, if that is known.
    fn waited(&self) -> Option<Duration> {
        Some(self.timeout?.saturating_sub(self.left?))
    }
}

/// The decision about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// The request runs. The ticket goes to [`LoadControl::finished`] afterwards.
    Run(RunTicket),
    /// The call is answered as busy: too many requests wait in the queue.
    Busy { after: Duration },
    /// The call is answered as expired: it has less time left than its action takes.
    Expired,
}

/// The begin of one request, for [`LoadControl::finished`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunTicket {
    action: usize,
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
    /// The moment at which a request last began or ended.
    changed: Option<Instant>,
    /// The time for which the last call had waited that a worker took, and that moment.
    waited: Option<(Instant, Duration)>,
}

impl LoadControl {
    pub(crate) fn new(settings: &LoadSettings) -> Self {
        Self {
            saturation: Saturation::default(),
            backlog: Backlog::default(),
            times: ActionTimes::new(settings.actions),
            shedder: settings.shed.as_ref().map(Shedder::new),
            changed: None,
            waited: None,
        }
    }

    /// Decides about a request that a worker has taken; the worker counts as busy in `occupancy`.
    ///
    /// A call that would be too late anyhow is the first to go, as it needs nothing.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        occupancy: &Occupancy,
    ) -> Admitted {
        self.saturation.update(now, occupancy);
        self.changed = Some(now);
        if let Some(waited) = arrival.waited() {
            self.waited = Some((now, waited));
        }
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
            return Admitted::Busy { after };
        }
        Admitted::Run(RunTicket {
            action: arrival.action,
            began: now,
            opens_message: arrival.opens_message,
            is_probe,
        })
    }

    /// Records that an admitted request has ended. `ran` is false if the handler did not run after
    /// all, because the request was a repeated one for example.
    pub(crate) fn finished(
        &mut self,
        now: Instant,
        ticket: RunTicket,
        ran: bool,
        occupancy: &Occupancy,
    ) {
        self.saturation.update(now, occupancy);
        self.changed = Some(now);
        if ran {
            let took = now.saturating_duration_since(ticket.began);
            let (action, opens_message) = (ticket.action, ticket.opens_message);
            self.times
                .add(now, action, took, opens_message, ticket.is_probe);
        }
    }

    /// Returns whether the caller of a call waits for long enough.
    fn check_time(&mut self, now: Instant, arrival: &Arrival) -> TimeLeft {
        match arrival.left {
            Some(left) if arrival.is_call => self.times.check(now, arrival.action, left),
            _ => TimeLeft::Enough,
        }
    }

    fn shed(&mut self, now: Instant, arrival: &Arrival, occupancy: &Occupancy) -> Option<Duration> {
        let estimate = self.wait(now, occupancy);
        let shedder = self.shedder.as_mut()?;
        if let Some(timeout) = arrival.timeout {
            shedder.add_timeout(timeout);
        }
        let handling = self.times.means()?.request;
        shedder.refuse(now, estimate, handling, occupancy.workers)
    }

    /// Returns the median time of an action, if it has run often enough.
    pub(crate) fn median(&mut self, action: usize) -> Option<Duration> {
        self.times.median(action)
    }

    /// Returns the estimated wait of a request that arrives now.
    ///
    /// All requests that run take at least as long as nothing has changed: otherwise the first slow
    /// ones would be seen only when they end.
    pub(crate) fn wait(&self, now: Instant, occupancy: &Occupancy) -> Duration {
        let since = self.saturation.since(now);
        let unchanged = since.map(|since| self.changed.map_or(since, |at| at.max(since)));
        let unchanged = unchanged.map(|at| now.saturating_duration_since(at));
        let least = unchanged.unwrap_or_default();
        let means = self.times.means().unwrap_or_default();
        let means = Means {
            request: means.request.max(least),
            message: means.message.max(least),
        };
        let wait = self.backlog.wait(now, since.is_some(), occupancy, means);
        // The broker does not count the messages in the instance's own queue for others.
        match (since, self.waited) {
            (Some(_), Some((at, waited))) if is_fresh(now, at) => wait.max(waited),
            _ => wait,
        }
    }

    /// Returns true if calls may be refused.
    pub(crate) fn sheds(&self) -> bool {
        self.shedder.is_some()
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
