//! A private broker that is broken on purpose, and connections that report their state.

use std::time::{Duration, Instant};

use coney::transport::{Link, LinkSpec, QueueOptions, Topology};
use coney::{Broker, CallOptions, ConnectionState, SendOptions};
use crossbeam_channel::{Receiver, unbounded};
use parking_lot::{Mutex, MutexGuard};

use super::server::Server;
use super::{PATIENCE, unique};

const MS: Duration = Duration::from_millis(1);

/// Returns the broker, started and unblocked. All tests share it, as starting one takes ten
/// seconds.
pub fn rabbit() -> MutexGuard<'static, Option<Server>> {
    static BROKER: Mutex<Option<Server>> = Mutex::new(None);
    let mut broker = BROKER.lock();
    match &mut *broker {
        Some(broker) => broker.heal(),
        none => *none = Some(Server::rabbitmq()),
    }
    broker
}

/// Creates a quorum queue, before the broker is killed. RabbitMQ 3.10 writes down the name of the
/// quorum queue that was created last up to a second later; killed before that, it never gives that
/// queue a leader again. It must be none that the test needs.
pub fn create_last_queue(broker: &Broker) {
    let topology = Topology::new().queue_with(unique("last"), QueueOptions::new().quorum(5));
    drop(Link::open(broker, LinkSpec::new(topology)).unwrap());
}

pub fn within(timeout: Duration) -> CallOptions {
    CallOptions::new().timeout(timeout)
}

pub fn sent_within(timeout: Duration) -> SendOptions {
    SendOptions::new().timeout(timeout)
}

/// Connects as `quick` does; the receiver gets the changes of the connection's state.
pub fn watched(url: &str) -> (Broker, Receiver<ConnectionState>) {
    let (sent, states) = unbounded();
    let broker = Broker::builder(url)
        .reconnect_delays(20 * MS, 200 * MS)
        .operation_timeout(1_000 * MS)
        .heartbeat(Duration::from_secs(1))
        .on_state_change(move |state| drop(sent.send(state.clone())))
        .connect()
        .unwrap();
    (broker, states)
}

pub fn wait_for(states: &Receiver<ConnectionState>, wanted: fn(&ConnectionState) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !states.recv_deadline(end).is_ok_and(|state| wanted(&state)) {
        assert!(Instant::now() < end, "the state never came");
    }
}
