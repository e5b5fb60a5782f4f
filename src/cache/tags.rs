//! Versions of tags: what must not have changed for a response to be used.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of versions of tags. Tags are hashed: two with the same version invalidate each other's
/// responses, which costs a request and never gives a wrong response. The memory is the same however
/// many tags there are.
const TAGS: usize = 64 << 10;

/// The number of versions of actions, apart from those of tags: one event in 64 Ki would otherwise
/// invalidate a whole action.
const ACTIONS: usize = 1 << 10;

/// The place of the version that all responses depend on.
const ALL: usize = TAGS + ACTIONS;

/// A counter for each tag, which goes up when the tag's responses are invalidated.
pub(super) struct TagVersions {
    versions: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// The version counter of an action or a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// The versions that a request has seen before it was sent. Its response is valid as long as none has
/// changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    tags: Box<[Slot]>,
    /// The sum of all versions: they only go up, so that it stays only if each does. `None` if the
    /// tags are not known.
    versions: Option<u64>,
    /// The number of the event subscriptions' state: see [`Epoch`](super::epoch::Epoch).
    pub(super) epoch: u64,
}

impl Stamp {
    /// Creates the stamp of a request whose tags are not known: its response is never valid.
    pub(super) fn without_tags() -> Self {
        Self {
            tags: Box::default(),
            versions: None,
            epoch: 0,
        }
    }

    /// Returns the size of its own allocations, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.tags)
    }
}

impl TagVersions {
    pub(super) fn new() -> Self {
        Self {
            versions: (0..=ALL).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Returns the slot of all responses of an action.
    pub(super) fn action(&self, service: &str, action: &str) -> Slot {
        let at = self.hasher.hash_one((service, action)) as usize % ACTIONS;
        Slot((TAGS + at) as u32)
    }

    /// Returns the slot of a tag of an action.
    pub(super) fn tag(&self, service: &str, action: &str, tag: &str) -> Slot {
        let at = self.hasher.hash_one((service, action, tag)) as usize % TAGS;
        Slot(at as u32)
    }

    /// Invalidates the responses that depend on a slot.
    pub(super) fn invalidate(&self, slot: Slot) {
        if let Some(version) = self.versions.get(slot.0 as usize) {
            version.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Invalidates all responses.
    pub(super) fn invalidate_all(&self) {
        self.invalidate(Slot(ALL as u32));
    }

    /// Creates the stamp of a request that is about to be sent.
    pub(super) fn stamp(&self, action: Slot, tags: Box<[Slot]>, epoch: u64) -> Stamp {
        Stamp {
            versions: Some(self.sum(action, &tags)),
            tags,
            epoch,
        }
    }

    /// Returns true if nothing that the stamp depends on has been invalidated.
    pub(super) fn is_current(&self, action: Slot, stamp: &Stamp) -> bool {
        stamp.versions == Some(self.sum(action, &stamp.tags))
    }

    fn sum(&self, action: Slot, tags: &[Slot]) -> u64 {
        let slots = tags.iter().chain([&action, &Slot(ALL as u32)]);
        let versions = slots.filter_map(|slot| self.versions.get(slot.0 as usize));
        versions.fold(0, |sum, version| {
            sum.wrapping_add(version.load(Ordering::SeqCst))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tags_belong_to_their_action() {
        let versions = TagVersions::new();
        let slots: HashSet<u32> = [
            ("a", "b", "c"),
            ("a", "b", "d"),
            ("a", "bc", ""),
            ("ab", "", "c"),
        ]
        .map(|(service, action, tag)| versions.tag(service, action, tag).0)
        .into();
        assert!(slots.len() >= 3, "{slots:?}"); // two may collide, once in 10,000 runs
    }

    #[test]
    fn a_stamp_without_tags_is_never_current() {
        let versions = TagVersions::new();
        let action = versions.action("s", "a");
        assert!(!versions.is_current(action, &Stamp::without_tags()));
    }

    proptest! {
        /// Slots 0 to 5 are tags, 6 and 7 are actions.
        #[test]
        fn a_stamp_is_current_until_one_of_its_slots_is_invalidated(
            tags in proptest::collection::vec(0..6_u32, 0..4),
            action in 6..8_u32,
            invalidated in proptest::collection::vec(0..8_u32, 0..4),
            all in proptest::bool::weighted(0.1),
        ) {
            let versions = TagVersions::new();
            let slot = |at| if at < 6 { Slot(at) } else { Slot(TAGS as u32 + at) };
            let own = tags.iter().map(|tag| slot(*tag)).collect();
            let stamp = versions.stamp(slot(action), own, 0);
            prop_assert!(versions.is_current(slot(action), &stamp));
            for at in &invalidated {
                versions.invalidate(slot(*at));
            }
            if all {
                versions.invalidate_all();
            }
            let is_hit = all || invalidated.iter().any(|at| *at == action || tags.contains(at));
            prop_assert_eq!(versions.is_current(slot(action), &stamp), !is_hit);
        }
    }
}
