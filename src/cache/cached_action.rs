//! The client's side of a cached action: reading, and refreshing what is stale.

use std::sync::Arc;
use std::time::Instant;

use super::action::{Action, Found};
use super::core::{JoinedOutcome, Outcome};
use super::entries::{Entry, Response};
use super::fill::ActionFill;
use super::flights::Joined;
use super::key::{Key, KeyRef};
use crate::base::catch::catch;
use crate::base::log_relay;
use crate::client::{ActionCache, BackgroundCall, CacheRead, CachedAnswer, CachedRequest, Fill};
use crate::error::Result;
use crate::transport::Broker;

/// The cache of an action, as a client uses it.
pub(super) struct CachedAction(pub(super) Arc<Action>);

impl CachedAction {
    /// Looks a response up, counts it, and has it refreshed if it is stale.
    pub(super) fn look_up(
        &self,
        key: KeyRef<'_>,
        request: &CachedRequest<'_>,
        now: Instant,
    ) -> Option<Result<CachedAnswer>> {
        let Found { entry, is_stale } = self.0.find(key, now)?;
        let counters = &self.0.core.counters;
        match is_stale {
            true => counters.stale.count(),
            false => counters.hits.count(),
        }
        if is_stale && entry.begin_refresh(now) {
            self.refresh_later(key.to_key(), Arc::clone(&entry), (request.refresh)());
        }
        Some(match &entry.response {
            Response::Text(text) => Ok(CachedAnswer {
                text: Arc::clone(text),
                is_stale,
            }),
            Response::Error(error) => Err(error.duplicate()),
        })
    }

    /// Has an entry refreshed on the thread `coney-cache-NAME`.
    fn refresh_later(&self, key: Key, entry: Arc<Entry>, call: BackgroundCall) {
        let (action, refreshed) = (Arc::clone(&self.0), Arc::clone(&entry));
        let job = move || {
            // A panic in the program's `tags` must not keep the entry from being refreshed later.
            let result = catch(|| refresh(&action, key, call));
            refreshed.end_refresh(Instant::now());
            if let Err(panic) = result {
                log_relay::log(
                    log::Level::Error,
                    "coney::cache",
                    format_args!("a refresh panicked: {panic}"),
                );
            }
        };
        let jobs = self.0.core.refresher.jobs(self.0.client());
        let is_added = jobs.is_ok_and(|jobs| jobs.add(Box::new(job)).is_ok());
        if !is_added {
            entry.end_refresh(Instant::now());
        }
    }

    pub(super) fn read_at(&self, request: &CachedRequest<'_>, now: Instant) -> CacheRead {
        let varied = self.0.varied(request);
        let key = self.0.key(&varied, request.payload);
        if let Some(found) = self.look_up(key, request, now) {
            return found.map_or_else(CacheRead::Error, CacheRead::Answer);
        }
        let key = key.to_key();
        let core = &self.0.core;
        let is_current = |stamp: &_| self.0.is_unchanged(stamp);
        let joined: JoinedOutcome = core.flights.join(key.clone(), request.deadline, is_current);
        let lead = match joined {
            Joined::Shared(outcome) => {
                core.counters.shared.count();
                return match outcome {
                    Outcome::Answer(answer) => CacheRead::Answer(answer),
                    Outcome::Error(error) => CacheRead::Error(error.duplicate()),
                };
            }
            // No time is left, so that its own call says which operation has timed out.
            Joined::TooLate => None,
            Joined::Lead(lead) => Some(lead),
        };
        let now = now.max(Instant::now()); // it may have waited
        // The last leader may have stored its response after the look-up above.
        if let Some(found) = self.look_up(key.as_ref(), request, now) {
            if let Some(lead) = lead {
                lead.land(match &found {
                    Ok(answer) => Outcome::Answer(answer.clone()),
                    Err(error) => Outcome::Error(Arc::new(error.duplicate())),
                });
            }
            return found.map_or_else(CacheRead::Error, CacheRead::Answer);
        }
        core.counters.misses.count();
        CacheRead::Lead(Box::new(ActionFill::begin(&self.0, key, lead, now)))
    }

    pub(super) fn begin_at(&self, request: &CachedRequest<'_>, now: Instant) -> ActionFill {
        self.0.core.counters.misses.count();
        let varied = self.0.varied(request);
        let key = self.0.key(&varied, request.payload).to_key();
        ActionFill::begin(&self.0, key, None, now)
    }
}

/// Refreshes an entry, unless that has been done, or is under way.
fn refresh(action: &Arc<Action>, key: Key, call: BackgroundCall) {
    let found = action.find(key.as_ref(), Instant::now());
    if found.is_some_and(|found| !found.is_stale) {
        return;
    }
    let is_current = |stamp: &_| action.is_unchanged(stamp);
    let Some(lead) = action.core.flights.lead(key.clone(), is_current) else {
        return;
    };
    let fill = ActionFill::begin(action, key, Some(lead), Instant::now());
    let result = call();
    // A failed refresh leaves the entry as it is.
    fill.settle(result.as_deref(), Instant::now());
}

impl ActionCache for CachedAction {
    fn open(&self, broker: &Broker, client: &str, deadline: Option<Instant>) -> Result<()> {
        self.0.open(broker, client, deadline)
    }

    fn read(&self, request: &CachedRequest<'_>) -> CacheRead {
        self.read_at(request, Instant::now())
    }

    fn peek(&self, request: &CachedRequest<'_>) -> Option<Result<CachedAnswer>> {
        let varied = self.0.varied(request);
        let key = self.0.key(&varied, request.payload);
        self.look_up(key, request, Instant::now())
    }

    fn begin_fill(&self, request: &CachedRequest<'_>) -> Fill {
        Box::new(self.begin_at(request, Instant::now()))
    }
}
