//! Policies of a client for services that are slow, busy or unavailable, each off until it is
//! given to the client.
//!
//! A policy is a plain struct without a lock, a clock or a thread: its methods get the time as an
//! argument. The settings are public.

// The client does not call the policies yet.
#![allow(dead_code)]

pub(crate) mod budget;
pub(crate) mod ejection;
pub(crate) mod gcra;
mod instance_record;
mod latencies;
pub(crate) mod outliers;
#[cfg(test)]
mod outliers_model_tests;
#[cfg(test)]
mod outliers_tests;
pub(crate) mod rate_limit;
mod recent;
pub(crate) mod retry;

pub use self::budget::RetryBudget;
pub use self::ejection::Ejection;
pub use self::rate_limit::RateLimit;
pub use self::retry::Retry;
