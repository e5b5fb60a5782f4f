//! The stream between amiquip and the socket.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use mio::event::Evented;
use mio::{Poll, PollOpt, Ready, Token};

use super::frame_guard::FrameGuard;
use super::observed::Observed;
use super::start_ok::StartOkRewriter;
use crate::base::log_relay;
use crate::transport::amqp::config::Config;
use crate::transport::amqp::transit::{Meter, Transit};

/// The stream that amiquip uses as its socket: every byte in and out passes through it.
///
/// Incoming frames are checked before they reach amiquip, which trusts every length. Outgoing
/// bytes are as amiquip wrote them, except that the login has coney's client properties and the
/// real credentials.
pub(in crate::transport::amqp) struct GuardedStream {
    socket: mio::net::TcpStream,
    guard: FrameGuard,
    start_ok: StartOkRewriter,
    meter: Meter,
    observed: Arc<Observed>,
    transit: Arc<Transit>,
}

impl GuardedStream {
    pub(in crate::transport::amqp) fn new(
        socket: TcpStream,
        config: &Config,
        observed: Arc<Observed>,
        transit: Arc<Transit>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: mio::net::TcpStream::from_stream(socket)?,
            guard: FrameGuard::new(config.max_body, config.max_dead_letter),
            start_ok: StartOkRewriter::new(&config.name, &config.user, &config.password),
            meter: Meter::new(),
            observed,
            transit,
        })
    }
}

impl Read for GuardedStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let taken = self.guard.take(out);
            if taken > 0 || out.is_empty() {
                return Ok(taken);
            }
            if self.guard.fill(&mut self.socket)? == 0 {
                return Ok(0);
            }
            if let Err(violation) = self.guard.check(&self.observed) {
                log_relay::log(
                    log::Level::Warn,
                    "coney::amqp",
                    format_args!("the connection is closed: {violation}"),
                );
                self.observed.record_violation(violation.to_string());
                return Err(io::Error::new(io::ErrorKind::InvalidData, violation));
            }
        }
    }
}

impl Write for GuardedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.start_ok.write(bytes, &mut self.socket)?;
        self.meter.wrote(&bytes[..count], &self.transit);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

impl Evented for GuardedStream {
    fn register(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        opts: PollOpt,
    ) -> io::Result<()> {
        self.socket.register(poll, token, interest, opts)
    }

    fn reregister(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        opts: PollOpt,
    ) -> io::Result<()> {
        self.socket.reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket.deregister(poll)
    }
}

impl amiquip::IoStream for GuardedStream {}
