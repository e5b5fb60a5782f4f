//! AMQP header tables.

use std::collections::{BTreeMap, btree_map};
use std::fmt;

use crate::base::name::check_short_string;
use crate::error::{Error, ErrorKind, Result};

/// The deepest nesting of lists and tables.
const MAX_DEPTH: usize = 100;

/// A value in a [`HeaderTable`], of one of AMQP's types; integers of every width are one type here.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderValue {
    /// No value.
    Void,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number; AMQP's decimals too.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes; also text that was not UTF-8, and values that were nested too deeply.
    Bytes(Vec<u8>),
    /// A time, in Unix seconds.
    Timestamp(u64),
    /// A list of values.
    List(Vec<HeaderValue>),
    /// A nested table.
    Table(HeaderTable),
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for HeaderValue {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

/// A table of AMQP headers: a message's named values, beside its properties.
///
/// coney itself sends headers only with messages that have failed; a service's own metadata goes
/// into the envelope.
///
/// ```
/// use coney::transport::{HeaderTable, HeaderValue};
///
/// let mut headers = HeaderTable::new();
/// headers.insert("x-attempts", 2);
/// assert_eq!(headers.get("x-attempts"), Some(&HeaderValue::Int(2)));
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct HeaderTable(
    /// One pointer, and no allocation for most messages, which have no headers.
    Option<Box<Map>>,
);

type Map = BTreeMap<String, HeaderValue>;

/// An iterator over the headers of a [`HeaderTable`], ordered by name.
#[must_use = "iterators are lazy"]
#[derive(Clone)]
pub struct HeaderIter<'a>(Option<btree_map::Iter<'a, String, HeaderValue>>);

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a str, &'a HeaderValue);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.0.as_mut()?.next()?;
        Some((name.as_str(), value))
    }
}

impl fmt::Debug for HeaderIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeaderIter").finish_non_exhaustive()
    }
}

impl<'a> IntoIterator for &'a HeaderTable {
    type Item = (&'a str, &'a HeaderValue);
    type IntoIter = HeaderIter<'a>;

    fn into_iter(self) -> HeaderIter<'a> {
        self.iter()
    }
}

impl<N: Into<String>, V: Into<HeaderValue>> Extend<(N, V)> for HeaderTable {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, headers: I) {
        for (name, value) in headers {
            self.insert(name, value);
        }
    }
}

impl<N: Into<String>, V: Into<HeaderValue>> FromIterator<(N, V)> for HeaderTable {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(headers: I) -> Self {
        let mut table = Self::new();
        table.extend(headers);
        table
    }
}

impl HeaderTable {
    /// Creates an empty table.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Sets a header; its name may have at most 255 bytes.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<HeaderValue>) {
        let map = self.0.get_or_insert_default();
        map.insert(name.into(), value.into());
    }

    /// Removes a header and returns its value.
    pub fn remove(&mut self, name: &str) -> Option<HeaderValue> {
        let map = self.0.as_mut()?;
        let value = map.remove(name);
        if map.is_empty() {
            self.0 = None;
        }
        value
    }

    /// Returns the header of that name.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.0.as_ref()?.get(name)
    }

    /// Returns the header of that name, if it is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            HeaderValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the header of that name, if it is an integer.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            HeaderValue::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// Returns an iterator over all headers, ordered by name.
    pub fn iter(&self) -> HeaderIter<'_> {
        HeaderIter(self.0.as_ref().map(|map| map.iter()))
    }

    /// Returns true if the table is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Checks for values that would corrupt a frame.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_within(MAX_DEPTH)
    }

    fn check_within(&self, depth: usize) -> Result<()> {
        self.iter().try_for_each(|(name, value)| {
            check_short_string("header name", name)?;
            value.check_within(depth)
        })
    }

    /// Returns the largest number of bytes that the table takes on the wire.
    pub(crate) fn size(&self) -> usize {
        self.iter()
            .map(|(name, value)| 2 + name.len() + value.size())
            .sum()
    }
}

impl HeaderValue {
    fn check_within(&self, depth: usize) -> Result<()> {
        match self {
            Self::List(_) | Self::Table(_) if depth == 0 => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("headers are nested deeper than {MAX_DEPTH} levels"),
            )),
            Self::List(values) => values.iter().try_for_each(|v| v.check_within(depth - 1)),
            Self::Table(table) => table.check_within(depth - 1),
            // RabbitMQ closes the connection because of such a number.
            Self::Float(number) if !number.is_finite() => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("a header value cannot be {number}"),
            )),
            _ => Ok(()),
        }
    }

    /// Returns the size in bytes, with the length prefix if the type has one.
    fn size(&self) -> usize {
        match self {
            Self::Text(text) => 4 + text.len(),
            Self::Bytes(bytes) => 4 + bytes.len(),
            Self::List(values) => 4 + values.iter().map(|value| 1 + value.size()).sum::<usize>(),
            Self::Table(table) => 4 + table.size(),
            _ => 8,
        }
    }
}

impl fmt::Debug for HeaderTable {
    /// Shows the names only: headers may hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_finite_numbers_are_refused() {
        for (number, is_right) in [(1.5, true), (f64::NAN, false), (f64::NEG_INFINITY, false)] {
            let mut inner = HeaderTable::new();
            inner.insert("n", HeaderValue::Float(number));
            let mut table = HeaderTable::new();
            table.insert("inner", HeaderValue::Table(inner));
            assert_eq!(table.check().is_ok(), is_right, "{number}");
        }
    }

    #[test]
    fn a_table_without_headers_is_empty() {
        let mut table = HeaderTable::new();
        table.insert("secret", "x");
        assert_eq!(table.text("secret"), Some("x"));
        assert_eq!(format!("{table:?}"), r#"{"secret"}"#);
        assert!(table.remove("secret").is_some());
        assert!(table.remove("secret").is_none());
        assert_eq!(table, HeaderTable::new());
    }
}
