//! The consuming side that servers and subscribers share: deliveries in, handlers on a pool
//! of workers, and out again as acknowledged, republished for another attempt, or
//! dead-lettered.

mod batch_job;
mod batch_replies;
mod bulkheads;
mod clock_offsets;
pub(crate) mod context;
mod copy;
mod deduplication;
mod dispatcher;
mod drain;
mod executor;
mod failure;
mod failure_meter;
mod failure_rate;
mod handler;
pub(crate) mod handler_error;
mod job;
mod lane;
mod layer;
mod leases;
mod lifetime;
mod limits;
mod load;
mod local_retry;
mod memory_reply_store;
mod next_attempt;
mod options;
mod pause_on_failures;
mod pool;
mod pool_shared;
mod pool_state;
mod reply_store;
mod reply_target;
mod republish_confirms;
mod republisher;
mod request;
mod retries;
mod schedule;
#[cfg(test)]
mod schedule_order_tests;
#[cfg(test)]
mod schedule_tests;
mod settled;
mod tracked;
mod turn;
mod waiting_copies;
mod worker;
mod workers;

pub(crate) use self::batch_job::BatchJob;
pub(crate) use self::bulkheads::{Bulkhead, BulkheadSetup, Bulkheads};
pub(crate) use self::clock_offsets::ClockOffsets;
pub(crate) use self::context::Context;
pub(crate) use self::context::NestedClient;
pub(crate) use self::deduplication::Deduplication;
pub(crate) use self::dispatcher::{AfterDelivery, Dispatcher};
pub(crate) use self::drain::{Left, drain};
pub(crate) use self::executor::{Handlers, NumberedHandler, RequestExecutor};
pub(crate) use self::failure_meter::{FailureMeter, FailurePause};
pub(crate) use self::handler::{
    Handler, infallible, is_result, of_event, of_raw_event, raw, typed,
};
pub(crate) use self::handler_error::{HandlerError, HandlerResult};
pub(crate) use self::lane::{Class, Limit, Shareable};
pub(crate) use self::layer::layered;
pub use self::layer::{HandlerLayer, HandlerReply, NextHandler};
pub(crate) use self::lifetime::Lifetime;
pub(crate) use self::limits::{LimitSettings, RequestLimits};
pub(crate) use self::load::{
    LoadGate, LoadOptions, LoadThread, LoadThreadSetup, QueueDepth as LoadQueueDepth,
    WatchedWorkers,
};
pub use self::load::{Scaling, Shed, WorkerCount, WorkerLoad};
pub(crate) use self::local_retry::LocalAttempts;
pub use self::memory_reply_store::MemoryReplyStore;
pub(crate) use self::options::{
    ConsumedQueue, Options, check_number_of_delays, check_retry_delays, parking_delay,
};
pub use self::pause_on_failures::PauseOnFailures;
pub(crate) use self::pool_state::{Job, Next, PoolStatus};
pub use self::reply_store::{ClaimOutcome, ReplyStore, StoreError};
pub(crate) use self::republish_confirms::PendingRepublish;
pub(crate) use self::republisher::Republisher;
pub(crate) use self::retries::{LONGEST_HELD, Retries};
pub(crate) use self::settled::Settled;
pub(crate) use self::tracked::Tracked;
pub(crate) use self::turn::Turn;
pub(crate) use self::waiting_copies::WaitingCopies;
pub(crate) use self::workers::{WorkerSetup, Workers};
