//! The connections of the pool: opening them, and requests with a deadline.

use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, Instant};

use r2d2::ManageConnection;
use r2d2_redis::redis::{
    self, Client, Cmd, Connection, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError,
    RedisResult, Value,
};

use super::url::Address;
use crate::base::catch::catch;
use crate::base::deadline;
use crate::base::resolve::{dial, resolve};

/// The time after its last use in which a connection is not checked again.
const SURELY_ALIVE: Duration = Duration::from_secs(1);

/// A connection manager for the pool. r2d2_redis's own would log in without a timeout, and keep
/// connections that have timed out.
#[derive(Debug)]
pub(super) struct Manager {
    address: Address,
    timeout: Duration,
}

/// A connection of the pool.
pub(super) struct Conn {
    redis: Connection,
    last_used: Instant,
    /// True after an error: replies that are still to come would be taken for those to later
    /// commands.
    broken: bool,
}

impl Conn {
    /// Sends all commands in one round trip, and blocks for their replies until `deadline`.
    /// After an error the connection is not used again.
    pub(super) fn ask(&mut self, commands: &[Cmd], deadline: Instant) -> RedisResult<Vec<Value>> {
        // Until all replies are here, whatever happens in between, even a panic.
        self.broken = true;
        let mut packed = Vec::new();
        for command in commands {
            packed.extend_from_slice(&command.get_packed_command());
        }
        self.redis.set_write_timeout(Some(left(deadline)))?;
        self.redis.send_packed_command(&packed)?;
        let mut replies = Vec::with_capacity(commands.len());
        for _ in commands {
            self.redis.set_read_timeout(Some(left(deadline)))?;
            replies.push(self.redis.recv_response()?);
        }
        self.broken = false;
        self.last_used = Instant::now();
        Ok(replies)
    }

    /// Checks that Redis answers on this connection, unless it was used within a second.
    pub(super) fn check(&mut self, deadline: Instant) -> RedisResult<()> {
        if self.last_used.elapsed() < SURELY_ALIVE {
            return Ok(());
        }
        match self.ask(&[redis::cmd("PING")], deadline)?.pop() {
            Some(Value::Status(pong)) if pong == "PONG" => Ok(()),
            _ => {
                self.broken = true;
                Err((
                    ErrorKind::ResponseError,
                    "it does not answer PING with PONG",
                )
                    .into())
            }
        }
    }
}

/// Returns the time left, at least the shortest timeout that a socket accepts.
fn left(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

/// The reason for which there is no connection.
#[derive(Debug)]
pub(super) struct NoConnection(String);

impl fmt::Display for NoConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for NoConnection {}

impl Manager {
    pub(super) fn new(address: Address, timeout: Duration) -> Self {
        Self { address, timeout }
    }

    /// Opens a connection: name resolution, TCP and login together, within the timeout.
    fn open(&self) -> Result<Conn, String> {
        let deadline = deadline::after(self.timeout);
        let Address { host, port, .. } = &self.address;
        let addresses = resolve(host, *port, deadline)?;
        let redis = dial(&addresses, deadline, |address, timeout| {
            let info = ConnectionInfo {
                addr: Box::new(ConnectionAddr::Tcp(
                    address.ip().to_string(),
                    address.port(),
                )),
                db: 0,
                username: None,
                passwd: None,
            };
            Client::open(info)?.get_connection_with_timeout(timeout)
        });
        let redis = redis.map_err(|error: RedisError| match error.is_connection_refusal() {
            true => "connection refused; is Redis running, and is the port right?".to_owned(),
            false if error.is_timeout() => "no answer to the TCP connect".to_owned(),
            false => error.to_string(),
        })?;
        let mut conn = Conn {
            redis,
            last_used: Instant::now(),
            broken: false,
        };
        let commands = self.login();
        if !commands.is_empty() {
            let login = conn.ask(&commands, deadline);
            login.map_err(|error| explain_login(&error))?;
        }
        Ok(conn)
    }

    fn login(&self) -> Vec<Cmd> {
        let Address {
            user,
            password,
            database,
            ..
        } = &self.address;
        let mut commands = Vec::new();
        if let Some(password) = password {
            let mut auth = redis::cmd("AUTH");
            auth.arg(user.as_deref()).arg(password.expose());
            commands.push(auth);
        }
        if *database != 0 {
            let mut select = redis::cmd("SELECT");
            select.arg(*database);
            commands.push(select);
        }
        commands
    }
}

/// Returns the text of a failed login, without Redis's own detail: a Redis that does not know
/// AUTH quotes the password.
fn explain_login(error: &RedisError) -> String {
    if error.is_timeout() {
        return "it does not answer the login".to_owned();
    }
    if error.is_io_error() {
        return "it hung up during the login; is this Redis's port (6379)?".to_owned();
    }
    let code = error.code().unwrap_or("no Redis answer");
    format!("the login is refused ({code}); check user, password and database")
}

impl ManageConnection for Manager {
    type Connection = Conn;
    type Error = NoConnection;

    fn connect(&self) -> Result<Conn, NoConnection> {
        // A panic would end one of the pool's threads, and occupy one of its connections for
        // good.
        let opened = catch(|| self.open());
        let opened = opened.unwrap_or_else(|_| Err("connecting panicked".to_owned()));
        opened.map_err(NoConnection)
    }

    /// Returns `Ok`: callers [`check`](Conn::check) a connection within their own deadline,
    /// which the pool does not know.
    fn is_valid(&self, _: &mut Conn) -> Result<(), NoConnection> {
        Ok(())
    }

    fn has_broken(&self, conn: &mut Conn) -> bool {
        conn.broken
    }
}
