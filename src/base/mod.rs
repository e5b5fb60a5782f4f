//! Tools that do not depend on messages: deadlines, names, threads, waiting, randomness, and
//! statistics of the recent past.

pub(crate) mod callbacks;
pub(crate) mod catch;
pub(crate) mod deadline;
pub(crate) mod log_relay;
pub(crate) mod moment;
pub(crate) mod name;
pub(crate) mod park;
pub(crate) mod random;
pub(crate) mod recent_times;
pub(crate) mod resolve;
pub(crate) mod secret;
pub(crate) mod text;
pub(crate) mod thread;
pub(crate) mod window;
