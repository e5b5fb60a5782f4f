use std::io;
use std::time::{Duration, Instant};

use r2d2::ManageConnection;
use r2d2_redis::redis::{
    self, Client, Connection, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult,
};

use super::explain;
use super::url::Address;
use crate::deadline;
use crate::resolve::{dial, resolve};

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
    pub(super) fn run<T>(
        &mut self,
        act: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        // Whatever happens in between, a panic too.
        self.broken = true;
        let result = act(&mut self.redis);
        self.broken = result.is_err();
        self.used = Instant::now();
        result
    }
}

impl Manager {
    pub(super) fn new(address: Address, timeout: Duration) -> Self {
        Self { address, timeout }
    }

    fn log_in(&self, redis: &mut Connection) -> RedisResult<()> {
        let Address {
            user,
            password,
            database,
            ..
        } = &self.address;
        if let Some(password) = password {
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = user {
                auth.arg(user);
            }
            auth.arg(password.expose()).query::<()>(redis)?;
        }
        if *database != 0 {
            redis::cmd("SELECT").arg(*database).query::<()>(redis)?;
        }
        Ok(())
    }
}

impl ManageConnection for Manager {
    type Connection = Conn;
    type Error = RedisError;

    /// Name resolution, TCP and login take at most the timeout each.
    fn connect(&self) -> RedisResult<Conn> {
        let deadline = deadline::after(self.timeout);
        let Address { host, port, .. } = &self.address;
        let addresses =
            resolve(host, *port, deadline).map_err(|fault| failed(io::Error::other(fault)))?;
        let mut redis = dial(&addresses, deadline, |address, timeout| {
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
        })
        .map_err(failed)?;
        // Before the first question.
        redis.set_read_timeout(Some(self.timeout))?;
        redis.set_write_timeout(Some(self.timeout))?;
        self.log_in(&mut redis).map_err(|error| refused(&error))?;
        Ok(Conn {
            redis,
            used: Instant::now(),
            broken: false,
        })
    }

    fn is_valid(&self, conn: &mut Conn) -> RedisResult<()> {
        if conn.used.elapsed() < SURELY_ALIVE {
            return Ok(());
        }
        let pong: String = conn.run(|redis| redis::cmd("PING").query(redis))?;
        match pong.as_str() {
            "PONG" => Ok(()),
            _ => Err((
                ErrorKind::ResponseError,
                "it does not answer PING with PONG",
            )
                .into()),
        }
    }

    fn has_broken(&self, conn: &mut Conn) -> bool {
        conn.broken
    }
}

fn failed(error: impl Into<RedisError>) -> RedisError {
    let error = error.into();
    let cause = match error.is_connection_refusal() {
        true => "connection refused; is Redis running, and is the port right?".to_owned(),
        false => error.to_string(),
    };
    (ErrorKind::IoError, "", cause).into()
}

fn refused(error: &RedisError) -> RedisError {
    let cause = match error.is_timeout() {
        true => "it does not answer the login".to_owned(),
        false => format!("the login is refused ({})", explain(error)),
    };
    (ErrorKind::AuthenticationFailed, "", cause).into()
}
