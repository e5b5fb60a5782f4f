//! Undecoded JSON values.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A JSON value as text, as it stands in the message: checked to be JSON, not yet decoded. Decoding
/// goes straight from the text to the requested type.
///
/// ```
/// use coney::message::Reply;
///
/// let reply = Reply::decode(br#"{"success":true,"data":{"n":1},"message_id":"m"}"#)?;
/// assert_eq!(reply.data.as_str(), r#"{"n":1}"#);
/// # Ok::<(), coney::Error>(())
/// ```
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json<'a>(#[serde(borrow)] &'a RawValue);

impl<'a> Json<'a> {
    /// JSON's `null`.
    pub const NULL: Json<'static> = Json(RawValue::NULL);

    /// Encodes a text as a JSON string.
    pub(crate) fn quote(text: &str) -> String {
        // serde_json encodes every string.
        serde_json::to_string(text).unwrap_or_default()
    }

    /// Returns the text, unchanged.
    pub fn as_str(&self) -> &'a str {
        self.0.get()
    }

    /// Decodes the value into `T`.
    ///
    /// PHP encodes an empty object as `[]`. If `T` does not accept an empty array, that text is
    /// read as `{}`.
    ///
    /// # Errors
    ///
    /// Fails with the text of serde_json's error if the value does not have the shape of `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, String> {
        decode(self.as_str())
    }
}

/// Decodes a JSON text, as [`Json::decode`] does.
pub(crate) fn decode<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).or_else(|error| {
        if is_empty_array(text)
            && let Ok(value) = serde_json::from_str("{}")
        {
            return Ok(value);
        }
        Err(error.to_string())
    })
}

impl fmt::Debug for Json<'_> {
    /// Shows the size only: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.as_str().len())
    }
}

pub(super) fn is_empty_array(text: &str) -> bool {
    text.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inside| inside.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn json(text: &str) -> Json<'_> {
        serde_json::from_str(text).unwrap()
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    struct Filter {
        #[serde(default)]
        name: Option<String>,
    }

    #[test]
    fn phps_empty_array_is_an_empty_object_where_an_object_is_wanted() {
        assert_eq!(json("[]").decode::<Filter>(), Ok(Filter::default()));
        assert_eq!(
            json("[ ]").decode::<HashMap<String, u8>>(),
            Ok(HashMap::new())
        );
        assert_eq!(json("[]").decode::<Vec<u8>>(), Ok(vec![]));
        assert!(json("[]").decode::<u8>().unwrap_err().contains("sequence"));
    }

    #[test]
    fn escapes_and_surrogate_pairs_are_read() {
        let text = r#""a\/b \u5f20\u4e09 \ud83d\ude00""#;
        assert_eq!(json(text).decode::<String>().unwrap(), "a/b 张三 😀");
        assert!(
            serde_json::from_str::<String>(r#""\ud83d""#).is_err(),
            "a lone surrogate is not text"
        );
    }
}
