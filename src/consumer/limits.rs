//! The rate limits of a server's actions, or of a subscription.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Context;
use crate::base::catch::catch;
use crate::error::Result;
use crate::resilience::{CountPeers, Limiter, RateLimit};

/// The function that returns the key of a request; each key has a limit of its own.
pub(crate) type LimitKey = Arc<dyn Fn(&Context<'_>) -> String + Send + Sync>;

/// The settings of a limit.
pub(crate) struct LimitSettings {
    pub(crate) rate: RateLimit,
    /// `None` if all requests count together.
    pub(crate) key: Option<LimitKey>,
}

impl LimitSettings {
    /// Checks the limit. `counts_peers` is true if a registry knows the instances of the service.
    pub(crate) fn check(&self, what: impl fmt::Display, counts_peers: bool) -> Result<()> {
        let checked = self.rate.check(counts_peers);
        checked.map_err(|error| error.about(format_args!("the limit of {what}")))
    }
}

/// The rate limits of the requests of one queue, with their state.
#[derive(Default)]
pub(crate) struct RequestLimits {
    by_action: HashMap<String, Vec<RequestLimit>>,
    /// The limits of all requests together, whatever their action.
    of_all: Vec<RequestLimit>,
    /// Kept as long as the limits may count by it.
    _count_peers: Option<CountPeers>,
}

struct RequestLimit {
    limiter: Limiter,
    key: Option<LimitKey>,
}

/// The outcome of the limits for one request.
pub(super) enum LimitOutcome {
    Admitted,
    Over(OverLimit),
    /// The function that returns the key has panicked; the text of the panic.
    Panicked(String),
}

/// The refusal of a request by a limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverLimit {
    /// The time after which there may be a free place.
    pub(super) retry_after: Duration,
    /// The time after which the request comes back if it is put off.
    pub(super) turn: Duration,
}

impl RequestLimits {
    /// Creates the limits of a server's actions. `count_peers` counts the instances of the service,
    /// for limits that they share.
    pub(crate) fn by_action(
        settings: Vec<(String, LimitSettings)>,
        count_peers: Option<CountPeers>,
    ) -> Self {
        let mut limits = Self::default();
        for (action, settings) in settings {
            let of_action = limits.by_action.entry(action).or_default();
            of_action.push(RequestLimit::new(settings, count_peers.as_ref()));
            // One of a key first: what it refuses must not use up the limit of all.
            of_action.sort_by_key(|limit| limit.key.is_none());
        }
        limits._count_peers = count_peers;
        limits
    }

    /// Creates the limit of all requests together.
    pub(crate) fn of_all(settings: Option<LimitSettings>) -> Self {
        let of_all = settings.map(|settings| RequestLimit::new(settings, None));
        Self {
            of_all: of_all.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Admits a request by the limits of its action. A worker waits for a short time if the turn of
    /// a request that may wait is about due, or a shared limit is being asked.
    pub(super) fn admit(
        &self,
        context: &Context<'_>,
        may_wait: bool,
        longest_turn: Duration,
    ) -> LimitOutcome {
        let limits = match self.by_action.is_empty() {
            true => &self.of_all,
            false => match self.by_action.get(context.action()) {
                Some(limits) => limits,
                None => return LimitOutcome::Admitted,
            },
        };
        for limit in limits {
            // It is code of the program.
            let key = match limit.key.as_ref().map(|key| catch(|| key(context))) {
                None => None,
                Some(Ok(key)) => Some(key),
                Some(Err(panic)) => return LimitOutcome::Panicked(panic),
            };
            if let Err(over) = limit.admit(key.as_deref(), context, may_wait, longest_turn) {
                return LimitOutcome::Over(over);
            }
        }
        LimitOutcome::Admitted
    }
}

impl RequestLimit {
    fn new(settings: LimitSettings, count_peers: Option<&CountPeers>) -> Self {
        let LimitSettings { rate, key } = settings;
        let limiter = Limiter::new(&rate, key.is_some());
        if let Some(count) = count_peers {
            limiter.count_peers_by(count);
        }
        Self { limiter, key }
    }

    fn admit(
        &self,
        key: Option<&str>,
        context: &Context<'_>,
        may_wait: bool,
        longest_turn: Duration,
    ) -> Result<(), OverLimit> {
        let now = Instant::now();
        let pause = if may_wait {
            self.limiter.pause()
        } else {
            Duration::ZERO
        };
        match self.limiter.admit(key, now, pause, context.deadline) {
            Ok(None) => Ok(()),
            Ok(Some(at)) => {
                std::thread::sleep(at.saturating_duration_since(now));
                Ok(())
            }
            Err(retry_after) => {
                let turn = match may_wait {
                    true => self.limiter.put_off(key, now, retry_after, longest_turn),
                    false => retry_after,
                };
                Err(OverLimit { retry_after, turn })
            }
        }
    }
}
