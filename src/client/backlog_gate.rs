//! Back-pressure on commands: senders wait while too many messages wait for the service.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::backlog::{Admission, Backlog};
use super::decode::CallTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::topology;
use crate::transport::Broker;

/// The longest time for which a sender waits for the depth of a queue.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The bounds of a client on the backlogs of services, by name.
#[derive(Default)]
pub(super) struct BacklogGates(HashMap<String, BacklogGate>);

/// A gate that senders to one service pass. One of them asks for the depth; the others wait for
/// its answer, if they need it.
struct BacklogGate {
    backlog: Mutex<Backlog>,
    answered: Condvar,
}

impl BacklogGates {
    /// Sets the bound on the messages that wait for a service.
    pub(super) fn insert(&mut self, service: String, most: usize) {
        let gate = BacklogGate {
            backlog: Mutex::new(Backlog::new(most)),
            answered: Condvar::new(),
        };
        self.0.insert(service, gate);
    }

    /// Returns an error for a bound of zero.
    pub(super) fn check(&self) -> Result<()> {
        let mut gates = self.0.iter();
        match gates.find(|(_, gate)| gate.backlog.lock().most() == 0) {
            None => Ok(()),
            Some((service, _)) => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "the max_backlog of {service} is zero, so no command would ever be sent; set \
                     at least 1"
                ),
            )),
        }
    }

    /// Blocks while the service of a command has too many messages waiting, at most until
    /// `deadline`, or until the client is closed, for which `closed` returns the cause.
    pub(super) fn wait(
        &self,
        target: CallTarget<'_>,
        broker: &Broker,
        deadline: Instant,
        closed: impl Fn() -> Option<Arc<str>>,
    ) -> Result<()> {
        let Some(gate) = self.0.get(target.service) else {
            return Ok(());
        };
        let usable = broker.check_not_forked();
        usable.map_err(|error| target.not_sent(error))?;
        loop {
            if let Some(cause) = closed() {
                return Err(target.closed(&cause));
            }
            let now = Instant::now();
            let mut backlog = gate.backlog.lock();
            match backlog.admit(now, now < deadline) {
                Admission::Send => return Ok(()),
                Admission::Ask => {
                    drop(backlog);
                    gate.ask(target.service, broker, deadline);
                }
                Admission::Wait(_) if now >= deadline => {
                    return Err(target.backlog(backlog.waiting(), backlog.most()));
                }
                Admission::Wait(until) => {
                    let until = until.map_or(deadline, |until| until.min(deadline));
                    gate.answered.wait_until(&mut backlog, until);
                }
            }
        }
    }
}

impl BacklogGate {
    /// Asks for the depth of a service's queue, and passes the answer to the other senders. Blocks
    /// for at most half of the time left until `deadline`: without an answer, the command is sent.
    fn ask(&self, service: &str, broker: &Broker, deadline: Instant) {
        let queue = topology::request_queue(service);
        let begun = Instant::now();
        let half = deadline.saturating_duration_since(begun) / 2;
        let answer = match broker.queue_depth_until(&queue, begun + half.min(ASK_TIMEOUT)) {
            Ok(depth) => Ok(depth.messages),
            // The broker returns the command.
            Err(error) if error.kind() == ErrorKind::NoRoute => Ok(0),
            Err(error) => Err(error),
        };
        let now = Instant::now();
        let mut backlog = self.backlog.lock();
        let was_lost = match &answer {
            Err(error) if half < ASK_TIMEOUT && error.kind() == ErrorKind::TimedOut => {
                backlog.not_answered_in_time(now)
            }
            answer => backlog.answered(answer.as_ref().ok().copied(), now),
        };
        drop(backlog);
        self.answered.notify_all();
        if let (Err(error), true) = (answer, was_lost) {
            log::warn!(
                target: "coney::client",
                "commands to {service} are sent whatever its backlog (max_backlog), which cannot be \
                 asked for: {error}"
            );
        }
    }
}
