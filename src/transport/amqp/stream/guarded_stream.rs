//! The stream between amiquip and the socket.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use mio::event::Evented;
use mio::{Poll, PollOpt, Ready, Registration, SetReadiness, Token};

use super::frame_guard::FrameGuard;
use super::start_ok::StartOkRewriter;
use crate::base::log_relay;
use crate::transport::amqp::config::Config;
use crate::transport::amqp::frame_writer::FrameWriter;
use crate::transport::amqp::observed::Observed;
use crate::transport::amqp::routes::Routes;

/// The stream that amiquip uses as its socket: every byte in and out passes through it.
///
/// Incoming frames are checked before they reach amiquip, which trusts every length; deliveries
/// take the shorter way to their links. Outgoing bytes are as amiquip wrote them, except that the
/// login has coney's client properties and the real credentials; they go through the writer that all
/// threads share.
pub(in crate::transport::amqp) struct GuardedStream {
    socket: mio::net::TcpStream,
    guard: FrameGuard,
    start_ok: StartOkRewriter,
    observed: Arc<Observed>,
    writer: Arc<FrameWriter>,
    /// Wakes amiquip's loop to read on, after a turn.
    read_on: (Registration, SetReadiness),
    reads_on: bool,
}

/// The number of reads after which amiquip's loop gets a turn for its other events, although there
/// is more to read.
const READS_IN_A_TURN: usize = 64;

impl GuardedStream {
    pub(in crate::transport::amqp) fn new(
        socket: TcpStream,
        config: &Config,
        observed: Arc<Observed>,
        writer: Arc<FrameWriter>,
        routes: Arc<Routes>,
    ) -> io::Result<Self> {
        Ok(Self {
            socket: mio::net::TcpStream::from_stream(socket)?,
            guard: FrameGuard::new(config.max_body, config.max_dead_letter, routes),
            start_ok: StartOkRewriter::new(&config.name, &config.user, &config.password),
            observed,
            writer,
            read_on: Registration::new2(),
            reads_on: false,
        })
    }
}

impl Read for GuardedStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.reads_on) {
            self.read_on.1.set_readiness(Ready::empty())?;
        }
        for _ in 0..READS_IN_A_TURN {
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
        // The socket's own event would not come again: what is left has been announced.
        self.reads_on = true;
        self.read_on.1.set_readiness(Ready::readable())?;
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Write for GuardedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.start_ok.write(bytes, &mut &*self.writer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
        poll.register(&self.read_on.0, token, Ready::readable(), opts)?;
        self.socket.register(poll, token, interest, opts)
    }

    fn reregister(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        opts: PollOpt,
    ) -> io::Result<()> {
        poll.reregister(&self.read_on.0, token, Ready::readable(), opts)?;
        self.socket.reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        poll.deregister(&self.read_on.0)?;
        self.socket.deregister(poll)
    }
}

impl amiquip::IoStream for GuardedStream {}
