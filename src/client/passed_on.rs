//! The headers of a request that its handler's calls pass on.

use serde_json::value::RawValue;

use crate::message::Headers;

/// The headers that a client adds to all of its calls and commands.
pub(crate) struct PassedOn(Vec<(String, Box<RawValue>)>);

impl PassedOn {
    /// Reads those of the named headers that a request has; `None` if there are none.
    pub(crate) fn from_request(names: &[String], request: &Headers<'_>) -> Option<Self> {
        let read = |name: &String| Some((name.clone(), request.get(name)?));
        let headers: Vec<_> = names.iter().filter_map(read).collect();
        (!headers.is_empty()).then_some(Self(headers))
    }

    /// Returns those that are strings.
    pub(super) fn texts(&self) -> impl Iterator<Item = (String, String)> {
        let text = |value: &RawValue| serde_json::from_str(value.get()).ok();
        self.iter()
            .filter_map(move |(name, value)| Some((name.to_owned(), text(value)?)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}
