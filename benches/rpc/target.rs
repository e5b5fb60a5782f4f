//! The broker that is measured, and its process, if it runs on this machine.

use std::fs;
use std::path::Path;

use crate::bare_connection::login;

/// A broker.
pub struct Target {
    /// Empty for the memory broker.
    pub url: String,
    /// The id of the process that listens at the URL.
    pub process: Option<u32>,
}

impl Target {
    pub fn memory() -> Self {
        Self {
            url: String::new(),
            process: None,
        }
    }

    pub fn amqp(url: String) -> Self {
        let (_, _, address) = login(&url);
        let process = address.rsplit_once(':').and_then(|(host, port)| {
            let is_here = ["127.0.0.1", "localhost", "[::1]"].contains(&host);
            is_here.then(|| listener(port.parse().ok()?)).flatten()
        });
        Self { url, process }
    }
}

/// Returns the id of the process that listens on a port.
fn listener(port: u16) -> Option<u32> {
    let is_listening = "0A";
    let port = format!(":{port:04X}");
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let lines: String = tables.into_iter().flatten().collect();
    let inode = lines.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&port) && *fields.get(3)? == is_listening;
        is_it.then(|| fields.get(9).copied()).flatten()
    })?;
    let socket = format!("socket:[{inode}]");
    let mut processes = fs::read_dir("/proc").ok()?.flatten();
    processes.find_map(|process| {
        let id = process.file_name().to_str()?.parse().ok()?;
        holds(&process.path().join("fd"), &socket).then_some(id)
    })
}

/// Returns true if one of a process's descriptors is this socket.
fn holds(descriptors: &Path, socket: &str) -> bool {
    let descriptors = fs::read_dir(descriptors).into_iter().flatten().flatten();
    let mut links = descriptors.filter_map(|it| fs::read_link(it.path()).ok());
    links.any(|link| link.as_os_str() == socket)
}
