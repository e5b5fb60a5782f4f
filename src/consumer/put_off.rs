//! Putting messages off until their turns in a rate limit.

use std::time::Duration;

use super::LocalAttempts;
use super::local_retry::LocalRetry;
use super::republisher::Republisher;
use super::tracked::Tracked;
use crate::transport::x_death::Death;

impl Republisher {
    /// Schedules a message for its turn in a rate limit, after the time `turn`: in the retry queue
    /// with the shortest delay that is long enough, for as long as it has to wait, or in this
    /// process. Nothing was done, so no attempt is used up.
    pub(super) fn put_off_by_limit(
        &self,
        delivery: Tracked,
        attempt: LocalAttempts,
        turn: Duration,
    ) -> Option<LocalRetry> {
        let delay = self.retries.refusal_delay(turn, 0);
        let time = turn.clamp(Duration::from_millis(1), delay);
        if self.retries.are_held() {
            return Some(LocalRetry {
                delivery,
                attempt,
                delay: time,
            });
        }
        let mut copy = self.copy(delivery.delivery(), "", self.queue.retry_queue(delay));
        copy.properties.expiration = Some(time);
        Death::forget(&mut copy.properties.headers);
        let second = self.stand_in_copy(&copy, delay);
        self.republish(delivery, copy, None, second);
        None
    }
}
