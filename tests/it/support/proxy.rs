//! A TCP proxy in front of a RabbitMQ, with which a test breaks its own connection and no other.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

/// The treatment of the bytes in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    Pass,
    /// Bytes are read and discarded.
    Swallow,
    /// Bytes are not read.
    Stall,
    /// Bytes are late: 30 ms for each piece.
    Delay,
    /// Bytes are passed on in pieces of one to seven.
    Slice,
    /// One byte in a hundred is replaced.
    Garble,
}

const MODES: [Mode; 6] = [
    Mode::Pass,
    Mode::Swallow,
    Mode::Stall,
    Mode::Delay,
    Mode::Slice,
    Mode::Garble,
];

pub struct Proxy {
    pub url: String,
    /// The modes to the broker, and from it.
    modes: [Arc<AtomicU8>; 2],
    sockets: Arc<Mutex<Vec<TcpStream>>>,
    refuses: Arc<AtomicBool>,
}

impl Proxy {
    /// Starts a proxy in front of the broker with this URL, for the same virtual host.
    pub fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = target.rsplit_once('@').unwrap().1;
        let (target, virtual_host) = match target.split_once('/') {
            Some((target, name)) => (target.to_owned(), format!("/{name}")),
            None => (target.to_owned(), String::new()),
        };
        let address = listener.local_addr().unwrap();
        let url = format!("amqp://guest:guest@{address}{virtual_host}");
        let proxy = Self {
            url,
            modes: Default::default(),
            sockets: Arc::default(),
            refuses: Arc::default(),
        };
        let modes = proxy.modes.clone();
        let sockets = Arc::clone(&proxy.sockets);
        let refuses = Arc::clone(&proxy.refuses);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&target) else {
                    continue;
                };
                for socket in [&client, &server] {
                    socket.set_nodelay(true).unwrap();
                    sockets.lock().push(socket.try_clone().unwrap());
                }
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for ((from, to), mode) in [(client, server), back].into_iter().zip(&modes) {
                    let mode = Arc::clone(mode);
                    thread::spawn(move || pass_on(from, to, &mode));
                }
            }
        });
        proxy
    }

    pub fn both(&self, mode: Mode) {
        self.forth(mode);
        self.back(mode);
    }

    pub fn forth(&self, mode: Mode) {
        self.modes[0].store(mode as u8, Ordering::SeqCst);
    }

    pub fn back(&self, mode: Mode) {
        self.modes[1].store(mode as u8, Ordering::SeqCst);
    }

    pub fn cut(&self) {
        self.cut_from(0);
    }

    /// Closes every later connection at once.
    pub fn refuse_later(&self) {
        self.refuses.store(true, Ordering::SeqCst);
    }

    /// Cuts all connections, and closes every later one at once.
    pub fn cut_for_good(&self) {
        self.refuse_later();
        self.cut();
    }

    /// Cuts the latest connection.
    pub fn cut_latest(&self) {
        let first = self.sockets.lock().len() - 2;
        self.cut_from(first);
    }

    fn cut_from(&self, first: usize) {
        for socket in self.sockets.lock().drain(first..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, mode: &AtomicU8) {
    let mut bytes = [0; 8 << 10];
    let now = || MODES[usize::from(mode.load(Ordering::SeqCst))];
    'pass: loop {
        while now() == Mode::Stall {
            thread::sleep(Duration::from_millis(5));
        }
        let Ok(count @ 1..) = from.read(&mut bytes) else {
            break;
        };
        let mut rest = &mut bytes[..count];
        match now() {
            Mode::Swallow => continue,
            Mode::Delay => thread::sleep(Duration::from_millis(30)),
            Mode::Garble => {
                for byte in rest.iter_mut().filter(|_| fastrand::u8(..100) == 0) {
                    *byte = fastrand::u8(..);
                }
            }
            Mode::Pass | Mode::Stall | Mode::Slice => {}
        }
        while !rest.is_empty() {
            let piece = match now() {
                Mode::Slice => fastrand::usize(1..=7).min(rest.len()),
                _ => rest.len(),
            };
            if to.write_all(&rest[..piece]).is_err() {
                break 'pass;
            }
            rest = &mut rest[piece..];
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
