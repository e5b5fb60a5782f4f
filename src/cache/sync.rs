//! The locks of the single flight. The test of its interleavings puts shuttle's in their place.

pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
