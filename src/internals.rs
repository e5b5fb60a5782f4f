//! The pending table for this crate's own benchmarks; not part of the API.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::bounded;

use crate::client::pending_table::{self, PendingCall, Waiter, Wake};
use crate::message::CorrelationId;
use crate::transport::SendState;

/// A client's pending table, alone.
#[derive(Debug)]
pub struct PendingTable(pending_table::PendingTable);

impl PendingTable {
    /// Creates a table with so many calls in flight.
    pub fn with_calls(calls: usize) -> Self {
        let mut table = Self(pending_table::PendingTable::new(calls + 1));
        for _ in 0..calls {
            table.call_in();
        }
        table
    }

    /// Puts a call in and takes it out, as a call and its reply do.
    pub fn call_in_and_out(&mut self) {
        let id = self.call_in();
        drop(self.0.remove(id));
    }

    fn call_in(&mut self) -> CorrelationId {
        let id = CorrelationId::random();
        let call = PendingCall {
            send_state: Arc::new(SendState::until(Instant::now())),
            waiter: Waiter {
                slot: bounded(1).0,
                wake: Wake::Thread(std::thread::current()),
            },
            resend_copy: None,
            sent_in: None,
            balanced: None,
            began: None,
        };
        let inserted = self.0.insert(id, call);
        debug_assert!(inserted.is_ok());
        id
    }
}
