//! All behaviour tests, in one binary. Tests of the behaviour that both brokers share are written
//! once and run on each (see `on_both!`); `tests/run` provides the servers.

mod administration;
mod alarms;
mod async_calls;
mod backlogs;
mod batch_contract;
mod batches;
mod blame;
mod bounded_actions;
mod breakers;
mod broker_limits;
mod busy_handlers;
mod cache;
mod cache_faults;
mod calls;
mod client_layers;
mod clocks;
mod coalescing;
mod commands;
mod connecting;
mod contract;
mod dead_letters;
mod deduplication;
mod delays;
mod direct_sending;
mod discovery;
mod documents;
mod drained;
mod event_failures;
mod event_faults;
mod events;
#[cfg(feature = "redis")]
mod examples;
mod fallbacks;
mod faults;
mod handed_back;
mod handles;
mod health;
mod heartbeats;
mod hostile;
mod language;
mod layered_ends;
mod layers;
mod layers_of_handlers;
mod ledger;
mod limits;
mod load_limits;
mod lone_callers;
mod lookups;
#[cfg(feature = "redis")]
mod lost_instances;
mod outages;
mod overdue;
mod oversized;
mod own_stores;
mod paused_subscriptions;
#[cfg(feature = "redis")]
mod permissions;
mod php;
mod poison;
mod prefetch;
mod propagated_headers;
mod queues;
mod readme;
#[cfg(feature = "redis")]
mod redis_contract;
#[cfg(feature = "redis")]
mod redis_faults;
mod registry;
mod retries;
mod retry_limits;
mod scaled_subscribers;
mod scaling;
mod servers;
#[cfg(feature = "redis")]
mod shared_limits;
mod shedding;
mod store_outages;
mod support;
#[cfg(feature = "redis")]
mod surge;
mod tidy;
mod unavailable_queues;
mod wait_any;
mod whole_process;
