//! Explanations for bodies that are not JSON, from their first bytes.

use std::fmt;

/// Explains why serde_json could not read a body, as far as its first bytes show.
pub(super) fn explain<'a>(body: &[u8], error: &'a serde_json::Error) -> Explained<'a> {
    let what = match body {
        [] => Some("it is empty"),
        [0x1f, 0x8b, ..] => Some("it is compressed (gzip), and bodies must be plain JSON"),
        [0xef, 0xbb, 0xbf, ..] => {
            Some("it begins with a byte order mark, which JSON does not allow")
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("it is UTF-16, and bodies must be UTF-8"),
        [b'<', ..] => Some("it begins like HTML or XML"),
        _ => None,
    };
    Explained { what, error }
}

/// The cause that a body shows, and serde_json's error with its position.
pub(super) struct Explained<'a> {
    what: Option<&'static str>,
    error: &'a serde_json::Error,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            Some(what) => write!(f, "{what} ({})", self.error),
            None => self.error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_show_the_cause() {
        for (body, wanted) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip"),
            (b"\xef\xbb\xbf{}", "byte order mark"),
            (b"\xff\xfe{\0}\0", "UTF-16"),
            (b"<html>", "HTML"),
            (b"", "empty"),
            (b"nonsense", "expected"),
        ] {
            let error = serde_json::from_slice::<u8>(body).unwrap_err();
            let text = explain(body, &error).to_string();
            assert!(text.contains(wanted), "{text}");
        }
    }
}
