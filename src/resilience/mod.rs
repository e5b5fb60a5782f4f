//! Policies of a client for services that are slow, busy or unavailable, each off until it is
//! given to the client.
//!
//! A policy is a plain struct without a lock, a clock or a thread: its methods get the time as an
//! argument. The settings are public.

// The client does not call the policies yet.
#![allow(dead_code)]

pub(crate) mod budget;
pub(crate) mod gcra;
pub(crate) mod rate_limit;
mod recent;
pub(crate) mod retry;

pub use self::budget::RetryBudget;
pub use self::rate_limit::RateLimit;
pub use self::retry::Retry;
