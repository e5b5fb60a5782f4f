//! Name resolution with a deadline, and connecting to the resolved addresses.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

/// Resolves a host name, on a thread of its own because the system's resolver has no deadline. A
/// resolver thread that hangs is left behind and ends by itself.
pub(crate) fn resolve(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let target = (host.to_owned(), port);
    thread::Builder::new()
        .name("coney-resolve".to_owned())
        .spawn(move || {
            let _ = sender.send(target.to_socket_addrs().map(Vec::from_iter));
        })
        .map_err(|error| format!("cannot start a thread for name resolution: {error}"))?;
    match receiver.recv_deadline(deadline) {
        Ok(Ok(found)) if !found.is_empty() => Ok(found),
        Ok(Ok(_)) => Err("the host name has no address".to_owned()),
        Ok(Err(error)) => Err(format!("the host name does not resolve: {error}")),
        Err(_) => Err("resolving the host name took too long".to_owned()),
    }
}

/// Tries the addresses in turn, each with an equal share of the time left.
pub(crate) fn dial<T, E: From<io::Error>>(
    addresses: &[SocketAddr],
    deadline: Instant,
    connect: impl Fn(&SocketAddr, Duration) -> Result<T, E>,
) -> Result<T, E> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut).into();
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(1);
        if share.is_zero() {
            break;
        }
        match connect(address, share) {
            Ok(connected) => return Ok(connected),
            Err(error) => last = error,
        }
    }
    Err(last)
}
