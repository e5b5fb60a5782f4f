//! The bounds on the requests of single actions.

use std::collections::HashMap;

use super::lane::{Class, Limit};
use super::turn::Turn;

/// The actions of a server of which a bounded number runs at the same time.
///
/// Requests over the bound do not occupy workers: a few wait in the process, in the class of their
/// action, calls over those are refused, and commands are moved to a queue of their own, from which
/// the broker sends as many as may run. Without that queue the requests of one action would
/// take up the whole prefetch, and nothing else would arrive.
#[derive(Default)]
pub(crate) struct Bulkheads {
    by_action: HashMap<String, Bulkhead>,
}

/// The bound of one action.
pub(crate) struct Bulkhead {
    /// The class of the action's jobs.
    pub(crate) class: Class,
    /// The number of jobs up to which more may wait in this process.
    waiting: usize,
    /// The queue of the commands that are moved.
    pub(crate) queue: String,
    pub(crate) limit: u16,
}

/// The settings of a bound.
#[derive(Clone, Debug)]
pub(crate) struct BulkheadSetup {
    pub(crate) action: String,
    pub(crate) limit: u16,
    pub(crate) queue: String,
}

/// The place of a request of an action that has a bound.
pub(super) enum Entry<'b, 't> {
    /// The request may run; its place is given back when the guard is dropped.
    Run(Entered<'t>),
    /// The request waits in this class.
    Wait(Class),
    /// No place: the bound of requests that run and wait is reached.
    Full(&'b Bulkhead),
}

/// A request that is counted as running in the class of its action.
pub(super) struct Entered<'t> {
    turn: &'t dyn Turn,
    class: Class,
}

impl Bulkheads {
    /// Creates the bounds, of each of which `waiting` requests may wait in this process.
    pub(crate) fn new(
        setups: &[BulkheadSetup],
        waiting: u16,
        add_class: &dyn Fn(Limit) -> Class,
    ) -> Self {
        let bulkheads = setups.iter().map(|setup| {
            let bulkhead = Bulkhead {
                class: add_class(Limit::AtMost(usize::from(setup.limit))),
                waiting: usize::from(waiting),
                queue: setup.queue.clone(),
                limit: setup.limit,
            };
            (setup.action.clone(), bulkhead)
        });
        Self {
            by_action: bulkheads.collect(),
        }
    }

    /// Returns the number of requests of each bound that may wait in this process: fewer than half
    /// of the prefetch, all bounds together. With a low prefetch none, as one would leave no room for
    /// other actions.
    pub(crate) fn waiting_for(bounds: usize, prefetch: u16) -> u16 {
        let bounds = u16::try_from(bounds.max(1)).unwrap_or(u16::MAX);
        prefetch.saturating_sub(1) / 2 / bounds
    }

    /// Returns the bounds.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Bulkhead> {
        self.by_action.values()
    }

    /// Finds a place for a request; `None` if its action has no bound.
    pub(super) fn enter<'b, 't>(
        &'b self,
        action: &str,
        turn: &'t dyn Turn,
    ) -> Option<Entry<'b, 't>> {
        // Most servers have no bounds.
        if self.by_action.is_empty() {
            return None;
        }
        let bulkhead = self.by_action.get(action)?;
        let class = bulkhead.class;
        Some(match turn.try_enter(class) {
            Ok(()) => Entry::Run(Entered { turn, class }),
            Err(waiting) if waiting < bulkhead.waiting => Entry::Wait(class),
            Err(_) => Entry::Full(bulkhead),
        })
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.turn.leave(self.class);
    }
}
