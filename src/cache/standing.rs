//! The rules by which a response may be used, by its age and by what has happened since.

use std::time::Duration;

/// The times for which a response may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ages {
    /// The time for which it is fresh.
    pub(super) ttl: Duration,
    /// The time after that for which it is used while it is refreshed.
    pub(super) stale_for: Duration,
    /// The time after `ttl` for which it is used if the service is unavailable.
    pub(super) stale_if_error: Duration,
}

/// The events since the request of a response was sent, as far as they make it invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// Nothing: no event has invalidated it, and none was missed.
    Current,
    /// Events are being missed, as the connection is down.
    Disconnected,
    /// Events may have been missed, as the connection was down.
    Missed,
    /// An event has invalidated it.
    Invalidated,
}

/// The use of a response for a caller that comes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Returned to the caller.
    Fresh,
    /// Returned to the caller, while it is refreshed.
    Stale,
    /// Not returned.
    Unusable,
}

impl Ages {
    /// Returns the use of a response of this age.
    pub(super) fn standing(&self, age: Duration, validity: Validity) -> Standing {
        let until_stale = self.ttl.saturating_add(self.stale_for);
        let may_be_stale = !self.stale_for.is_zero() && age <= until_stale;
        match validity {
            Validity::Current if age <= self.ttl => Standing::Fresh,
            // While the connection is down a request would only fail.
            Validity::Current | Validity::Disconnected if may_be_stale => Standing::Stale,
            _ => Standing::Unusable,
        }
    }

    /// Returns true if a response of this age may stand in for an unavailable service. One that an
    /// event has invalidated may not: it could be a permission that was withdrawn.
    pub(super) fn may_stand_in(&self, age: Duration, validity: Validity) -> bool {
        let longest = self.ttl.saturating_add(self.stale_if_error);
        !self.stale_if_error.is_zero() && age <= longest && validity != Validity::Invalidated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const AGES: Ages = Ages {
        ttl: seconds(10),
        stale_for: seconds(20),
        stale_if_error: seconds(60),
    };

    #[test]
    fn the_table_of_uses() {
        use Standing::{Fresh, Stale, Unusable};
        use Validity::{Current, Disconnected, Invalidated, Missed};
        // By age: 10 s, 30 s, 70 s, and a nanosecond more than each.
        let cases = [
            (Current, [Fresh, Stale, Stale, Unusable, Unusable, Unusable]),
            (
                Disconnected,
                [Stale, Stale, Stale, Unusable, Unusable, Unusable],
            ),
            (Missed, [Unusable; 6]),
            (Invalidated, [Unusable; 6]),
        ];
        for (validity, wanted) in cases {
            let nano = Duration::from_nanos(1);
            let ages = [10, 30, 70].map(seconds);
            let ages = ages.into_iter().flat_map(|age| [age, age + nano]);
            for (age, wanted) in ages.zip(wanted) {
                assert_eq!(AGES.standing(age, validity), wanted, "{age:?} {validity:?}");
                let stands_in = age <= seconds(70) && validity != Invalidated;
                assert_eq!(AGES.may_stand_in(age, validity), stands_in);
            }
        }
    }

    #[test]
    fn without_the_settings_nothing_is_stale_and_nothing_stands_in() {
        let ages = Ages {
            stale_for: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            ..AGES
        };
        assert_eq!(
            ages.standing(seconds(10), Validity::Current),
            Standing::Fresh
        );
        for validity in [Validity::Disconnected, Validity::Missed] {
            assert_eq!(ages.standing(seconds(1), validity), Standing::Unusable);
            assert!(!ages.may_stand_in(seconds(1), validity));
        }
    }

    #[test]
    fn the_longest_times_do_not_overflow() {
        let ages = Ages {
            ttl: Duration::MAX,
            stale_for: Duration::MAX,
            stale_if_error: Duration::MAX,
        };
        assert_eq!(
            ages.standing(seconds(1), Validity::Current),
            Standing::Fresh
        );
        assert!(ages.may_stand_in(Duration::MAX, Validity::Missed));
    }
}
