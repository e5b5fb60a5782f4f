//! The sanitizing, in place, of input from peers that amiquip does not handle.
//!
//! The broker passes on header tables of any depth and texts that are not UTF-8.
//! amiquip parses tables by recursion, so a deep table overflows its stack and ends
//! the process; of a table or a property list with an invalid text it drops
//! the rest, or all; and an invalid routing key ends the connection, after which the
//! broker redelivers the same message. Sanitizing never changes a length.

use crate::transport::amqp::frames::{MAX_NESTING, Malformed, replace_invalid};

const ARRAY: u8 = b'A';
const BYTES: u8 = b'x';
const TABLE: u8 = b'F';
const TEXT: u8 = b'S';

type Result<T = ()> = std::result::Result<T, Malformed>;

/// The type of an argument of a method, or of a property.
#[derive(Clone, Copy)]
enum Kind {
    /// A number of bytes without text.
    Skip(usize),
    Short,
    Table,
}

use Kind::{Short, Skip, Table};

/// Sanitizes the payload of a method frame, where it has texts that another program can choose.
pub(in crate::transport::amqp) fn method(payload: &mut [u8]) -> Result {
    let fields: &[Kind] = match payload {
        // connection: start, close, blocked
        [0, 10, 0, 10, ..] => &[Skip(2), Table],
        [0, 10, 0, 50, ..] => &[Skip(2), Short],
        [0, 10, 0, 60, ..] => &[Short],
        // channel: close
        [0, 20, 0, 40, ..] => &[Skip(2), Short],
        // queue: declare-ok
        [0, 50, 0, 11, ..] => &[Short],
        // basic: consume-ok, cancel, cancel-ok, return, deliver, get-ok
        [0, 60, 0, 21 | 30 | 31, ..] => &[Short],
        [0, 60, 0, 50, ..] => &[Skip(2), Short, Short, Short],
        [0, 60, 0, 60, ..] => &[Short, Skip(9), Short, Short],
        [0, 60, 0, 71, ..] => &[Skip(9), Short, Short],
        _ => return Ok(()),
    };
    walk(&mut Cursor(&mut payload[4..]), fields.iter().copied())
}

/// Sanitizes the payload of a content header: the properties and headers of a message.
pub(in crate::transport::amqp) fn content_header(payload: &mut [u8]) -> Result {
    /// The properties in the order of their flags, from the highest bit.
    const PROPERTIES: [Kind; 14] = [
        Short,   // content type
        Short,   // content encoding
        Table,   // headers
        Skip(1), // delivery mode
        Skip(1), // priority
        Short,   // correlation id
        Short,   // reply to
        Short,   // expiration
        Short,   // message id
        Skip(8), // timestamp
        Short,   // type
        Short,   // user id
        Short,   // app id
        Short,   // cluster id
    ];
    let mut cursor = Cursor(payload);
    cursor.take(12)?; // class, weight, body size
    let flags = u16::from_be_bytes(cursor.take(2)?.try_into().map_err(|_| Malformed)?);
    let present = (0..14).filter(|bit| flags & (0x8000 >> bit) != 0);
    walk(&mut cursor, present.map(|bit| PROPERTIES[bit]))
}

fn walk(cursor: &mut Cursor<'_>, fields: impl Iterator<Item = Kind>) -> Result {
    for field in fields {
        match field {
            Skip(count) => drop(cursor.take(count)?),
            Short => replace_invalid(cursor.short()?),
            Table => table(cursor.long()?, 1)?,
        }
    }
    Ok(())
}

fn table(bytes: &mut [u8], depth: usize) -> Result {
    let mut cursor = Cursor(bytes);
    while !cursor.0.is_empty() {
        replace_invalid(cursor.short()?);
        value(&mut cursor, depth)?;
    }
    Ok(())
}

fn array(bytes: &mut [u8], depth: usize) -> Result {
    let mut cursor = Cursor(bytes);
    while !cursor.0.is_empty() {
        value(&mut cursor, depth)?;
    }
    Ok(())
}

/// Sanitizes a value and the type octet before it. Texts, bytes, arrays and tables all begin
/// with a length of four bytes, so changing the octet turns one type into another.
fn value(cursor: &mut Cursor<'_>, depth: usize) -> Result {
    let kind = cursor.take(1)?;
    match kind[0] {
        b'V' => {}
        b't' | b'b' | b'B' => drop(cursor.take(1)?),
        b's' | b'u' | b'U' => drop(cursor.take(2)?),
        b'I' | b'i' | b'f' => drop(cursor.take(4)?),
        b'D' => drop(cursor.take(5)?),
        b'l' | b'L' | b'd' | b'T' => drop(cursor.take(8)?),
        BYTES => drop(cursor.long()?),
        TEXT => {
            if std::str::from_utf8(cursor.long()?).is_err() {
                kind[0] = BYTES;
            }
        }
        ARRAY | TABLE if depth >= MAX_NESTING => {
            cursor.long()?;
            kind[0] = BYTES;
        }
        ARRAY => array(cursor.long()?, depth + 1)?,
        TABLE => table(cursor.long()?, depth + 1)?,
        _ => return Err(Malformed),
    }
    Ok(())
}

