//! Whether an instance lives: as long as its heartbeat changes.
//!
//! The clocks of those who write heartbeats need not agree with ours. So an instance that
//! is known is judged by whether its heartbeat is another than before, and only one that is
//! seen for the first time by the heartbeat's age.

use std::time::{Duration, Instant};

use super::clock::Clock;
use super::{Candidate, Instance};

/// An instance that counts as dead, as it was first seen so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ghost {
    heartbeat: u64,
    pub(super) since: Instant,
}

/// The record of an instance from before.
#[derive(Clone, Copy)]
pub(super) enum Before<'a> {
    Unknown,
    Alive(&'a Candidate),
    Dead(Ghost),
}

/// The verdict on an instance.
#[derive(Debug)]
pub(super) enum Life {
    Alive { dies_at: Instant },
    Dead(Ghost),
}

/// Judges an instance, by what is known of it from before.
pub(super) fn judge(
    instance: &Instance,
    before: Before<'_>,
    clock: &Clock,
    heartbeat_ttl: Duration,
) -> Life {
    let heartbeat = instance.last_heartbeat();
    let dead = |since| Life::Dead(Ghost { heartbeat, since });
    match before {
        Before::Alive(known) if known.instance().last_heartbeat() == heartbeat => {
            match known.dies_at > clock.at {
                true => Life::Alive {
                    dies_at: known.dies_at,
                },
                false => dead(clock.at),
            }
        }
        Before::Dead(ghost) if ghost.heartbeat == heartbeat => Life::Dead(ghost),
        Before::Alive(_) | Before::Dead(_) => {
            // It was heard of since we looked last; when exactly, only one tells whose
            // heartbeats are by the store's clock.
            let age = clock.age(instance);
            let age = match instance.is_ours() && age < heartbeat_ttl {
                true => age,
                false => Duration::ZERO,
            };
            Life::Alive {
                dies_at: clock.at + (heartbeat_ttl - age),
            }
        }
        Before::Unknown => match clock.is_young(instance, heartbeat_ttl) {
            true => Life::Alive {
                dies_at: clock.at + (heartbeat_ttl - clock.age(instance)),
            },
            false => dead(clock.at),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD_AFTER: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    /// An instance whose heartbeat is at that second of its own clock.
    fn beaten(at: u64) -> Instance {
        let json = format!(r#"{{"last_heartbeat":{at}}}"#);
        Instance::from_json("s", "i", &json).unwrap()
    }

    fn known(at: u64, dies_at: Instant) -> Candidate {
        Candidate::new(beaten(at), dies_at, None)
    }

    fn dies_at(life: &Life) -> Option<Instant> {
        match life {
            Life::Alive { dies_at } => Some(*dies_at),
            Life::Dead(_) => None,
        }
    }

    #[test]
    fn one_that_is_new_is_judged_by_its_age() {
        let clock = Clock::at(Instant::now(), 1_000_000);
        let judged = |at| dies_at(&judge(&beaten(at), Before::Unknown, &clock, DEAD_AFTER));
        assert_eq!(judged(1_000), Some(clock.at + DEAD_AFTER));
        assert_eq!(judged(970), Some(clock.at + 30 * SECOND));
        assert_eq!(judged(940), None);
        assert_eq!(
            judged(1_050),
            Some(clock.at + DEAD_AFTER),
            "a clock that is fast"
        );
        assert_eq!(judged(1_000_000), None, "in milliseconds");
    }

    #[test]
    fn one_that_is_known_lives_while_its_heartbeat_changes() {
        let start = Instant::now();
        for skew in [-3_600_i64, 0, 3_600] {
            let beat = |n: i64| beaten((1_000_000 + skew + n) as u64);
            let before = Candidate::new(beat(0), start + DEAD_AFTER, None);
            let clock = Clock::at(start + 30 * SECOND, 1_000_030_000);
            let same = judge(&beat(0), Before::Alive(&before), &clock, DEAD_AFTER);
            assert_eq!(dies_at(&same), Some(start + DEAD_AFTER));
            let beaten = judge(&beat(15), Before::Alive(&before), &clock, DEAD_AFTER);
            assert_eq!(dies_at(&beaten), Some(clock.at + DEAD_AFTER), "{skew}");
            let late = Clock::at(start + DEAD_AFTER, 1_000_060_000);
            let same = judge(&beat(0), Before::Alive(&before), &late, DEAD_AFTER);
            let Life::Dead(ghost) = same else {
                panic!("it was not heard of");
            };
            let later = Clock::at(start + 2 * DEAD_AFTER, 1_000_120_000);
            let same = judge(&beat(0), Before::Dead(ghost), &later, DEAD_AFTER);
            assert!(matches!(same, Life::Dead(Ghost { since, .. }) if since == late.at));
            let back = judge(&beat(100), Before::Dead(ghost), &later, DEAD_AFTER);
            assert!(dies_at(&back).is_some());
        }
    }

    #[test]
    fn ours_are_known_to_the_second() {
        let clock = Clock::at(Instant::now(), 1_000_000);
        let before = known(900, clock.at + SECOND);
        let ours = beaten(980).registered("s").beaten_at_time(980);
        let judged = judge(&ours, Before::Alive(&before), &clock, DEAD_AFTER);
        assert_eq!(dies_at(&judged), Some(clock.at + 40 * SECOND));
    }
}
