//! Liveness: an instance is live as long as its heartbeat changes.
//!
//! Heartbeats may be written by clocks that do not agree with ours. So a known instance is judged
//! by whether its heartbeat has changed, and only a new one by the age of its heartbeat.

use std::time::{Duration, Instant};

use super::clock::Clock;
use super::{Candidate, Instance};

/// An instance that counts as dead: its last heartbeat, and since when it does.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadInstance {
    heartbeat: u64,
    pub(super) since: Instant,
}

/// The result of the previous refresh for an instance.
#[derive(Clone, Copy)]
pub(super) enum Previous<'a> {
    Unknown,
    Alive(&'a Candidate),
    Dead(DeadInstance),
}

/// The liveness of an instance.
#[derive(Debug)]
pub(super) enum Liveness {
    Alive { dies_at: Instant },
    Dead(DeadInstance),
}

/// Judges the liveness of an instance by its heartbeat and the previous result.
pub(super) fn judge(
    instance: &Instance,
    before: Previous<'_>,
    clock: &Clock,
    heartbeat_ttl: Duration,
) -> Liveness {
    let heartbeat = instance.last_heartbeat();
    let dead = |since| Liveness::Dead(DeadInstance { heartbeat, since });
    match before {
        Previous::Alive(known) if known.instance().last_heartbeat() == heartbeat => {
            match known.dies_at > clock.at {
                true => Liveness::Alive {
                    dies_at: known.dies_at,
                },
                false => dead(clock.at),
            }
        }
        Previous::Dead(dead) if dead.heartbeat == heartbeat => Liveness::Dead(dead),
        Previous::Alive(_) | Previous::Dead(_) => {
            // Its heartbeat was renewed since the previous refresh. When exactly is known only
            // if it is written by the store's clock.
            let age = clock.age(instance);
            let age = match instance.is_ours() && age < heartbeat_ttl {
                true => age,
                false => Duration::ZERO,
            };
            Liveness::Alive {
                dies_at: clock.at + (heartbeat_ttl - age),
            }
        }
        Previous::Unknown => match clock.is_young(instance, heartbeat_ttl) {
            true => Liveness::Alive {
                dies_at: clock.at + (heartbeat_ttl - clock.age(instance)),
            },
            false => dead(clock.at),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT_TTL: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    /// Creates an instance with a heartbeat in Unix seconds of its own clock.
    fn heartbeat_at(at: u64) -> Instance {
        let json = format!(r#"{{"last_heartbeat":{at}}}"#);
        Instance::from_json("s", "i", &json).unwrap()
    }

    fn known(at: u64, dies_at: Instant) -> Candidate {
        Candidate::new(heartbeat_at(at), dies_at, None)
    }

    fn dies_at(life: &Liveness) -> Option<Instant> {
        match life {
            Liveness::Alive { dies_at } => Some(*dies_at),
            Liveness::Dead(_) => None,
        }
    }

    #[test]
    fn a_new_instance_is_judged_by_its_age() {
        let clock = Clock::at(Instant::now(), 1_000_000);
        let judged = |at| {
            dies_at(&judge(
                &heartbeat_at(at),
                Previous::Unknown,
                &clock,
                HEARTBEAT_TTL,
            ))
        };
        assert_eq!(judged(1_000), Some(clock.at + HEARTBEAT_TTL));
        assert_eq!(judged(970), Some(clock.at + 30 * SECOND));
        assert_eq!(judged(940), None);
        assert_eq!(
            judged(1_050),
            Some(clock.at + HEARTBEAT_TTL),
            "a clock that is fast"
        );
        assert_eq!(judged(1_000_000), None, "in milliseconds");
    }

    #[test]
    fn a_known_instance_is_live_while_its_heartbeat_changes() {
        let start = Instant::now();
        for skew in [-3_600_i64, 0, 3_600] {
            let beat = |n: i64| heartbeat_at((1_000_000 + skew + n) as u64);
            let before = Candidate::new(beat(0), start + HEARTBEAT_TTL, None);
            let clock = Clock::at(start + 30 * SECOND, 1_000_030_000);
            let same = judge(&beat(0), Previous::Alive(&before), &clock, HEARTBEAT_TTL);
            assert_eq!(dies_at(&same), Some(start + HEARTBEAT_TTL));
            let renewed = judge(&beat(15), Previous::Alive(&before), &clock, HEARTBEAT_TTL);
            assert_eq!(dies_at(&renewed), Some(clock.at + HEARTBEAT_TTL), "{skew}");
            let late = Clock::at(start + HEARTBEAT_TTL, 1_000_060_000);
            let same = judge(&beat(0), Previous::Alive(&before), &late, HEARTBEAT_TTL);
            let Liveness::Dead(dead) = same else {
                panic!("it counts as dead");
            };
            let later = Clock::at(start + 2 * HEARTBEAT_TTL, 1_000_120_000);
            let same = judge(&beat(0), Previous::Dead(dead), &later, HEARTBEAT_TTL);
            assert!(matches!(same, Liveness::Dead(DeadInstance { since, .. }) if since == late.at));
            let back = judge(&beat(100), Previous::Dead(dead), &later, HEARTBEAT_TTL);
            assert!(dies_at(&back).is_some());
        }
    }

    #[test]
    fn heartbeats_of_ours_are_judged_to_the_second() {
        let clock = Clock::at(Instant::now(), 1_000_000);
        let before = known(900, clock.at + SECOND);
        let ours = heartbeat_at(980).registered("s").with_heartbeat_at(980);
        let judged = judge(&ours, Previous::Alive(&before), &clock, HEARTBEAT_TTL);
        assert_eq!(dies_at(&judged), Some(clock.at + 40 * SECOND));
    }
}
