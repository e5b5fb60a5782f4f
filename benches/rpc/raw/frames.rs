//! Frames of AMQP 0-9-1 as coney writes them, and as much of a parser as the limit needs.

/// The only channel of a connection.
const CHANNEL: u8 = 1;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xce;

/// The bytes of a frame around its payload: kind, channel and size before it, the end after it.
const AROUND: usize = 8;

/// The size of a frame that both sides agree on, RabbitMQ's default.
pub const FRAME_MAX: usize = 131_072;

/// The flags of coney's request: content type, delivery mode, correlation id, reply queue,
/// expiration and message id.
const REQUEST_PROPERTIES: u16 = 0x9780;

/// The flags of coney's reply: content type and correlation id.
const REPLY_PROPERTIES: u16 = 0x8400;

const CONTENT_TYPE: &[u8] = b"application/json";
const PERSISTENT: u8 = 2;

/// A correlation id, which is what each side reads of a message's properties.
pub type Id = [u8; 32];

/// Appends a method to `out`.
pub fn method(out: &mut Vec<u8>, channel: u8, id: [u8; 4], arguments: &[&[u8]]) {
    frame(out, METHOD, channel, |out| {
        out.extend_from_slice(&id);
        out.extend(arguments.iter().copied().flatten());
    });
}

/// Appends a request to `out`: mandatory and persistent, as coney's are.
pub fn request(
    out: &mut Vec<u8>,
    key: &[u8],
    id: &Id,
    reply_to: &[u8],
    message_id: &[u8],
    body: &[u8],
) {
    publish(out, b"service.exchange", key, true);
    header(out, REQUEST_PROPERTIES, body.len(), |out| {
        out.push(PERSISTENT);
        short(out, id);
        short(out, reply_to);
        short(out, b"4999"); // the expiration in ms: the time that is left of five seconds
        short(out, message_id);
    });
    bodies(out, body);
}

/// Appends a reply to `out`: with coney's properties, and not persistent.
pub fn reply(out: &mut Vec<u8>, reply_to: &[u8], id: &[u8], body: &[u8]) {
    publish(out, b"", reply_to, false);
    header(out, REPLY_PROPERTIES, body.len(), |out| short(out, id));
    bodies(out, body);
}

/// Appends an acknowledgement to `out`.
pub fn ack(out: &mut Vec<u8>, tag: [u8; 8]) {
    method(out, CHANNEL, [0, 60, 0, 80], &[&tag, &[0]]);
}

/// Returns a text with its size in one byte, as part of a method's arguments.
pub fn short_text(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    short(&mut out, text.as_bytes());
    out
}

fn publish(out: &mut Vec<u8>, exchange: &[u8], key: &[u8], is_mandatory: bool) {
    frame(out, METHOD, CHANNEL, |out| {
        out.extend_from_slice(&[0, 60, 0, 40, 0, 0]);
        short(out, exchange);
        short(out, key);
        out.push(is_mandatory.into());
    });
}

fn header(out: &mut Vec<u8>, flags: u16, size: usize, properties: impl FnOnce(&mut Vec<u8>)) {
    frame(out, HEADER, CHANNEL, |out| {
        out.extend_from_slice(&[0, 60, 0, 0]);
        out.extend_from_slice(&(size as u64).to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        short(out, CONTENT_TYPE);
        properties(out);
    });
}

fn bodies(out: &mut Vec<u8>, body: &[u8]) {
    for piece in body.chunks(FRAME_MAX - AROUND) {
        frame(out, BODY, CHANNEL, |out| out.extend_from_slice(piece));
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, channel: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&[kind, 0, channel, 0, 0, 0, 0]);
    payload(out);
    let size = (out.len() - begin - 7) as u32;
    out[begin + 3..begin + 7].copy_from_slice(&size.to_be_bytes());
    out.push(END);
}

fn short(out: &mut Vec<u8>, text: &[u8]) {
    out.push(u8::try_from(text.len()).expect("a short text"));
    out.extend_from_slice(text);
}

/// A frame that has arrived.
pub enum Frame<'a> {
    /// A method, with its class and number.
    Method([u8; 4], &'a [u8]),
    /// The content header of a message, with the size of its body, and its properties.
    Header(usize, &'a [u8]),
    Body(&'a [u8]),
    /// A heartbeat.
    Other,
}

/// Splits the first frame off, if it is complete. Returns it with its size in bytes.
pub fn split(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let size: [u8; 4] = bytes.get(3..7)?.try_into().ok()?;
    let size = u32::from_be_bytes(size) as usize;
    let payload = bytes.get(7..7 + size)?;
    bytes.get(7 + size)?; // the end has arrived, too
    let frame = match bytes[0] {
        METHOD => Frame::Method(payload[..4].try_into().ok()?, &payload[4..]),
        HEADER => {
            let size: [u8; 8] = payload[4..12].try_into().ok()?;
            Frame::Header(u64::from_be_bytes(size) as usize, &payload[12..])
        }
        BODY => Frame::Body(payload),
        _ => Frame::Other,
    };
    Some((frame, size + AROUND))
}

/// Returns the correlation id and the reply queue of properties as this program writes them; a
/// reply has no reply queue.
pub fn ids(properties: &[u8]) -> (Id, &[u8]) {
    let is_request = properties[..2] == REQUEST_PROPERTIES.to_be_bytes();
    let after_type = &properties[3 + CONTENT_TYPE.len()..];
    let after_mode = &after_type[usize::from(is_request)..];
    let (id, rest) = after_mode[1..].split_at(32);
    let id = id.try_into().expect("32 bytes");
    match is_request {
        true => (id, &rest[1..1 + usize::from(rest[0])]),
        false => (id, b""),
    }
}
