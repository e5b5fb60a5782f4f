use crossbeam_channel::{Receiver, Sender, bounded};

use crate::base::catch::catch;
use crate::base::log_relay;
use crate::base::thread::NamedThread;

/// How many changes wait for a listener that blocks; later ones are dropped.
const WAITING: usize = 1_024;

/// What becomes of a connection: see
/// [`BrokerBuilder::on_state_change`](crate::BrokerBuilder::on_state_change).
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// An attempt to connect begins.
    Connecting,
    /// Connected and logged in; links are being opened again.
    Connected,
    /// The broker is short of memory or disk and takes no messages; its words.
    /// What is to be sent waits, at most until its deadline.
    Blocked(String),
    /// The broker takes messages again.
    Unblocked,
    /// The connection was lost, or an attempt failed; the cause. The next attempt
    /// follows, unless the state is `Closed` next.
    Lost(String),
    /// The end: closed, or given up; the cause.
    Closed(String),
}

pub(super) type Listener = Box<dyn Fn(&ConnectionState) + Send>;

/// Tells a user's listener, on a thread of its own, because it may block.
pub(super) struct StateNotifier {
    changes: Option<Sender<ConnectionState>>,
}

impl StateNotifier {
    /// The thread, if there is a listener, ends when this is dropped.
    pub(super) fn start(
        number: u64,
        listener: Option<Listener>,
    ) -> std::io::Result<(Self, Option<NamedThread>)> {
        let Some(listener) = listener else {
            return Ok((Self { changes: None }, None));
        };
        let (changes, inbox) = bounded(WAITING);
        let listen = move || listen(&inbox, &listener);
        let thread = NamedThread::spawn(format!("coney-state-{number}"), listen)?;
        let changes = Some(changes);
        Ok((Self { changes }, Some(thread)))
    }

    /// Never blocks.
    pub(super) fn notify(&self, state: ConnectionState) {
        if let Some(changes) = &self.changes
            && changes.try_send(state).is_err()
        {
            log_relay::log(
                log::Level::Warn,
                "coney::amqp",
                format_args!("the state listener blocks: a change is dropped"),
            );
        }
    }
}

fn listen(inbox: &Receiver<ConnectionState>, listener: &Listener) {
    for state in inbox {
        if catch(|| listener(&state)).is_err() {
            log::error!(target: "coney::amqp", "the state listener panicked");
        }
    }
}
