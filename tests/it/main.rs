//! All behaviour tests, in one binary. What both brokers must do is written
//! once and run on each (see `on_both!`); `tests/run` provides the servers.

mod async_calls;
mod batches;
mod calls;
mod coalescing;
mod commands;
mod connecting;
mod contract;
mod dead_letters;
mod deduplication;
mod discovery;
mod event_failures;
mod event_faults;
mod events;
mod examples;
mod faults;
mod health;
mod hostile;
mod ledger;
mod outages;
mod poison;
mod queues;
mod redis_contract;
mod redis_faults;
mod registry;
mod servers;
mod support;
mod tidy;
