//! An attempt to connect: name resolution, TCP, socket options and login.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use amiquip::{Auth, Connection, ConnectionOptions, ConnectionTuning};
use socket2::{SockRef, TcpKeepalive};

use super::config::Config;
use super::frame_max::FRAME_MAX;
use super::frame_writer::{FrameWriter, RunningWriter};
use super::observed::Observed;
use super::routes::Routes;
use super::stream::GuardedStream;
use super::watchdog::Watchdog;
use crate::base::deadline;
use crate::base::resolve::{dial, resolve};
use crate::error::{Error, ErrorKind};

/// The largest number of channels, more than any program needs. 65,535 overflows inside
/// amiquip.
const CHANNEL_MAX: u16 = 2_047;

/// The longest TCP keepalive time that Linux accepts.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// A connection that has logged in.
pub(super) struct Connected {
    pub(super) connection: Connection,
    /// The stream's observations, such as the broker's reason for closing.
    pub(super) observed: Arc<Observed>,
    /// The way out that amiquip and all other threads share.
    pub(super) writer: RunningWriter,
    pub(super) routes: Arc<Routes>,
}

/// A failed attempt to connect.
pub(super) struct NotConnected {
    pub(super) error: Error,
    /// True if no process listens at the address: another attempt costs next to nothing.
    pub(super) was_refused: bool,
}

/// Connects and logs in. Name resolution, TCP and login take at most the connect timeout
/// in all, whatever the peer does. The number names the connection's threads.
pub(super) fn connect(
    number: u64,
    config: &Config,
    watchdog: &Watchdog,
) -> Result<Connected, NotConnected> {
    let deadline = deadline::after(config.connect_timeout);
    let failed = |cause: String| NotConnected {
        error: Error::new(
            ErrorKind::Connect,
            format!("cannot connect to {}: {cause}", config.address()),
        ),
        was_refused: false,
    };
    let addresses = resolve(&config.host, config.port, deadline).map_err(failed)?;
    let socket =
        dial(&addresses, deadline, TcpStream::connect_timeout).map_err(|error| NotConnected {
            was_refused: error.kind() == io::ErrorKind::ConnectionRefused,
            ..failed(explain_dial(&error))
        })?;
    prepare(&socket, config).map_err(|error| failed(format!("socket options: {error}")))?;
    let kill_switch = socket.try_clone().map_err(|e| failed(e.to_string()))?;
    let observed = Arc::new(Observed::default());
    let routes = Arc::new(Routes::default());
    let io_failed = |error: io::Error| failed(error.to_string());
    socket.set_nonblocking(true).map_err(io_failed)?;
    let writer = socket.try_clone().map_err(io_failed)?;
    let writer = FrameWriter::start(number, writer).map_err(io_failed)?;
    let stream = GuardedStream::new(
        socket,
        config,
        Arc::clone(&observed),
        Arc::clone(writer.writer()),
        Arc::clone(&routes),
    )
    .map_err(io_failed)?;

    let armed = watchdog.arm_connection(kill_switch, Arc::clone(&observed), deadline);
    let options = ConnectionOptions::default()
        // Placeholders, as amiquip logs its credentials; the stream puts in the real ones.
        .auth(Auth::Plain {
            username: "coney".to_owned(),
            password: "placeholder".to_owned(),
        })
        .virtual_host(&config.vhost)
        .channel_max(CHANNEL_MAX)
        .frame_max(FRAME_MAX)
        .heartbeat(u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX));
    // amiquip sends methods only, one at a time: its buffers are never full.
    let tuning = ConnectionTuning::default();
    match Connection::insecure_open_stream(stream, options, tuning) {
        Ok(connection) => Ok(Connected {
            connection,
            observed,
            writer,
            routes,
        }),
        Err(error) => {
            let cause = if armed.fired() {
                format!(
                    "no answer to the login within {:?}; is this RabbitMQ's AMQP port (5672)?",
                    config.connect_timeout
                )
            } else {
                explain_login(&error, &observed, config)
            };
            watchdog.kill(); // its clone of the socket would keep the connection open
            Err(failed(cause))
        }
    }
}

/// Sets the socket's options.
///
/// Without nodelay, Nagle's algorithm and delayed acknowledgements reduce 1,400 calls a
/// second to 23. Keepalive and the user timeout end a connection whose peer has vanished
/// even where heartbeats are off.
fn prepare(socket: &TcpStream, config: &Config) -> io::Result<()> {
    let user_timeout = config.heartbeat * 2;
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(config.heartbeat.min(LONGEST_KEEPALIVE))
        .with_interval((config.heartbeat / 3).max(Duration::from_secs(1)));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(user_timeout))?;
    #[cfg(not(target_os = "linux"))]
    let _ = user_timeout;
    Ok(())
}

fn explain_dial(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused; is RabbitMQ running, and is the port right?".to_owned()
        }
        io::ErrorKind::TimedOut => "no answer to the TCP connect".to_owned(),
        _ => error.to_string(),
    }
}

/// Returns the cause of a failed login. amiquip reports every failure after the first
/// frame as a credentials error, without a reason; the stream has seen the broker's own.
fn explain_login(error: &amiquip::Error, observed: &Observed, config: &Config) -> String {
    if let Some((code, text)) = observed.server_close() {
        return match code {
            403 => format!(
                "the broker refused the user {:?}; check user, password and permissions ({text})",
                config.user
            ),
            // A limit on the connections of the virtual host or of the user.
            530 if text.contains("limit") => format!("the broker refused the connection: {text}"),
            530 => format!(
                "the broker refused the virtual host {:?} ({text})",
                config.vhost
            ),
            _ => format!("the broker closed the connection: {code} {text}"),
        };
    }
    if let Some(violation) = observed.violation() {
        return format!("{violation}; is this RabbitMQ's AMQP port (5672)?");
    }
    match error {
        amiquip::Error::InvalidCredentials => format!(
            "the broker closed the socket during the login of the user {:?}; check user and \
             password",
            config.user
        ),
        other => other.to_string(),
    }
}