/// The bytes that have not been read yet.
struct Cursor<'a>(&'a mut [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a mut [u8]> {
        let bytes = std::mem::take(&mut self.0);
        let (taken, rest) = bytes.split_at_mut_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Takes a field with a length of one byte before it.
    fn short(&mut self) -> Result<&'a mut [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    /// Takes a field with a length of four bytes before it.
    fn long(&mut self) -> Result<&'a mut [u8]> {
        let length = self.take(4)?.try_into().map_err(|_| Malformed)?;
        self.take(u32::from_be_bytes(length) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn long(kind: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        out.extend(content);
        out
    }

    fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut out = vec![u8::try_from(name.len()).unwrap()];
        out.extend(name);
        out.extend(value);
        out
    }

    /// Builds a content header with headers and a correlation id.
    fn header(fields: &[u8], correlation_id: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        out.extend((1u16 << 13 | 1 << 10).to_be_bytes());
        out.extend(&long(0, fields)[1..]);
        out.extend(field(correlation_id, b""));
        out
    }

    fn nested(depth: usize) -> Vec<u8> {
        (0..depth).fold(long(TEXT, b"deep"), |inner, _| long(ARRAY, &inner))
    }

    #[test]
    fn well_formed_input_is_unchanged() {
        let mut fields = field(b"a", &long(TEXT, "张三".as_bytes()));
        fields.extend(field(b"b", &long(TABLE, &field(b"c", b"t\x01"))));
        fields.extend(field(b"d", &nested(MAX_NESTING - 1)));
        for (kind, length) in [(b'l', 8), (b'I', 4), (b's', 2), (b'D', 5), (b'V', 0)] {
            let mut value = vec![kind];
            value.resize(1 + length, 7);
            fields.extend(field(b"n", &value));
        }
        let good = header(&fields, b"0123");
        let mut sanitized = good.clone();
        assert_eq!(content_header(&mut sanitized), Ok(()));
        assert_eq!(sanitized, good);
    }

    #[test]
    fn a_value_nested_too_deeply_becomes_bytes() {
        let deep = header(&field(b"d", &nested(MAX_NESTING)), b"");
        let mut sanitized = deep.clone();
        assert_eq!(content_header(&mut sanitized), Ok(()));
        let changed: Vec<usize> = (0..deep.len())
            .filter(|&at| deep[at] != sanitized[at])
            .collect();
        assert_eq!(changed.len(), 1);
        assert_eq!(sanitized[changed[0]], BYTES);
        // A depth at which unbounded recursion would overflow the stack.
        let mut deepest = header(&field(b"d", &nested(20_000)), b"");
        assert_eq!(content_header(&mut deepest), Ok(()));
    }

    #[test]
    fn invalid_texts_are_sanitized() {
        let mut bad = header(&field(b"k\xff", &long(TEXT, b"v\xff")), b"i\xe5\xbc");
        assert_eq!(content_header(&mut bad), Ok(()));
        assert_eq!(bad, header(&field(b"k?", &long(BYTES, b"v\xff")), b"i??"));

        let mut deliver = vec![0, 60, 0, 60, 1, b't', 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, b'x'];
        deliver.extend(field(b"key\xc3(", b""));
        assert_eq!(method(&mut deliver), Ok(()));
        assert!(deliver.ends_with(b"\x05key?("));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let mut short = header(&field(b"a", &long(TEXT, b"abc")), b"");
        short.truncate(short.len() - 4);
        assert_eq!(content_header(&mut short), Err(Malformed));
        let mut beyond = header(&field(b"a", &[TEXT, 0xff, 0xff, 0xff, 0xff]), b"");
        assert_eq!(content_header(&mut beyond), Err(Malformed));
        let mut unknown = header(&field(b"a", b"?"), b"");
        assert_eq!(content_header(&mut unknown), Err(Malformed));
        assert_eq!(method(&mut [0, 60, 0, 60, 200]), Err(Malformed));
    }

    fn arbitrary_value() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            Just(b"V".to_vec()),
            any::<u8>().prop_map(|b| vec![b't', b]),
            any::<[u8; 8]>().prop_map(|b| [&b"l"[..], &b].concat()),
            prop::collection::vec(any::<u8>(), 0..8).prop_map(|b| long(TEXT, &b)),
        ];
        leaf.prop_recursive(6, 40, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|v| long(ARRAY, &v.concat())),
                prop::collection::vec((prop::collection::vec(any::<u8>(), 0..4), inner), 0..4)
                    .prop_map(|v| {
                        let fields = v.iter().flat_map(|(name, value)| field(name, value));
                        long(TABLE, &fields.collect::<Vec<_>>())
                    }),
            ]
        })
    }

    proptest! {
        #[test]
        fn noise_does_not_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = content_header(&mut noise.clone());
            let _ = method(&mut noise.clone());
            let mut payload = vec![0, 60, 0, 60];
            payload.extend(noise);
            let _ = method(&mut payload);
        }

        #[test]
        fn well_formed_tables_pass_and_sanitizing_is_idempotent(
            value in arbitrary_value(), id in prop::collection::vec(any::<u8>(), 0..20),
            at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut once = header(&field(b"k", &value), &id);
            prop_assert_eq!(content_header(&mut once), Ok(()));
            let mut twice = once.clone();
            prop_assert_eq!(content_header(&mut twice), Ok(()));
            prop_assert_eq!(&once, &twice);
            let at = at.index(twice.len());
            twice[at] = byte;
            let _ = content_header(&mut twice);
        }
    }
}
