//! The schedule of the service's conditions.

use std::fmt;

/// A condition of the service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Well,
    /// One request in five is refused, as while one of five instances restarts.
    Flaky,
    /// Each request takes sixty times as long.
    Slow,
    /// Other clients leave room for 30 requests in a tick; the service refuses the others.
    Overloaded,
    /// No instance is running.
    Gone,
    Back,
}

use Condition::{Back, Flaky, Gone, Overloaded, Slow, Well};

/// The condition at each tick.
pub const SCHEDULE: [Condition; 14] = [
    Well, Flaky, Slow, Slow, Well, Overloaded, Overloaded, Overloaded, Well, Gone, Gone, Gone,
    Back, Back,
];

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Well => "well",
            Flaky => "flaky",
            Slow => "slow",
            Overloaded => "overloaded",
            Gone => "gone",
            Back => "back",
        })
    }
}
