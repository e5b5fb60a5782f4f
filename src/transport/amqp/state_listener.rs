//! The states of a connection, and the thread that calls the program's listener.

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::base::catch::catch;
use crate::base::log_relay;
use crate::base::thread::NamedThread;

/// The number of state changes that wait for a listener that blocks; later ones are dropped.
const MOST_CHANGES: usize = 1_024;

/// A state of a connection, passed to the listener of
/// [`BrokerBuilder::on_state_change`](crate::BrokerBuilder::on_state_change).
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// An attempt to connect begins.
    Connecting,
    /// Connected and logged in; the links are being opened again.
    Connected,
    /// The broker is short of memory or disk and accepts no messages; holds its reason.
    /// Messages wait to be sent, at most until their deadlines.
    Blocked(String),
    /// The broker accepts messages again.
    Unblocked,
    /// The connection was lost, or an attempt to connect failed; holds the cause. The next
    /// attempt follows, unless the next state is `Closed`.
    Lost(String),
    /// The final state: closed, or reconnecting was given up; holds the cause.
    Closed(String),
}

pub(super) type Listener = Box<dyn Fn(&ConnectionState) + Send>;

/// A notifier that calls the program's listener on a thread of its own, as it may block.
pub(super) struct StateNotifier {
    changes: Option<Sender<ConnectionState>>,
}

impl StateNotifier {
    /// Starts the thread, if there is a listener; it ends when the notifier is dropped.
    pub(super) fn start(
        number: u64,
        listener: Option<Listener>,
    ) -> std::io::Result<(Self, Option<NamedThread>)> {
        let Some(listener) = listener else {
            return Ok((Self { changes: None }, None));
        };
        let (changes, received) = bounded(MOST_CHANGES);
        let listen = move || listen(&received, &listener);
        let thread = NamedThread::spawn(format!("coney-state-{number}"), listen)?;
        let changes = Some(changes);
        Ok((Self { changes }, Some(thread)))
    }

    /// Queues a change for the listener. Never blocks.
    pub(super) fn notify(&self, state: ConnectionState) {
        if let Some(changes) = &self.changes
            && changes.try_send(state).is_err()
        {
            log_relay::log(
                log::Level::Warn,
                "coney::amqp",
                format_args!("a connection state change is dropped: the listener blocks"),
            );
        }
    }
}

fn listen(received: &Receiver<ConnectionState>, listener: &Listener) {
    for state in received {
        if catch(|| listener(&state)).is_err() {
            log::error!(target: "coney::amqp", "the connection state listener panicked");
        }
    }
}
