//! Saturation: no worker is free, and the broker has more messages than the prefetch allows.

use std::time::{Duration, Instant};

/// The time after which workers count as saturated: a burst that they finish sooner needs neither
/// another worker nor a refusal.
const LEAST: Duration = Duration::from_millis(100);

/// The longest gap. After each acknowledgement the broker takes a round trip to send the next
/// message, and so long a worker may be idle although messages wait.
const LONGEST_GAP: Duration = Duration::from_millis(20);

/// The interval of the samples of the queue's depth.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// The use of workers at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Occupancy {
    /// The number of workers that run something.
    pub(crate) busy: usize,
    /// The number of workers, idle ones included.
    pub(crate) workers: usize,
    /// The number of messages in this process that are not settled.
    pub(crate) unsettled: usize,
    pub(crate) prefetch: usize,
    /// The number of messages in this process that no worker has begun.
    pub(crate) waiting: usize,
    /// The number of requests of begun batches that no worker has taken.
    pub(crate) batched: usize,
}

impl Occupancy {
    /// Returns true if hardly a worker is free and the broker may hardly send more: the messages
    /// that take the place of the last acknowledged ones may be on their way. Workers that are
    /// taken for saturated, and have no message waiting at the broker, cost a few samples.
    fn is_full(&self) -> bool {
        let on_their_way = (self.prefetch / 4).max(1);
        self.workers > 0
            && self.busy + self.workers / 8 >= self.workers
            && self.unsettled + on_their_way >= self.prefetch
    }
}

/// The saturation of workers: all are busy and the prefetch is full, for 100 ms and without a gap
/// of more than 20 ms.
#[derive(Debug, Default)]
pub(super) struct Saturation {
    /// The beginning of the time without a gap.
    full_since: Option<Instant>,
    /// The beginning of the present gap.
    gap_since: Option<Instant>,
    sampled: Option<Instant>,
}

impl Saturation {
    /// Records the use of the workers at a moment. A gap counts if it is seen twice: slow requests
    /// are few, and one of the moments may be in a round trip.
    pub(super) fn update(&mut self, now: Instant, occupancy: &Occupancy) {
        if occupancy.is_full() {
            self.full_since.get_or_insert(now);
            self.gap_since = None;
            return;
        }
        let since = *self.gap_since.get_or_insert(now);
        if now.saturating_duration_since(since) > LONGEST_GAP {
            self.full_since = None;
        }
    }

    /// Returns the moment since which the workers have been saturated; `None` if they are not.
    pub(super) fn since(&self, now: Instant) -> Option<Instant> {
        let since = self.full_since?;
        (now.saturating_duration_since(since) >= LEAST).then_some(since)
    }

    /// Returns the moment at which a sample of the queue's depth is next worth its cost; `None` if
    /// the workers have had a gap.
    pub(super) fn next_sample(&self) -> Option<Instant> {
        let first = self.full_since? + LEAST;
        let next = self.sampled.map(|sampled| sampled + SAMPLE_INTERVAL);
        Some(next.map_or(first, |next| next.max(first)))
    }

    /// Records that a sample is being taken.
    pub(super) fn sampling(&mut self, now: Instant) {
        self.sampled = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn occupancy(full: bool) -> Occupancy {
        Occupancy {
            busy: 1 + usize::from(full),
            workers: 2,
            unsettled: 4,
            prefetch: 4,
            ..Occupancy::default()
        }
    }

    #[test]
    fn workers_are_saturated_after_a_tenth_of_a_second_without_a_gap() {
        let (start, mut saturation) = (Instant::now(), Saturation::default());
        assert_eq!(saturation.next_sample(), None);
        saturation.update(start, &occupancy(true));
        assert_eq!(saturation.since(start + 99 * MS), None);
        assert_eq!(saturation.since(start + 100 * MS), Some(start));
        assert_eq!(saturation.next_sample(), Some(start + 100 * MS));
        saturation.sampling(start + 110 * MS);
        assert_eq!(saturation.next_sample(), Some(start + 210 * MS));
    }

    #[test]
    fn a_round_trip_to_the_broker_is_no_gap() {
        let (start, mut saturation) = (Instant::now(), Saturation::default());
        for n in 0..20 {
            saturation.update(start + n * 50 * MS, &occupancy(true));
            saturation.update(start + (n * 50 + 5) * MS, &occupancy(false));
        }
        assert_eq!(saturation.since(start + 970 * MS), Some(start));
        saturation.update(start + 976 * MS, &occupancy(false));
        assert_eq!(saturation.since(start + 976 * MS), None, "a gap of 21 ms");
        assert_eq!(saturation.next_sample(), None);
        saturation.update(start + 980 * MS, &occupancy(true));
        assert_eq!(saturation.since(start + 1_079 * MS), None);
        let since = Some(start + 980 * MS);
        assert_eq!(saturation.since(start + 1_080 * MS), since);
    }

    #[test]
    fn messages_on_their_way_do_not_make_room() {
        let seen = |busy, workers, unsettled, prefetch| {
            let occupancy = Occupancy {
                busy,
                workers,
                unsettled,
                prefetch,
                ..Occupancy::default()
            };
            occupancy.is_full()
        };
        assert!(seen(10, 10, 20, 20) && seen(9, 10, 15, 20) && seen(1, 1, 1, 2));
        assert!(!seen(8, 10, 20, 20) && !seen(10, 10, 14, 20) && !seen(1, 2, 4, 4));
        assert!(seen(1, 1, 1, 1) && !seen(0, 1, 1, 1));
    }

    proptest! {
        /// The model looks at all moments of the past.
        #[test]
        fn saturation_is_a_time_without_a_long_gap(
            seen in prop::collection::vec((0..30_u32, any::<bool>()), 1..60),
        ) {
            let start = Instant::now();
            let mut saturation = Saturation::default();
            let mut past: Vec<(u32, bool)> = Vec::new();
            let mut now = 0;
            for (passed, full) in seen {
                now += passed;
                saturation.update(start + now * MS, &occupancy(full));
                past.push((now, full));
                // The first full moment after the last end of a long gap.
                let (mut since, mut gap) = (None, None);
                for (at, full) in &past {
                    if *full {
                        (since, gap) = (since.or(Some(*at)), None);
                    } else if at - *gap.get_or_insert(*at) > 20 {
                        since = None;
                    }
                }
                let since = since.filter(|since| now - since >= 100);
                let since = since.map(|since| start + since * MS);
                prop_assert_eq!(saturation.since(start + now * MS), since);
            }
        }
    }
}
