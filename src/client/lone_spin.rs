//! Spinning of a lone caller for its reply, where a sleep and a wake-up take as long as the call.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::base::park;

/// The longest spin. It must cover the whole call: a spin that ends before the reply has kept a
/// processor busy, and the caller still sleeps and is woken. Over RabbitMQ on the same machine, with
/// 2 virtual processors, a call takes 330 µs at the median if its caller sleeps and 170 to 200 µs if
/// it spins; with a limit of 250 µs some slow calls are enough to make the rule skip many.
const LONGEST_SPIN: Duration = Duration::from_micros(500);

/// The number of spins in vain, one after the other, from which on calls are skipped.
const VAIN_UNTIL_SKIP: u8 = 3;

/// The number of calls that are skipped first. It doubles with each further spin in vain.
const FIRST_SKIP: u16 = 8;

/// The largest number of calls that are skipped: with it, spinning in vain costs a caller at most
/// 0.5 µs of processor time a call.
const MOST_SKIPPED: u16 = 1_024;

/// The rule by which the calls of a client spin: not while spinning has been in vain lately. That is
/// so with slow handlers, and on a machine whose processors are busy.
///
/// A plain struct: the calls that it sees are those that could spin otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SpinRule {
    /// The number of spins in vain since the last reply, at most [`SpinRule::MOST_VAIN`].
    vain: u8,
    /// The number of calls that are skipped before the next spin.
    skip: u16,
}

impl SpinRule {
    /// The number of spins in vain from which on the skips do not grow.
    const MOST_VAIN: u8 = VAIN_UNTIL_SKIP + (MOST_SKIPPED / FIRST_SKIP).ilog2() as u8;

    /// Returns true if the next call may spin; otherwise it is one of those that are skipped.
    fn admit(&mut self) -> bool {
        let is_admitted = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        is_admitted
    }

    /// Records the end of a spin: with a reply, or in vain.
    fn ended(&mut self, has_reply: bool) {
        if has_reply {
            *self = Self::default();
            return;
        }
        self.vain = (self.vain + 1).min(Self::MOST_VAIN);
        if let Some(doublings) = self.vain.checked_sub(VAIN_UNTIL_SKIP) {
            self.skip = FIRST_SKIP << doublings;
        }
    }

    fn to_bits(self) -> u32 {
        u32::from(self.vain) << 16 | u32::from(self.skip)
    }

    fn from_bits(bits: u32) -> Self {
        let [_, vain, high, low] = bits.to_be_bytes();
        let skip = u16::from_be_bytes([high, low]);
        Self { vain, skip }
    }
}

/// A count of the threads that spin.
struct Spinners(AtomicUsize);

/// The place of one thread among those that spin, until it is dropped.
struct SpinPlace<'a>(&'a Spinners);

impl Spinners {
    const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Takes a place if fewer than `most` are taken.
    fn enter(&self, most: usize) -> Option<SpinPlace<'_>> {
        let taken = self.0.fetch_add(1, Ordering::Relaxed);
        // Given back at once if there was none.
        let place = SpinPlace(self);
        (taken < most).then_some(place)
    }
}

impl Drop for SpinPlace<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The threads of this process that spin for replies. In a child that was forked meanwhile they
/// keep their places, and its calls may sleep instead.
static SPINNERS: Spinners = Spinners::new();

/// Returns the number of threads of a process that may spin at a time: half of the processors, as
/// each of them needs another one for the broker and the service.
fn most_spinners() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        (processors / 2).max(1)
    })
}

/// The spinning of one client.
#[derive(Debug, Default)]
pub(super) struct LoneSpin {
    rule: AtomicU32,
}

impl LoneSpin {
    /// Spins for a value while `is_lone` returns true, at most until `deadline`; returns `None` at once
    /// if it does not pay now. Without a value, the caller has to sleep for it.
    pub(super) fn recv<T>(
        &self,
        receiver: &Receiver<T>,
        deadline: Instant,
        is_lone: impl Fn() -> bool,
    ) -> Option<T> {
        if !is_lone() || !self.update(SpinRule::admit) {
            return None;
        }
        let place = SPINNERS.enter(most_spinners())?;
        let end = deadline.min(Instant::now() + LONGEST_SPIN);
        let value = park::recv_spinning(receiver, end, &is_lone);
        drop(place);
        // A spin that another call has cut short says nothing.
        if value.is_some() || is_lone() {
            self.update(|rule| rule.ended(value.is_some()));
        }
        value
    }

