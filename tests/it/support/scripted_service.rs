//! A service whose handler follows a script, and the ways to call it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use coney::client::wait_any;
use coney::resilience::Resilience;
use coney::server::ServiceServerBuilder;
use coney::{
    Broker, CallOptions, Context, HandlerError, PendingReply, ServiceClient, ServiceServer,
};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use super::{PATIENCE, eventually};

/// An act of the handler on a request.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Returns the double.
    Double,
    /// Refuses as busy, for this time.
    Busy(Duration),
    /// Returns an error with this code.
    Fail(&'static str),
    Panic,
    /// Waits until the test opens the gate, and returns the double.
    Wait,
}

/// A run of the handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub attempt: u32,
    pub message_id: String,
}

/// A service whose action `work` follows a script.
pub struct ScriptedService {
    pub name: String,
    pub server: ServiceServer,
    /// The runs of the handler that have begun.
    pub runs: Receiver<Run>,
    script: Arc<Script>,
    gate: Option<Sender<()>>,
}

/// The acts of the next runs, and that of all after them.
struct Script(Mutex<(VecDeque<Act>, Act)>);

impl ScriptedService {
    /// Starts a service that follows the acts, and then doubles.
    pub fn start(broker: &Broker, name: &str, acts: &[Act]) -> Self {
        Self::start_with(broker, name, acts, |builder| builder)
    }

    /// Starts a service whose server has further options.
    pub fn start_with(
        broker: &Broker,
        name: &str,
        acts: &[Act],
        options: impl FnOnce(ServiceServerBuilder) -> ServiceServerBuilder,
    ) -> Self {
        let script = (acts.iter().copied().collect(), Act::Double);
        let script = Arc::new(Script(Mutex::new(script)));
        let (gate, opened) = bounded::<()>(0);
        let (sent, runs) = unbounded();
        let acts = Arc::clone(&script);
        let work = move |context: &Context<'_>, n: u64| {
            let run = Run {
                attempt: context.attempt_of_call(),
                message_id: context.message_id().to_owned(),
            };
            sent.send(run).unwrap();
            match acts.next() {
                Act::Double => {}
                Act::Busy(time) => return Err(HandlerError::busy("all hands are full", time)),
                Act::Fail(code) => return Err(HandlerError::new("no").with_code(code)),
                Act::Panic => panic!("a panic that the test wants"),
                Act::Wait => {
                    let _ = opened.recv();
                }
            }
            Ok(n * 2)
        };
        let builder = ServiceServer::builder(broker, name)
            .workers(8)
            .handler_with_context("work", work);
        Self {
            name: name.to_owned(),
            server: options(builder).start().unwrap(),
            runs,
            script,
            gate: Some(gate),
        }
    }

    /// Sets the act of all runs from now on.
    pub fn always(&self, act: Act) {
        *self.script.0.lock() = (VecDeque::new(), act);
    }

    /// Sets the acts of the next runs; the service doubles after them.
    pub fn follow(&self, acts: &[Act]) {
        *self.script.0.lock() = (acts.iter().copied().collect(), Act::Double);
    }

    /// Returns the runs that have begun since the last look.
    pub fn runs(&self) -> Vec<Run> {
        self.runs.try_iter().collect()
    }

    /// Ends the runs that wait, and all that wait later.
    pub fn open(&mut self) {
        self.gate = None;
    }
}

impl Script {
    fn next(&self) -> Act {
        let (next, rest) = &mut *self.0.lock();
        next.pop_front().unwrap_or(*rest)
    }
}

impl Drop for ScriptedService {
    fn drop(&mut self) {
        self.open(); // or dropping the server would wait for its handlers
    }
}

/// Returns a client with these policies for all services.
pub fn resilient(broker: &Broker, resilience: Resilience) -> ServiceClient {
    ServiceClient::builder(broker, "shop")
        .timeout(PATIENCE)
        .resilience(resilience)
        .build()
        .expect("a client")
}

/// A way to call the action `work`.
pub type Way = fn(&ServiceClient, &str, &CallOptions) -> coney::Result<u64>;

/// The ways to call, blocking and asynchronous. The payload is 21.
pub const WAYS: [(&str, Way); 7] = [
    ("call", |client, service, options| {
        client.call_with(service, "work", &21, options)
    }),
    ("proxy", |client, service, options| {
        client.proxy(service).call_with("work", &21, options)
    }),
    ("wait", |client, service, options| {
        begin(client, service, options)?.wait()
    }),
    ("wait on another thread", |client, service, options| {
        let pending = begin(client, service, options)?;
        thread::spawn(move || pending.wait()).join().unwrap()
    }),
    ("try_wait", |client, service, options| {
        let mut pending = begin(client, service, options)?;
        let mut reply = None;
        eventually("the end of the call", || {
            reply = pending.try_wait();
            reply.is_some()
        });
        reply.unwrap()
    }),
    ("then", |client, service, options| {
        let (sent, replies) = unbounded();
        let pending = begin(client, service, options)?;
        pending
            .then(move |reply| sent.send(reply).unwrap())
            .unwrap();
        replies.recv_timeout(2 * PATIENCE).unwrap()
    }),
    ("wait_any", |client, service, options| {
        let mut pending = [begin(client, service, options)?];
        assert_eq!(wait_any(&mut pending, 2 * PATIENCE), Some(0));
        pending[0].try_wait().expect("it is ready")
    }),
];

/// Starts an asynchronous call of `work`.
pub fn begin(
    client: &ServiceClient,
    service: &str,
    options: &CallOptions,
) -> coney::Result<PendingReply<u64>> {
    client.call_async_with(service, "work", &21, options)
}

/// Calls `work` with the default options.
pub fn work(client: &ServiceClient, service: &str) -> coney::Result<u64> {
    client.call(service, "work", &21)
}

/// Blocks until a client has no calls in flight: a callback counts until it has returned.
pub fn all_ended(client: &ServiceClient) {
    eventually("no call in flight", || client.in_flight() == 0);
}
