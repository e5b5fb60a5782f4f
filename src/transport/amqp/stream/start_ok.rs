//! The rewriting of `connection.start-ok`, with which amiquip logs in.

use std::io::{self, Write};

use crate::base::secret::Secret;

/// The start of a frame with type 1 (method) on channel 0.
const METHOD_ON_CHANNEL_0: [u8; 3] = [1, 0, 0];
const CONNECTION_START_OK: [u8; 4] = [0, 10, 0, 11];
const FRAME_HEADER: usize = 7;
/// The position of the client properties: after frame header, class and method.
const PROPERTIES_AT: usize = FRAME_HEADER + 4;

/// A writer that replaces the client properties and the credentials in the login.
///
/// amiquip's client properties name amiquip, and it offers no way to name the connection.
/// coney's carry the connection name that RabbitMQ's management UI shows, and request
/// the reason of a failed login, without which the broker only closes the socket after a
/// pause. amiquip logs its credentials, so it gets placeholders.
pub(super) struct StartOkRewriter {
    properties: Vec<u8>,
    /// The SASL response of PLAIN: user and password.
    response: Secret,
    /// The rewritten frame while it is being written, and the number of bytes written.
    frame: Option<(Vec<u8>, usize)>,
    done: bool,
}

impl StartOkRewriter {
    pub(super) fn new(connection_name: &str, user: &str, password: &Secret) -> Self {
        Self {
            properties: client_properties(connection_name),
            response: format!("\0{user}\0{}", password.expose()).into(),
            frame: None,
            done: false,
        }
    }

    /// Writes to `socket`, and returns the number of the caller's bytes that this covers.
    pub(super) fn write(&mut self, bytes: &[u8], socket: &mut impl Write) -> io::Result<usize> {
        if self.done {
            return socket.write(bytes);
        }
        let Some(length) = start_ok_length(bytes) else {
            return socket.write(bytes); // the protocol header
        };
        let (frame, written) = self.frame.get_or_insert_with(|| {
            let response = self.response.expose();
            (rewrite(&bytes[..length], &self.properties, response), 0)
        });
        while *written < frame.len() {
            // After WouldBlock the caller writes the same bytes again.
            match socket.write(&frame[*written..])? {
                0 => return Ok(0),
                count => *written += count,
            }
        }
        self.frame = None;
        self.done = true;
        Ok(length)
    }
}

/// Returns the length of the frame at the start of `bytes` if it is a complete `start-ok`.
fn start_ok_length(bytes: &[u8]) -> Option<usize> {
    let size = bytes.get(3..FRAME_HEADER)?.try_into().ok()?;
    let length = FRAME_HEADER + u32::from_be_bytes(size) as usize + 1;
    let is_start_ok = bytes.starts_with(&METHOD_ON_CHANNEL_0)
        && bytes[FRAME_HEADER..].starts_with(&CONNECTION_START_OK)
        && bytes.len() >= length;
    is_start_ok.then_some(length)
}

/// Returns the frame with its properties table and its SASL response replaced, and its size
/// corrected.
fn rewrite(frame: &[u8], properties: &[u8], response: &str) -> Vec<u8> {
    let fields = || {
        let rest = long(frame.get(PROPERTIES_AT..)?)?.1;
        let (&length, rest) = rest.split_first()?;
        let (mechanism, rest) = rest.split_at_checked(length.into())?;
        let locale_and_end = long(rest)?.1;
        Some((mechanism, locale_and_end))
    };
    let Some((mechanism, locale_and_end)) = fields() else {
        return frame.to_vec();
    };
    let mut arguments = CONNECTION_START_OK.to_vec();
    push_u32(properties.len(), &mut arguments);
    arguments.extend_from_slice(properties);
    arguments.push(mechanism.len() as u8); // unchanged
    arguments.extend_from_slice(mechanism);
    push_u32(response.len(), &mut arguments);
    arguments.extend_from_slice(response.as_bytes());
    arguments.extend_from_slice(locale_and_end);
    let mut out = METHOD_ON_CHANNEL_0.to_vec();
    push_u32(arguments.len() - 1, &mut out);
    out.extend_from_slice(&arguments);
    out
}

/// Splits off a field with a length of four bytes before it; returns it and the rest.
fn long(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

fn client_properties(connection_name: &str) -> Vec<u8> {
    let mut capabilities = Vec::new();
    for capability in [
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "consumer_cancel_notify",
        "publisher_confirms",
    ] {
        push_key(capability, b't', &mut capabilities);
        capabilities.push(1);
    }
    let mut table = Vec::new();
    for (key, value) in [
        ("product", "coney"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("platform", "Rust"),
        ("connection_name", connection_name),
    ] {
        push_key(key, b'S', &mut table);
        push_u32(value.len(), &mut table);
        table.extend_from_slice(value.as_bytes());
    }
    push_key("capabilities", b'F', &mut table);
    push_u32(capabilities.len(), &mut table);
    table.extend_from_slice(&capabilities);
    table
}

/// Appends a key, a literal under 256 bytes, and the type octet of its value.
fn push_key(key: &str, kind: u8, out: &mut Vec<u8>) {
    out.push(key.len() as u8);
    out.extend_from_slice(key.as_bytes());
    out.push(kind);
}

/// Appends a length in four bytes. All are far below 4 GiB: names are limited to 1,000 bytes.
fn push_u32(value: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(value as u32).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that accepts 7 bytes at a time and would block in between.
    struct SlowSocket(Vec<u8>, bool);

    impl Write for SlowSocket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(7);
            self.0.extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start_ok(properties: &[u8], response: &[u8]) -> Vec<u8> {
        let mut payload = CONNECTION_START_OK.to_vec();
        push_u32(properties.len(), &mut payload);
        payload.extend(properties);
        payload.extend(b"\x05PLAIN");
        push_u32(response.len(), &mut payload);
        payload.extend(response);
        payload.extend(b"\x05en_US");
        let mut frame = METHOD_ON_CHANNEL_0.to_vec();
        push_u32(payload.len(), &mut frame);
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    fn send(rewriter: &mut StartOkRewriter, mut bytes: &[u8], socket: &mut SlowSocket) {
        while !bytes.is_empty() {
            match rewriter.write(bytes, socket) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[test]
    fn properties_and_credentials_are_replaced_on_a_slow_socket() {
        let mut rewriter = StartOkRewriter::new("order-service", "me", &"pw".to_owned().into());
        let mut socket = SlowSocket(Vec::new(), false);
        send(&mut rewriter, b"AMQP\0\0\x09\x01", &mut socket);
        send(
            &mut rewriter,
            &start_ok(b"\x01aS\0\0\0\x01b", b"\0x\0placeholder"),
            &mut socket,
        );
        send(&mut rewriter, b"what follows", &mut socket);

        let mut wanted = b"AMQP\0\0\x09\x01".to_vec();
        wanted.extend(start_ok(&client_properties("order-service"), b"\0me\0pw"));
        wanted.extend(b"what follows");
        assert_eq!(socket.0, wanted);
    }
}
