use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use amiquip::{Auth, Connection, ConnectionOptions, ConnectionTuning};
use socket2::{SockRef, TcpKeepalive};

use super::config::Config;
use super::stream::FRAME_MAX;
use super::stream::GuardedStream;
use super::stream::Observed;
use super::transit::Transit;
use super::watchdog::Watchdog;
use crate::base::deadline;
use crate::base::resolve::{dial, resolve};
use crate::error::{Error, ErrorKind};

/// More channels than any program needs; 65,535 overflows inside amiquip.
const CHANNEL_MAX: u16 = 2_047;

/// Linux takes no more.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// A connection that has logged in.
pub(super) struct Connected {
    pub(super) connection: Connection,
    /// What the stream saw: the broker's own words on why it closed.
    pub(super) observed: Arc<Observed>,
    /// What has been handed over and is not written yet.
    pub(super) transit: Arc<Transit>,
}

/// The reason why there is no connection.
pub(super) struct NotConnected {
    pub(super) error: Error,
    /// Nothing listens there: another attempt costs next to nothing.
    pub(super) was_refused: bool,
}

/// Makes a connection: name resolution, TCP and login together take at most
/// the connect timeout, whatever the other side does.
pub(super) fn connect(config: &Config, watchdog: &Watchdog) -> Result<Connected, NotConnected> {
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
    let transit = Arc::new(Transit::new());
    let stream = GuardedStream::new(socket, config, Arc::clone(&observed), Arc::clone(&transit))
        .map_err(|error| failed(error.to_string()))?;

    let armed = watchdog.arm_connection(kill_switch, Arc::clone(&observed), deadline);
    let options = ConnectionOptions::default()
        // The stream puts in the real ones: amiquip logs what it is given.
        .auth(Auth::Plain {
            username: "coney".to_owned(),
            password: "placeholder".to_owned(),
        })
        .virtual_host(&config.vhost)
        .channel_max(CHANNEL_MAX)
        .frame_max(FRAME_MAX)
        .heartbeat(u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX));
    // 256 in-memory frames: publishing is twice as fast as with amiquip's 16,
    // and more gains nothing. 1 MiB of buffered writes is what a lost
    // connection can lose.
    let tuning = ConnectionTuning::default()
        .mem_channel_bound(256)
        .buffered_writes_high_water(1 << 20)
        .buffered_writes_low_water(256 << 10);
    match Connection::insecure_open_stream(stream, options, tuning) {
        Ok(connection) => Ok(Connected {
            connection,
            observed,
            transit,
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
            watchdog.kill(); // its kill switch would keep the socket open
            Err(failed(cause))
        }
    }
}

/// Without nodelay, Nagle's algorithm and delayed acknowledgements make 23
/// calls a second out of 1,400. Keepalive and the user timeout end a
/// connection whose peer has vanished even where heartbeats are off.
fn prepare(socket: &TcpStream, config: &Config) -> io::Result<()> {
    let patience = config.heartbeat * 2;
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(config.heartbeat.min(LONGEST_KEEPALIVE))
        .with_interval((config.heartbeat / 3).max(Duration::from_secs(1)));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(patience))?;
    #[cfg(not(target_os = "linux"))]
    let _ = patience;
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

/// amiquip calls every failure after the first frame a credentials error and
/// quotes no reason; the stream has seen what the broker really said.
fn explain_login(error: &amiquip::Error, observed: &Observed, config: &Config) -> String {
    if let Some((code, text)) = observed.server_close() {
        return match code {
            403 => format!(
                "the broker refused the user {:?}; check user, password and permissions ({text})",
                config.user
            ),
            // Of connections, by virtual host or by user.
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
            "the broker hung up during the login of the user {:?}; check user and password",
            config.user
        ),
        other => other.to_string(),
    }
}
