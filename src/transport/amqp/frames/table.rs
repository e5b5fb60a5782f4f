//! Header tables, in RabbitMQ's dialect of AMQP's field types.

use super::cursor::{Cursor, MAX_NESTING, Malformed};
use super::long_prefix::put_prefixed;
use super::short_text::{put_short, to_text};
use crate::transport::{HeaderTable, HeaderValue};

/// The octets that name the types which coney sends. It receives more, see [`take_value`].
const VOID: u8 = b'V';
const BOOL: u8 = b't';
const INT: u8 = b'l';
const FLOAT: u8 = b'd';
const TIMESTAMP: u8 = b'T';
const TEXT: u8 = b'S';
const BYTES: u8 = b'x';
const LIST: u8 = b'A';
const TABLE: u8 = b'F';

/// Appends a table with its length.
pub(super) fn put_table(out: &mut Vec<u8>, table: &HeaderTable) {
    put_prefixed(out, |out| {
        for (name, value) in table {
            put_short(out, name);
            put_value(out, value);
        }
    });
}

/// Appends a value. The recursion is bounded, as `Publication::check` limits the nesting.
fn put_value(out: &mut Vec<u8>, value: &HeaderValue) {
    match value {
        HeaderValue::Void => out.push(VOID),
        HeaderValue::Bool(value) => out.extend_from_slice(&[BOOL, (*value).into()]),
        HeaderValue::Int(value) => put_number(out, INT, value.to_be_bytes()),
        HeaderValue::Float(value) => put_number(out, FLOAT, value.to_be_bytes()),
        HeaderValue::Timestamp(seconds) => put_number(out, TIMESTAMP, seconds.to_be_bytes()),
        HeaderValue::Text(text) => put_long(out, TEXT, text.as_bytes()),
        HeaderValue::Bytes(bytes) => put_long(out, BYTES, bytes),
        HeaderValue::List(values) => {
            out.push(LIST);
            put_prefixed(out, |out| {
                for value in values {
                    put_value(out, value);
                }
            });
        }
        HeaderValue::Table(table) => {
            out.push(TABLE);
            put_table(out, table);
        }
    }
}

fn put_number(out: &mut Vec<u8>, kind: u8, bytes: [u8; 8]) {
    out.push(kind);
    out.extend_from_slice(&bytes);
}

fn put_long(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.push(kind);
    put_prefixed(out, |out| out.extend_from_slice(bytes));
}

/// Decodes the content of a table, without its length. `depth` is 1 for a message's headers.
///
/// Of several values with one name, the last remains. Memory is taken for each value as it is
/// read, never for an announced number of them.
pub(super) fn take_table(content: &[u8], depth: usize) -> Result<HeaderTable, Malformed> {
    let mut table = HeaderTable::new();
    let mut cursor = Cursor::new(content);
    while !cursor.is_empty() {
        let name = to_text(cursor.short()?);
        table.insert(name, take_value(&mut cursor, depth)?);
    }
    Ok(table)
}

fn take_list(content: &[u8], depth: usize) -> Result<Vec<HeaderValue>, Malformed> {
    let mut list = Vec::new();
    let mut cursor = Cursor::new(content);
    while !cursor.is_empty() {
        list.push(take_value(&mut cursor, depth)?);
    }
    Ok(list)
}

/// Decodes a value after its type's octet. Text that is not UTF-8 and values that are nested too
/// deeply become bytes.
fn take_value(cursor: &mut Cursor<'_>, depth: usize) -> Result<HeaderValue, Malformed> {
    Ok(match cursor.octet()? {
        VOID => HeaderValue::Void,
        BOOL => HeaderValue::Bool(cursor.octet()? != 0),
        b'b' => HeaderValue::Int(i8::from_be_bytes(cursor.array()?).into()),
        b'B' => HeaderValue::Int(cursor.octet()?.into()),
        // The specification calls `U` signed and `s` a short text; in RabbitMQ both are this.
        b's' | b'U' => HeaderValue::Int(i16::from_be_bytes(cursor.array()?).into()),
        b'u' => HeaderValue::Int(u16::from_be_bytes(cursor.array()?).into()),
        b'I' => HeaderValue::Int(i32::from_be_bytes(cursor.array()?).into()),
        b'i' => HeaderValue::Int(u32::from_be_bytes(cursor.array()?).into()),
        // The specification calls `L` unsigned; RabbitMQ does not.
        INT | b'L' => HeaderValue::Int(i64::from_be_bytes(cursor.array()?)),
        b'f' => HeaderValue::Float(f32::from_be_bytes(cursor.array()?).into()),
        FLOAT => HeaderValue::Float(f64::from_be_bytes(cursor.array()?)),
        b'D' => {
            let scale = cursor.octet()?;
            let value = u32::from_be_bytes(cursor.array()?);
            HeaderValue::Float(f64::from(value) / 10f64.powi(scale.into()))
        }
        TIMESTAMP => HeaderValue::Timestamp(u64::from_be_bytes(cursor.array()?)),
        TEXT => {
            let bytes = cursor.long()?;
            match std::str::from_utf8(bytes) {
                Ok(text) => HeaderValue::Text(text.to_owned()),
                Err(_) => HeaderValue::Bytes(bytes.to_vec()),
            }
        }
        BYTES => HeaderValue::Bytes(cursor.long()?.to_vec()),
        LIST | TABLE if depth >= MAX_NESTING => HeaderValue::Bytes(cursor.long()?.to_vec()),
        LIST => HeaderValue::List(take_list(cursor.long()?, depth + 1)?),
        TABLE => HeaderValue::Table(take_table(cursor.long()?, depth + 1)?),
        _ => return Err(Malformed),
    })
}
