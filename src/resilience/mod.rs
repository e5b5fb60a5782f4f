//! Policies for services that are slow, failing or gone: their settings, and the plain structs
//! that carry them out.
//!
//! The settings are public. The structs behind them have no clock, no lock and no thread: each
//! takes the time of every step as an argument, so that its rules can be tested exactly.

pub(crate) mod breaker;
pub(crate) mod breaker_change;
pub(crate) mod circuit;
pub(crate) mod throttle;
mod window;

pub use self::breaker::Breaker;
pub use self::breaker_change::{BreakerChange, BreakerState};
pub use self::throttle::Throttle;