    /// Changes the rule. Of two threads that do so at the same moment one may be lost: then a call
    /// more or less is skipped.
    fn update<R>(&self, change: impl FnOnce(&mut SpinRule) -> R) -> R {
        let before = SpinRule::from_bits(self.rule.load(Ordering::Relaxed));
        let mut rule = before;
        let result = change(&mut rule);
        if rule != before {
            self.rule.store(rule.to_bits(), Ordering::Relaxed);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use proptest::prelude::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const FAR: Duration = Duration::from_secs(60);

    /// Returns the number of calls that are skipped before the next one spins.
    fn skipped(rule: &mut SpinRule) -> usize {
        std::iter::from_fn(|| (!rule.admit()).then_some(())).count()
    }

    #[test]
    fn each_spin_in_vain_after_the_third_doubles_the_skipped_calls() {
        let mut rule = SpinRule::default();
        let wanted = [0, 0, 8, 16, 32, 64, 128, 256, 512, 1_024, 1_024, 1_024];
        for wanted in wanted {
            rule.ended(false);
            assert_eq!(skipped(&mut rule), wanted);
        }
        rule.ended(true);
        for wanted in [0, 0, 8] {
            rule.ended(false);
            assert_eq!(skipped(&mut rule), wanted);
        }
    }

    #[test]
    fn no_more_threads_spin_than_may() {
        let spinners = Spinners::new();
        let first = spinners.enter(2);
        let second = spinners.enter(2);
        assert!(first.is_some() && second.is_some());
        assert!(spinners.enter(2).is_none());
        assert!(spinners.enter(2).is_none(), "a refusal takes no place");
        drop(first);
        assert!(spinners.enter(2).is_some());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _place = spinners.enter(2).unwrap();
            panic!("a panic in a spin");
        }));
        assert!(panicked.is_err());
        assert!(spinners.enter(2).is_some(), "a panic gives its place back");
        drop(second);
        assert_eq!(spinners.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_caller_that_is_not_alone_does_not_spin() {
        let (sender, receiver) = bounded(1);
        sender.send(1).unwrap();
        let spin = LoneSpin::default();
        assert_eq!(spin.recv(&receiver, Instant::now() + FAR, || false), None);
        assert_eq!(receiver.len(), 1);
    }

    #[test]
    fn a_spin_that_another_call_ends_is_not_in_vain() {
        let (_sender, receiver) = bounded::<()>(1);
        let spin = LoneSpin::default();
        for _ in 0..10 {
            let looks = AtomicUsize::new(0);
            let is_lone = || looks.fetch_add(1, Ordering::Relaxed) == 0;
            assert_eq!(spin.recv(&receiver, Instant::now() + FAR, is_lone), None);
        }
        assert_eq!(spin.rule.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_spin_ends_at_the_deadline_of_the_call() {
        let (_sender, receiver) = bounded::<()>(1);
        let end = park::recv_spinning(&receiver, Instant::now(), || true);
        assert_eq!(end, None);
        let spin = LoneSpin::default();
        assert_eq!(spin.recv(&receiver, Instant::now(), || true), None);
    }

    proptest! {
        /// The model keeps the whole list of spins, and counts anew from it. Each spin has a number of
        /// calls before it that the process refused a place.
        #[test]
        fn the_rule_follows_from_the_list_of_spins(
            spins in prop::collection::vec((prop::bool::weighted(0.1), 0..3u8), 0..60),
        ) {
            let spin = LoneSpin::default();
            for (made, &(has_reply, refused)) in spins.iter().enumerate() {
                let before = spins[..made].iter().rev();
                let vain = before.take_while(|(has_reply, _)| !has_reply).count();
                let wanted = match vain {
                    0..=2 => 0,
                    vain => (8 << (vain - 3).min(20)).min(1_024),
                };
                for _ in 0..wanted {
                    prop_assert!(!spin.update(SpinRule::admit));
                }
                for _ in 0..=refused {
                    prop_assert!(spin.update(SpinRule::admit));
                }
                spin.update(|rule| rule.ended(has_reply));
            }
        }
    }
}
