//! Overload and scaling of a server or a subscriber: their settings, and the plain structs that
//! carry them out.
//!
//! The structs have no clock, no lock and no thread: each takes the time of every step as an
//! argument. [`LoadControl`] combines those that decide about a request; its owner keeps it behind
//! one lock, which is held for one short step before a request runs and one after it.

mod action_times;
mod admission;
#[cfg(test)]
mod admission_tests;
mod decayed_mean;
mod estimate;
mod gate;
mod load_thread;
mod options;
mod overdue;
mod overdue_watch;
mod processor;
mod saturation;
mod scaler;
#[cfg(test)]
mod scaler_simulation_tests;
mod scaling;
mod shed;
#[cfg(test)]
mod simulation_tests;
mod worker_count;

pub(crate) use self::admission::Arrival;
pub(crate) use self::estimate::QueueDepth;
pub(crate) use self::gate::{Entrance, LoadGate};
pub(crate) use self::load_thread::{LoadThread, LoadThreadSetup, WatchedWorkers};
pub(crate) use self::options::LoadOptions;
pub(crate) use self::processor::WorkerClock;
pub use self::scaling::Scaling;
pub use self::shed::Shed;
pub use self::worker_count::WorkerCount;
