//! The lanes and classes of a schedule.

use std::collections::{HashMap, VecDeque};

/// An item of a schedule.
pub(crate) trait Shareable: Sized {
    /// Returns a handle to the same item for one more runner, as long as it has work for more than
    /// one. The item keeps its place meanwhile.
    fn share(&self) -> Option<Self> {
        None
    }
}

/// A class of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class(pub(super) usize);

/// The number of items of a class that may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    None,
    AtMost(usize),
    /// Half of the runners, and at least one, while an item of another class could run.
    HalfIfOthersWait,
}

/// The place of a running item.
#[derive(Debug)]
#[must_use = "the lane counts the item as running until its place is given back"]
pub(crate) struct Place {
    pub(super) class: usize,
    pub(super) lane: usize,
    pub(super) epoch: u64,
}

/// The state of a class.
pub(super) struct ClassState {
    pub(super) limit: Limit,
    pub(super) running: usize,
    pub(super) waiting: usize,
    /// The lanes that have an item to run, each once, in the order of their turns.
    pub(super) turns: VecDeque<usize>,
    pub(super) has_turn: bool,
    /// The lane of items without a key.
    pub(super) unkeyed: usize,
    pub(super) by_key: HashMap<String, usize>,
    /// The number of times that the class was cleared.
    pub(super) epoch: u64,
}

/// A queue of items that run in order.
pub(super) struct Lane<T> {
    pub(super) class: usize,
    pub(super) kind: LaneKind,
    pub(super) items: VecDeque<T>,
    pub(super) running: usize,
    pub(super) has_turn: bool,
    /// True until the time for which its first item was put back.
    pub(super) rests: bool,
}

/// The kind of a lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LaneKind {
    /// The lane of a class's items without a key, any number of which run at the same time.
    Unkeyed,
    /// A lane whose items run one at a time.
    Keyed(String),
    /// The lane of one item that may be shared.
    Single,
    Unused,
}

/// An entry for a later time.
pub(super) enum PutOff<T> {
    /// An item to be appended to the lane without a key of its class.
    Item(usize, T),
    /// A lane that rests.
    Lane(usize),
}
