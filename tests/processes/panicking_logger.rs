//! A logger that panics, in a process whose callbacks and reply store panic too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coney::deduplication::{ClaimOutcome, MemoryReplyStore, ReplyStore, StoreError};
use coney::{Broker, ServiceClient, ServiceServer};

const PATIENCE: Duration = Duration::from_secs(60);

struct PanickingLogger;

impl log::Log for PanickingLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        panic!("the logger panics: {}", record.args());
    }

    fn flush(&self) {}
}

/// A store whose first claim panics.
struct PanickingStore(MemoryReplyStore, AtomicUsize);

impl ReplyStore for PanickingStore {
    fn claim(&self, key: &str, owner: u64, lease: Duration) -> Result<ClaimOutcome, StoreError> {
        let is_first = self.1.fetch_add(1, Ordering::SeqCst) == 0;
        assert!(!is_first, "a panic that the test wants");
        self.0.claim(key, owner, lease)
    }

    fn renew(&self, key: &str, owner: u64, lease: Duration) -> Result<bool, StoreError> {
        self.0.renew(key, owner, lease)
    }

    fn complete(&self, k: &str, owner: u64, reply: &[u8], t: Duration) -> Result<bool, StoreError> {
        self.0.complete(k, owner, reply, t)
    }

    fn release(&self, key: &str, owner: u64) -> Result<(), StoreError> {
        self.0.release(key, owner)
    }

    fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Asserts that the callback thread and the one worker outlive panics, whose log lines panic in
/// turn.
pub fn outlive(broker: &Broker, service: &str) -> coney::Result<()> {
    log::set_logger(&PanickingLogger).expect("there is no other");
    log::set_max_level(log::LevelFilter::Error);
    let store = PanickingStore(MemoryReplyStore::new(100), AtomicUsize::new(0));
    let server = ServiceServer::builder(broker, service)
        .workers(1)
        .deduplicate(Arc::new(store), PATIENCE)
        .respond("work", |n: u64| n)
        .start()?;
    let client = ServiceClient::builder(broker, "log")
        .timeout(PATIENCE)
        .build()?;
    let (sent, replies) = crossbeam_channel::unbounded();
    for n in 0..4 {
        // The first is redelivered to the thread for suspects, and the others go to the worker.
        let sent = sent.clone();
        let callback = move |reply: coney::Result<u64>| {
            sent.send(reply).expect("the test waits for it");
            panic!("the callback panics");
        };
        client.call_async(service, "work", &n)?.then(callback)?;
        let reply = replies.recv_timeout(PATIENCE);
        assert_eq!(reply.expect("the threads live")?, n);
    }
    log::set_max_level(log::LevelFilter::Off);
    server.shutdown(PATIENCE)
}
