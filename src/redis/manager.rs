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

/// A connection that was used so lately is not asked whether it is there.
const SURELY_ALIVE: Duration = Duration::from_secs(1);

/// Makes connections for the pool. r2d2_redis's own manager would log in without a
/// timeout, and keep connections that have timed out.
#[derive(Debug)]
pub(super) struct Manager {
    address: Address,
    timeout: Duration,
}

/// A connection, and whether it can be trusted.
pub(super) struct Conn {
    redis: Connection,
    used: Instant,
    broken: bool,
}

impl Conn {
    /// Asks all of it in one round trip, at most until `deadline`. After an error the
    /// connection is not used again: the answer to what was asked may still come, and
    /// would be taken for that to the next question.
    pub(super) fn ask(&mut self, commands: &[Cmd], deadline: Instant) -> RedisResult<Vec<Value>> {
        // Whatever happens in between, a panic too.
        self.broken = true;
        let mut packed = Vec::new();
        for command in commands {
            packed.extend_from_slice(&command.get_packed_command());
        }
        self.redis.set_write_timeout(Some(left(deadline)))?;
        self.redis.send_packed_command(&packed)?;
        let mut answers = Vec::with_capacity(commands.len());
        for _ in commands {
            self.redis.set_read_timeout(Some(left(deadline)))?;
            answers.push(self.redis.recv_response()?);
        }
        self.broken = false;
        self.used = Instant::now();
        Ok(answers)
    }

    /// Finds out whether it is there, if it has not been used lately.
    pub(super) fn check(&mut self, deadline: Instant) -> RedisResult<()> {
        if self.used.elapsed() < SURELY_ALIVE {
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

/// What is left; the least that a socket takes if there is nothing.
fn left(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

/// Why there is no connection.
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

    /// Name resolution, TCP and login together take at most the timeout.
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
            used: Instant::now(),
            broken: false,
        };
        let commands = self.login();
        if !commands.is_empty() {
            let answered = conn.ask(&commands, deadline);
            answered.map_err(|error| self.explain(&error))?;
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

    /// Without the details: a Redis that does not know AUTH quotes the password.
    fn explain(&self, error: &RedisError) -> String {
        if error.is_timeout() {
            return "it does not answer the login".to_owned();
        }
        if error.is_io_error() {
            return "it hung up during the login; is this Redis's port (6379)?".to_owned();
        }
        let code = error.code().unwrap_or("no Redis answer");
        format!("the login is refused ({code}); check user, password and database")
    }
}

impl ManageConnection for Manager {
    type Connection = Conn;
    type Error = NoConnection;

    fn connect(&self) -> Result<Conn, NoConnection> {
        // A panic would end one of the pool's threads, and count as a connection for good.
        let opened = catch(|| self.open());
        let opened = opened.unwrap_or_else(|_| Err("connecting panicked".to_owned()));
        opened.map_err(NoConnection)
    }

    /// Whoever takes one checks it, within its own deadline: the pool knows none here.
    fn is_valid(&self, _: &mut Conn) -> Result<(), NoConnection> {
        Ok(())
    }

    fn has_broken(&self, conn: &mut Conn) -> bool {
        conn.broken
    }
}
