//! The delays between the attempts at a message.

use std::collections::HashMap;
use std::time::Duration;

/// The longest time for which a message may wait in this process: RabbitMQ gives up a consumer that
/// has not acknowledged for 30 minutes.
pub(crate) const LONGEST_HELD: Duration = Duration::from_secs(25 * 60);

/// The delays before a failed message's second attempt, its third, and so on, and the place where
/// it waits.
pub(crate) struct Retries {
    /// True if messages wait in this process, unacknowledged: their order matters, or the queue is
    /// deleted with this process. Otherwise they wait in queues of the broker, and block nothing.
    pub(crate) are_held: bool,
    pub(crate) delays: Vec<Duration>,
    /// The delays of the actions that have their own.
    pub(crate) of_actions: HashMap<String, Vec<Duration>>,
    /// The delay of messages that cannot be processed or dead-lettered now.
    pub(crate) parking: Duration,
}

impl Retries {
    /// Returns the delays of an action before the second attempt, the third, and so on.
    fn delays(&self, action: &str) -> &[Duration] {
        self.of_actions.get(action).unwrap_or(&self.delays)
    }

    /// Returns the delay after `failed` attempts before the one that has just failed; `None` if
    /// that was the last one.
    pub(super) fn next_delay(&self, action: &str, failed: usize) -> Option<Duration> {
        self.delays(action).get(failed).copied()
    }

    /// Returns the delay of messages that cannot be processed or dead-lettered now.
    pub(super) fn parking(&self) -> Duration {
        self.parking
    }

    /// Returns true if there is a queue with this delay.
    pub(super) fn has_queue(&self, delay: Duration) -> bool {
        self.all().any(|other| other == delay)
    }

    fn all(&self) -> impl Iterator<Item = Duration> {
        let lists = self.of_actions.values().chain([&self.delays]);
        lists.flatten().copied().chain([self.parking])
    }

    /// Returns the part of a delay for which a message can wait in this process.
    pub(super) fn held(&self, delay: Duration) -> Duration {
        delay.min(LONGEST_HELD)
    }

    /// Returns the delay of the queue that stands in for the one with `delay`: the next longer delay,
    /// or the next shorter one of the longest. Returns `None` if there is no other queue.
    pub(super) fn stand_in(&self, delay: Duration) -> Option<Duration> {
        let (longer, shorter): (Vec<_>, Vec<_>) = self
            .all()
            .filter(|other| *other != delay)
            .partition(|other| *other > delay);
        longer.into_iter().min().or(shorter.into_iter().max())
    }

    /// Returns true if messages wait in this process.
    pub(super) fn are_held(&self) -> bool {
        self.are_held
    }

    /// Returns the delay of a message that its handler refuses for the time `after`: the
    /// shortest of the action's delays that is long enough, or the one with the index `step` in their
    /// order if that is longer; at most the longest.
    pub(super) fn refusal_delay(&self, action: &str, after: Duration, step: usize) -> Duration {
        let mut delays = self.delays(action).to_vec();
        delays.sort_unstable();
        let long_enough = delays.partition_point(|delay| *delay < after);
        let delay = delays.get(long_enough.max(step)).copied();
        delay.unwrap_or_else(|| self.parking())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn seconds(delays: &[u64], parking: u64) -> Retries {
        Retries {
            are_held: false,
            delays: delays.iter().copied().map(Duration::from_secs).collect(),
            of_actions: HashMap::new(),
            parking: Duration::from_secs(parking),
        }
    }

    #[test]
    fn a_refused_message_waits_long_enough_and_longer_each_time() {
        let retries = seconds(&[25, 1, 5, 125], 125);
        let delay = |after, step| {
            let delay = retries.refusal_delay("a", Duration::from_secs(after), step);
            delay.as_secs()
        };
        assert_eq!(
            [0, 1, 2, 3, 4, 99].map(|step| delay(0, step)),
            [1, 5, 25, 125, 125, 125]
        );
        assert_eq!([0, 1, 2, 3].map(|step| delay(6, step)), [25, 25, 25, 125]);
        assert_eq!(delay(1, 0), 1);
        assert_eq!(
            delay(1_000, 0),
            125,
            "there is no queue with a longer delay"
        );
        assert_eq!(
            seconds(&[], 60)
                .refusal_delay("a", Duration::ZERO, 0)
                .as_secs(),
            60
        );
    }

    #[test]
    fn an_action_may_have_delays_of_its_own() {
        let mut retries = seconds(&[1, 5], 5);
        let hour = Duration::from_secs(3_600);
        retries.of_actions.insert("mail".to_owned(), vec![hour]);
        retries.of_actions.insert("once".to_owned(), vec![]);
        assert_eq!(retries.next_delay("mail", 0), Some(hour));
        assert_eq!(retries.next_delay("mail", 1), None);
        assert_eq!(retries.next_delay("once", 0), None);
        assert_eq!(retries.next_delay("other", 1), Some(Duration::from_secs(5)));
        assert!(retries.has_queue(hour) && !retries.has_queue(2 * hour));
        assert_eq!(retries.stand_in(Duration::from_secs(5)), Some(hour));
        assert_eq!(retries.refusal_delay("mail", Duration::ZERO, 0), hour);
        assert_eq!(retries.held(hour), LONGEST_HELD);
    }

    #[test]
    fn the_next_longer_queue_stands_in_or_that_before_the_longest() {
        let retries = seconds(&[25, 1, 5], 125);
        let stand_in = |delay| retries.stand_in(Duration::from_secs(delay));
        let waits = [1, 5, 25, 125].map(|delay| stand_in(delay).map(|it| it.as_secs()));
        assert_eq!(waits, [Some(5), Some(25), Some(125), Some(25)]);
        let only = seconds(&[60, 60], 60);
        assert_eq!(only.stand_in(Duration::from_secs(60)), None);
    }

    proptest! {
        #[test]
        fn the_delay_of_a_refusal_is_that_of_a_queue_and_never_shrinks(
            delays in vec(1_u64..100, 0..6), after in 0_u64..120, step in 0_usize..8,
        ) {
            let longest = delays.iter().copied().max().unwrap_or(60);
            let retries = seconds(&delays, longest);
            let delay = |step| retries.refusal_delay("a", Duration::from_secs(after), step).as_secs();
            prop_assert!(delays.contains(&delay(step)) || delay(step) == longest);
            prop_assert!(delay(step) >= after.min(longest));
            prop_assert!(delay(step + 1) >= delay(step));
            prop_assert_eq!(delay(delays.len()), longest);
        }
    }
}
