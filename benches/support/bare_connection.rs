//! A plain amiquip connection, for the programs that coney is compared with.

use std::net::TcpStream;

use amiquip::{Auth, Connection, ConnectionOptions, ConnectionTuning};

/// Opens a connection with nodelay, which amiquip's own connect never sets, and without which a
/// call takes 44 ms.
pub fn connect(url: &str) -> Connection {
    let (username, password, address) = login(url);
    let socket = TcpStream::connect(&address).expect("the broker is there");
    socket.set_nodelay(true).expect("nodelay");
    socket.set_nonblocking(true).expect("non-blocking");
    let stream = mio::net::TcpStream::from_stream(socket).expect("a socket");
    let options = ConnectionOptions::default().auth(Auth::Plain { username, password });
    let tuning = ConnectionTuning::default().mem_channel_bound(256);
    Connection::insecure_open_stream(stream, options, tuning).expect("the login")
}

/// Returns the user's name, the password, and the address of a URL.
pub fn login(url: &str) -> (String, String, String) {
    let rest = url.strip_prefix("amqp://").expect("an amqp URL");
    let (login, host) = rest.split_once('@').unwrap_or(("guest:guest", rest));
    let (username, password) = login.split_once(':').expect("user:password");
    let address = host.trim_end_matches('/');
    let address = match address.contains(':') {
        true => address.to_owned(),
        false => format!("{address}:5672"),
    };
    (username.to_owned(), password.to_owned(), address)
}
