//! Policies of a client for services that are slow, failing, busy or gone: their settings, and the
//! plain structs that carry them out. [`Resilience`] holds them, and says in which order they work.
//!
//! The settings are public. The structs behind them have no clock, no lock and no thread: each
//! takes the time of every step as an argument, so that its rules can be tested exactly.
//! `ServicePolicies` has the lock, one for each service.

mod breaker;
mod breaker_change;
mod breaker_handle;
mod budget;
mod circuit;
mod ejection;
mod gcra;
mod instance_record;
mod keyed;
mod lease;
mod limiter;
mod outliers;
#[cfg(test)]
mod outliers_model_tests;
#[cfg(test)]
mod outliers_tests;
mod peers;
mod policies;
#[cfg(test)]
mod policies_shuttle_tests;
#[cfg(test)]
mod policies_tests;
mod rate;
mod rate_limit;
mod retry;
mod service_state;
mod settings;
mod shared_limit;
#[cfg(test)]
mod shared_limit_tests;
mod sync;
mod throttle;
mod token_source;
mod turns;

pub use self::breaker::Breaker;
pub use self::breaker_change::{BreakerChange, BreakerState};
pub use self::breaker_handle::BreakerHandle;
pub use self::budget::RetryBudget;
pub use self::ejection::Ejection;
pub(crate) use self::limiter::Limiter;
pub(crate) use self::peers::CountPeers;
pub(crate) use self::policies::{Permit, Report, ServicePolicies};
pub use self::rate_limit::RateLimit;
pub use self::retry::Retry;
pub(crate) use self::service_state::{Place, Refused, Turn};
pub use self::settings::Resilience;
pub use self::throttle::Throttle;
#[cfg(feature = "redis")]
pub(crate) use self::token_source::{Lease, LeaseRequest, LeaseTerms, TokenSource};
pub use crate::error_kind::Refusal;
