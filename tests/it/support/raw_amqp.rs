//! A publisher that writes its frames by hand, for messages that no library would send.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::amqp_url;

pub struct RawPublisher(TcpStream);

impl RawPublisher {
    pub fn connect() -> Self {
        let url = amqp_url();
        let socket = TcpStream::connect(url.rsplit_once('@').unwrap().1).unwrap();
        let mut raw = Self(socket);
        raw.0.write_all(b"AMQP\0\0\x09\x01").unwrap();
        raw.expect([0, 10, 0, 10]); // connection.start
        let login = [
            &long(b"")[..],
            b"\x05PLAIN",
            &long(b"\0guest\0guest"),
            b"\x05en_US",
        ]
        .concat();
        raw.method(0, [0, 10, 0, 11], &login);
        raw.expect([0, 10, 0, 30]); // tune
        raw.method(0, [0, 10, 0, 31], &[7, 0xff, 0, 2, 0, 0, 0, 0]);
        raw.method(0, [0, 10, 0, 40], b"\x01/\0\0");
        raw.expect([0, 10, 0, 41]);
        raw.method(1, [0, 20, 0, 10], b"\0");
        raw.expect([0, 20, 0, 11]);
        raw
    }

    /// Publishes with property flags and their encoded values.
    pub fn publish(&mut self, exchange: &[u8], key: &[u8], flags: u16, values: &[u8], body: &[u8]) {
        let target = [&[0, 0][..], &short(exchange), &short(key), &[0]].concat();
        self.method(1, [0, 60, 0, 40], &target);
        let size = (body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), values].concat();
        self.frame(2, 1, &header);
        self.frame(3, 1, body);
        // After a round trip the broker has accepted it.
        self.method(1, [0, 60, 0, 10], &[0, 0, 0, 0, 0, 1, 0]);
        self.expect([0, 60, 0, 11]);
    }

    fn method(&mut self, channel: u8, id: [u8; 4], arguments: &[u8]) {
        self.frame(1, channel, &[&id, arguments].concat());
    }

    fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&[kind, 0, channel][..], &size, payload, &[0xce]].concat();
        self.0.write_all(&frame).unwrap();
    }

    fn expect(&mut self, id: [u8; 4]) {
        loop {
            let mut header = [0; 7];
            self.0.read_exact(&mut header).unwrap();
            let size = u32::from_be_bytes(header[3..].try_into().unwrap()) as usize;
            let mut payload = vec![0; size + 1];
            self.0.read_exact(&mut payload).unwrap();
            let id_found: [u8; 4] = payload[..4].try_into().unwrap();
            match id_found {
                found if header[0] == 1 && found == id => return,
                [0, 10, 0, 50] | [0, 20, 0, 40] => {
                    panic!("the broker closed: {}", String::from_utf8_lossy(&payload))
                }
                _ => {}
            }
        }
    }
}

pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

pub fn long(bytes: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}
