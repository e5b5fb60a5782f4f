//! The states of a connection.

/// A state of a connection, returned by [`Broker::state`](crate::Broker::state) and passed to
/// the listener of [`BrokerBuilder::on_state_change`](crate::BrokerBuilder::on_state_change).
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
    /// The broker accepts messages again. Passed to the listener only:
    /// [`Broker::state`](crate::Broker::state) is then `Connected`.
    Unblocked,
    /// The connection was lost, or an attempt to connect failed; holds the cause. The next
    /// attempt follows, unless the next state is `Closed`.
    Lost(String),
    /// The final state: closed, or reconnecting was given up; holds the cause.
    Closed(String),
}

impl ConnectionState {
    /// Returns true if there is a connection, blocked or not.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected | Self::Blocked(_) | Self::Unblocked)
    }
}
