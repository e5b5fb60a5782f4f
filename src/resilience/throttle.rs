//! Client-side throttling of calls to a service that refuses many as busy.

use std::time::{Duration, Instant};

use crate::base::window::Window;
use crate::error::{Error, ErrorKind, Result};

/// The chance that the service, while overloaded, accepts so many requests in a row that the counts
/// are cleared.
const CHANCE_TO_CLEAR: f64 = 1e-6;

/// The lowest `k`. At 1 exactly as many requests are made as the service accepts: their number
/// would not grow after an overload.
const LEAST_K: f64 = 1.1;

/// The number of requests per second, on the average of the window, below which none is refused:
/// too few to matter to the service, and to judge it by.
const LEAST_RATE: f64 = 5.0;

/// A throttle: while a service refuses many requests as [`Busy`](crate::ErrorKind::Busy), a share
/// of the calls to it is refused in this process, before anything is sent.
///
/// This is the adaptive throttling of the chapter "Handling Overload" of the book *Site
/// Reliability Engineering*. For a service that is overloaded even a refusal is work. Each client
/// counts, per service and over the [`window`](Throttle::window), its *requests*: all attempts
/// whose outcome is known, including those that the throttle refused; and its *accepts*: those
/// of them that the service did not refuse as busy, whatever else became of them. A call is then
/// refused with the probability
///
/// ```text
/// max(0, (requests − k · accepts) / (requests + 1)),    at most 0.9
/// ```
///
/// so that no more than about [`k`](Throttle::k) times as many messages reach the service as it
/// accepts, unless even a tenth of the calls is more than that. A request that is in flight counts
/// in neither: calls to a service that has become slow are not refused for it. No call is refused
/// while there are fewer than 5 requests per second on the average of the window.
///
/// After an overload the formula alone would refuse calls for minutes, since its own refusals
/// count as requests. So the counts are cleared once the service has refused no request for a tenth
/// of the window and has accepted 20 in a row (with a `k` of 2; more with a lower one). While it is
/// overloaded it accepts one request out of `k`, and so many in a row with a chance of one in a
/// million.
///
/// ```
/// use std::time::Duration;
/// use coney::resilience::Throttle;
///
/// let throttle = Throttle::new().k(1.5).window(Duration::from_secs(10));
/// # let _ = throttle;
/// ```
#[derive(Clone, Debug)]
#[must_use = "a throttle has no effect until a client gets it"]
pub struct Throttle {
    k: f64,
    window: Duration,
    at_most: f64,
}

impl Throttle {
    /// Creates a throttle with the defaults.
    pub fn new() -> Self {
        Self {
            k: 2.0,
            window: Duration::from_secs(30),
            at_most: 0.9,
        }
    }

    /// Sets how many requests are made for each one that the service accepts before calls are
    /// refused: at least 1.1. A higher number loads the service with more refusals of its own, and
    /// a lower one refuses calls that it may have accepted. Defaults to 2.
    pub fn k(mut self, k: f64) -> Self {
        self.k = k;
        self
    }

    /// Sets the length of the window in which requests are counted, in 30 buckets: a shorter one
    /// reacts sooner to overload and to its end. Defaults to 30 s.
    pub fn window(mut self, length: Duration) -> Self {
        self.window = length;
        self
    }

    /// Sets the largest share of calls that is refused: above 0 and below 1, since a service that
    /// gets no request cannot accept one. Defaults to 0.9.
    pub fn at_most(mut self, share: f64) -> Self {
        self.at_most = share;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for the first setting that is out of range.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { k, at_most, .. } = self;
        let remedy = if !(k.is_finite() && *k >= LEAST_K) {
            format!("set k to at least {LEAST_K}, not to {k}")
        } else if self.window.is_zero() {
            "set a window longer than zero, such as 30 s".to_owned()
        } else if !(*at_most > 0.0 && *at_most < 1.0) {
            format!("set at_most above 0 and below 1, not to {at_most}")
        } else {
            return Ok(());
        };
        let text = format!("invalid throttle: {remedy}");
        Err(Error::new(ErrorKind::InvalidConfig, text))
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new()
    }
}

/// The refusal of a call by the throttle. It has no time to wait: the next call may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Throttled;

/// The throttle of one service.
#[derive(Debug)]
pub(crate) struct ThrottleState {
    k: f64,
    at_most: f64,
    /// The number of requests in the window below which none is refused.
    least: f64,
    /// Requests and accepts.
    window: Window<30, 2>,
    /// The last refusal by the service, unless the counts were cleared since.
    last_busy: Option<Instant>,
    /// The number of accepts since then.
    accepted: u32,
    /// The number of accepts in a row, and the time without a refusal, that clear the counts.
    enough: u32,
    calm: Duration,
    random: fastrand::Rng,
}

impl ThrottleState {
    /// Creates a throttle without any request.
    pub(crate) fn new(settings: &Throttle) -> Self {
        Self::with_random(settings, fastrand::Rng::new())
    }

    /// Creates a throttle with a source of random numbers for its decisions.
    fn with_random(settings: &Throttle, random: fastrand::Rng) -> Self {
        Self {
            k: settings.k,
            at_most: settings.at_most,
            least: LEAST_RATE * settings.window.as_secs_f64(),
            window: Window::new(settings.window),
            last_busy: None,
            accepted: 0,
            enough: (CHANCE_TO_CLEAR.ln() / settings.k.recip().ln()).ceil() as u32,
            calm: settings.window / 10,
            random,
        }
    }

    /// Decides whether an attempt is made. One that is refused counts as a request at once; one
    /// that is made counts when it has [`ended`](ThrottleState::ended).
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Throttled> {
        let [requests, accepts] = self.window.sums(now).map(|sum| sum as f64);
        let excess = requests - self.k * accepts;
        if excess <= 0.0 || requests < self.least {
            return Ok(());
        }
        let share = (excess / (requests + 1.0)).min(self.at_most);
        if self.random.f64() >= share {
            return Ok(());
        }
        self.window.add(now, [true, false]);
        Err(Throttled)
    }

    /// Counts the outcome of an attempt that was made. `busy` is true if the service refused it.
    /// Not called for an attempt without an outcome, which then does not count.
    pub(crate) fn ended(&mut self, busy: bool, now: Instant) {
        if busy {
            (self.last_busy, self.accepted) = (Some(now), 0);
        } else if let Some(last) = self.last_busy {
            self.accepted = self.accepted.saturating_add(1);
            let calm_for = now.saturating_duration_since(last);
            if self.accepted >= self.enough && calm_for >= self.calm {
                self.window.clear();
                self.last_busy = None;
            }
        }
        self.window.add(now, [true, !busy]);
    }
}

#[cfg(test)]
mod tests;
