//! A connection by hand: a login, an outgoing buffer, and a loop that reads whole messages.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use parking_lot::{Mutex, MutexGuard};

use super::frames::{self, FRAME_MAX, Frame, Id, short_text};
use crate::bare_connection::login;

/// A message that has arrived.
pub struct Delivered {
    /// The delivery tag, as on the wire.
    pub tag: [u8; 8],
    pub id: Id,
    pub reply_to: Vec<u8>,
    pub body: Vec<u8>,
}

/// The outgoing half of a connection: whole frames are appended under a lock, and the thread that
/// finds no other one writing writes them, and what others append meanwhile.
pub struct Outgoing {
    state: Mutex<State>,
    socket: TcpStream,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// The buffer that is written, kept for its capacity.
    written: Vec<u8>,
    is_writing: bool,
}

impl Outgoing {
    pub fn send(&self, append: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        append(&mut state.buffer);
        if state.is_writing {
            return; // the writing thread takes it along
        }
        state.is_writing = true;
        let mut writing = std::mem::take(&mut state.written);
        while !state.buffer.is_empty() {
            std::mem::swap(&mut state.buffer, &mut writing);
            let write = || (&self.socket).write_all(&writing);
            MutexGuard::unlocked(&mut state, write).expect("the connection lives");
            writing.clear();
        }
        state.written = writing;
        state.is_writing = false;
    }

    /// Starts the closing handshake, at whose end the incoming half ends.
    pub fn close(&self) {
        let no_error = [0, 200, 0, 0, 0, 0, 0];
        self.send(|out| frames::method(out, 0, [0, 10, 0, 50], &[&no_error]));
    }
}

/// The incoming half of a connection.
pub struct Incoming {
    socket: TcpStream,
    buffer: Vec<u8>,
    /// The bytes of `buffer` that have arrived and not been parsed.
    arrived: std::ops::Range<usize>,
}

/// Opens a connection with a channel, and sends the methods of `set_up` on it, each with its
/// answer's class and number. Returns both halves, and the name in the first answer of a
/// `queue.declare-ok`, if any.
pub fn open(url: &str, set_up: &[(Vec<u8>, [u8; 4])]) -> (Outgoing, Incoming, Vec<u8>) {
    let (username, password, address) = login(url);
    let socket = TcpStream::connect(address).expect("the broker is there");
    socket.set_nodelay(true).expect("nodelay");
    let outgoing = Outgoing {
        state: Mutex::default(),
        socket: socket.try_clone().expect("a second handle"),
    };
    let mut incoming = Incoming {
        socket,
        buffer: vec![0; 2 * FRAME_MAX],
        arrived: 0..0,
    };
    outgoing.send(|out| out.extend_from_slice(b"AMQP\0\0\x09\x01"));
    incoming.expect([0, 10, 0, 10]);
    let secret = format!("\0{username}\0{password}");
    let size = (secret.len() as u32).to_be_bytes();
    let start_ok: [&[u8]; 5] = [
        &[0; 4],
        b"\x05PLAIN",
        &size,
        secret.as_bytes(),
        b"\x05en_US",
    ];
    outgoing.send(|out| frames::method(out, 0, [0, 10, 0, 11], &start_ok));
    incoming.expect([0, 10, 0, 30]);
    // A channel at most, and no heartbeats.
    let frame_max = (FRAME_MAX as u32).to_be_bytes();
    outgoing.send(|out| {
        frames::method(out, 0, [0, 10, 0, 31], &[&[0, 1], &frame_max, &[0, 0]]);
        frames::method(out, 0, [0, 10, 0, 40], &[&short_text("/"), &[0, 0]]);
    });
    incoming.expect([0, 10, 0, 41]);
    outgoing.send(|out| frames::method(out, 1, [0, 20, 0, 10], &[&[0]]));
    incoming.expect([0, 20, 0, 11]);
    let mut queue = Vec::new();
    for (method, answer) in set_up {
        // A consumer of the queue that the broker has named: an empty name is the last declared.
        outgoing.send(|out| out.extend_from_slice(method));
        let arguments = incoming.expect(*answer);
        if *answer == DECLARE_OK && queue.is_empty() {
            queue = arguments[1..1 + usize::from(arguments[0])].to_vec();
        }
    }
    (outgoing, incoming, queue)
}

/// The answer to the declaration of a queue.
pub const DECLARE_OK: [u8; 4] = [0, 50, 0, 11];

const DELIVER: [u8; 4] = [0, 60, 0, 60];
const CLOSE_OK: [u8; 4] = [0, 10, 0, 51];

impl Incoming {
    /// Blocks until the next message has arrived, and returns it; none once the connection is
    /// closed.
    pub fn next(&mut self) -> Option<Delivered> {
        let mut message = Delivered {
            tag: [0; 8],
            id: [0; 32],
            reply_to: Vec::new(),
            body: Vec::new(),
        };
        let mut wanted = usize::MAX;
        self.frames(|frame| {
            match frame {
                Frame::Method(DELIVER, arguments) => {
                    let after_tag = 1 + usize::from(arguments[0]);
                    let tag = &arguments[after_tag..after_tag + 8];
                    message.tag.copy_from_slice(tag);
                }
                Frame::Method(CLOSE_OK, _) => return Some(false),
                Frame::Method(id, _) => panic!("the broker sent the method {id:?}"),
                Frame::Header(size, properties) => {
                    let (id, reply_to) = frames::ids(properties);
                    message.id = id;
                    message.reply_to.extend_from_slice(reply_to);
                    message.body.reserve_exact(size);
                    wanted = size;
                }
                Frame::Body(bytes) => message.body.extend_from_slice(bytes),
                Frame::Other => {}
            }
            (message.body.len() == wanted).then_some(true)
        })?
        .then_some(message)
    }

    /// Blocks until a method has arrived, and returns its arguments.
    fn expect(&mut self, id: [u8; 4]) -> Vec<u8> {
        let arguments = self.frames(|frame| match frame {
            Frame::Method(arrived, arguments) if arrived == id => Some(arguments.to_vec()),
            Frame::Method([0, 10 | 20, 0, 40 | 50], reason) => {
                panic!("the broker closed: {}", String::from_utf8_lossy(reason))
            }
            _ => None,
        });
        arguments.unwrap_or_else(|| panic!("the broker closed the socket before {id:?}"))
    }

    /// Passes frames to `take` until it returns something; none once the socket is closed.
    fn frames<T>(&mut self, mut take: impl FnMut(Frame<'_>) -> Option<T>) -> Option<T> {
        loop {
            while let Some((frame, size)) = frames::split(&self.buffer[self.arrived.clone()]) {
                let taken = take(frame);
                self.arrived.start += size;
                if taken.is_some() {
                    return taken;
                }
            }
            // An incomplete frame moves to the beginning: the rest of it fits behind.
            self.buffer.copy_within(self.arrived.clone(), 0);
            self.arrived = 0..self.arrived.len();
            match self.socket.read(&mut self.buffer[self.arrived.end..]) {
                Ok(0) | Err(_) => return None,
                Ok(bytes) => self.arrived.end += bytes,
            }
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
