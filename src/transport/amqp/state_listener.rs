//! The current state of a connection, and the thread that calls the program's listener.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::base::catch::catch;
use crate::base::log_relay;
use crate::base::thread::NamedThread;
use crate::transport::ConnectionState;

/// The number of state changes that wait for a listener that blocks; later ones are dropped.
const MOST_CHANGES: usize = 1_024;

pub(super) type Listener = Box<dyn Fn(&ConnectionState) + Send>;

/// A notifier that calls the program's listener on a thread of its own, as it may block.
pub(super) struct StateNotifier {
    changes: Option<Sender<ConnectionState>>,
    current: CurrentState,
}

/// The latest state, shared with the handles of the connection.
#[derive(Clone)]
pub(super) struct CurrentState(Arc<Mutex<ConnectionState>>);

impl CurrentState {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(ConnectionState::Connecting)))
    }

    pub(super) fn get(&self) -> ConnectionState {
        self.0.lock().clone()
    }

    /// Records a change. The state after `Unblocked` is `Connected`.
    fn set(&self, state: &ConnectionState) {
        *self.0.lock() = match state {
            ConnectionState::Unblocked => ConnectionState::Connected,
            state => state.clone(),
        };
    }
}

impl StateNotifier {
    /// Starts the thread, if there is a listener; it ends when the notifier is dropped.
    pub(super) fn start(
        number: u64,
        listener: Option<Listener>,
        current: CurrentState,
    ) -> std::io::Result<(Self, Option<NamedThread>)> {
        let Some(listener) = listener else {
            let changes = None;
            return Ok((Self { changes, current }, None));
        };
        let (changes, received) = bounded(MOST_CHANGES);
        let listen = move || listen(&received, &listener);
        let thread = NamedThread::spawn(format!("coney-state-{number}"), listen)?;
        let changes = Some(changes);
        Ok((Self { changes, current }, Some(thread)))
    }

    /// Records a change, and queues it for the listener. Never blocks.
    pub(super) fn notify(&self, state: ConnectionState) {
        self.current.set(&state);
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
            log_relay::log(
                log::Level::Error,
                "coney::amqp",
                format_args!("the connection state listener panicked"),
            );
        }
    }
}
