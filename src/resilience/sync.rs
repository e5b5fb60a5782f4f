//! The lock of the policies. The test of its interleavings puts shuttle's in its place.

pub(super) use parking_lot::{Mutex, MutexGuard};
