//! The headers of the envelope.

use std::borrow::Cow;
use std::fmt;
use std::mem;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::json::{Json, is_empty_array};

/// The `headers` of an envelope: metadata beside the payload, a JSON object.
///
/// Kept as text and parsed only on access, because most messages are handled without access to
/// their headers.
///
/// ```
/// use coney::message::Headers;
///
/// let mut headers = Headers::new();
/// headers.insert("trace-id", &"abc");
/// assert_eq!(headers.get::<String>("trace-id"), Some("abc".to_owned()));
/// assert_eq!(headers.get::<u64>("trace-id"), None);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Headers<'a>(Cow<'a, str>);

/// The usual size of the headers that are added to a message, a deadline and a timeout, in bytes.
const USUAL_SIZE: usize = 60;

impl<'a> Headers<'a> {
    /// Wraps a text that was read as headers.
    pub(crate) fn of(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl Headers<'_> {
    /// Creates empty headers: `{}`.
    pub const fn new() -> Self {
        Self(Cow::Borrowed("{}"))
    }

    /// Adds a header. An existing header of that name is not replaced; the new one comes after it,
    /// and every JSON reader takes the last.
    ///
    /// Adds nothing if serde_json cannot encode the value (a map whose keys are not strings).
    pub fn insert<V: Serialize + ?Sized>(&mut self, name: &str, value: &V) {
        let mut out = match mem::take(self).0 {
            Cow::Owned(text) => text.into_bytes(),
            Cow::Borrowed(text) => {
                let mut out = Vec::with_capacity(text.len() + USUAL_SIZE);
                out.extend_from_slice(text.as_bytes());
                out
            }
        };
        out.truncate(out.trim_ascii_end().len());
        if out.last() == Some(&b'}') {
            out.pop();
        }
        out.truncate(out.trim_ascii_end().len());
        let before = out.len();
        if before > 1 {
            out.push(b',');
        }
        let is_encoded = serde_json::to_writer(&mut out, name).is_ok() && {
            out.push(b':');
            serde_json::to_writer(&mut out, value).is_ok()
        };
        if !is_encoded {
            out.truncate(before);
        }
        out.push(b'}');
        if let Ok(text) = String::from_utf8(out) {
            self.0 = Cow::Owned(text);
        }
    }

    /// Returns the header of that name, if it exists and decodes as a `T`.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let [value] = self.get_each([name]);
        value
    }

    /// Returns the headers of these names, each if it exists and decodes as a `T`.
    pub(crate) fn get_each<T: DeserializeOwned, const N: usize>(
        &self,
        names: [&str; N],
    ) -> [Option<T>; N] {
        let mut reader = serde_json::Deserializer::from_str(&self.0);
        let values = reader.deserialize_map(Find(names)).unwrap_or([None; N]);
        values.map(|value| value?.decode().ok())
    }

    /// Returns the JSON object as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Converts into headers that do not borrow from the message.
    pub fn into_owned(self) -> Headers<'static> {
        Headers(Cow::Owned(self.0.into_owned()))
    }
}

impl Default for Headers<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Headers<'_> {
    /// Shows the size only: headers may hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Headers({} bytes)", self.0.len())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Headers<'a> {
    /// Accepts an object, and as empty headers `null` and `[]`, which PHP sends for an empty
    /// object.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        if text.starts_with('{') {
            Ok(Self(Cow::Borrowed(text)))
        } else if text == "null" || is_empty_array(text) {
            Ok(Self::new())
        } else {
            Err(serde::de::Error::custom("expected an object"))
        }
    }
}

/// A visitor that finds the last entry of each name and stores none of the others.
struct Find<'n, const N: usize>([&'n str; N]);

impl<'de, const N: usize> Visitor<'de> for Find<'_, N> {
    type Value = [Option<Json<'de>>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(name) = map.next_key::<Name<'de>>()? {
            match self.0.iter().position(|wanted| *wanted == name.0) {
                Some(at) => found[at] = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// A key, borrowed from the text unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Headers<'_>, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn decodes_objects_and_phps_empty_array() {
        assert_eq!(parse("[]").unwrap().as_str(), "{}");
        assert_eq!(parse("null").unwrap().as_str(), "{}");
        let headers = parse(r#"{"async_callback":true,"a":{"b":[1]}}"#).unwrap();
        assert_eq!(headers.get::<bool>("async_callback"), Some(true));
        assert_eq!(headers.get::<bool>("a"), None);
        assert_eq!(headers.get::<bool>("missing"), None);
        assert!(parse("[1]").is_err());
        assert!(parse("3").is_err());
    }

    #[test]
    fn several_headers_are_found_at_once() {
        let headers = parse(r#"{"b":2,"x":{"a":9},"a":"1","b":3}"#).unwrap();
        assert_eq!(headers.get_each(["a", "b", "c"]), [None, Some(3), None]);
        assert_eq!(Headers::of("{").get_each::<u8, 1>(["a"]), [None]);
    }

    #[test]
    fn a_value_that_cannot_be_encoded_is_left_out() {
        let mut headers = parse(r#"{"x":1}"#).unwrap();
        headers.insert("y", &std::collections::HashMap::from([((1, 2), 3)]));
        assert_eq!(headers.as_str(), r#"{"x":1}"#);
        headers.insert("z", &2);
        assert_eq!(headers.as_str(), r#"{"x":1,"z":2}"#);
    }

    #[test]
    fn inserting_leaves_one_object() {
        for start in ["{}", "{ }", r#"{"x":1}"#, r#"{"x":1} "#] {
            let mut headers = parse(start).unwrap();
            headers.insert("quote\"d", &vec![1, 2]);
            headers.insert("n", &2);
            headers.insert("n", &3);
            assert_eq!(headers.get::<Vec<u8>>("quote\"d"), Some(vec![1, 2]));
            assert_eq!(headers.get::<u8>("n"), Some(3), "{}", headers.as_str());
        }
    }
}
