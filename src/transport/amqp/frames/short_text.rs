//! Short texts: at most 255 bytes, with a length of one byte before them.

use std::borrow::Cow;

/// Appends a short text. A longer one is cut off: a wrong length would corrupt the frame.
/// `Publication::check` refuses them before.
pub(super) fn put_short(out: &mut Vec<u8>, text: &str) {
    debug_assert!(
        text.len() <= u8::MAX.into(),
        "a publication was not checked"
    );
    let text = fitting(text);
    // A text that fits has at most 255 bytes.
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(text.as_bytes());
}

/// Returns the longest start of `text` that fits a short text, which ends at a character.
fn fitting(text: &str) -> &str {
    let mut end = text.len().min(u8::MAX.into());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Decodes a text. Each byte that is not UTF-8 becomes a question mark, so no length changes.
pub(super) fn to_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let mut bytes = bytes.to_vec();
            replace_invalid(&mut bytes);
            String::from_utf8(bytes).unwrap_or_default() // it is UTF-8 now
        }
    }
}

/// Decodes a text as [`to_text`] does, without an allocation if it is one of the `known`.
pub(super) fn to_known_text(bytes: &[u8], known: &[&'static str]) -> Cow<'static, str> {
    match known.iter().find(|text| text.as_bytes() == bytes) {
        Some(text) => Cow::Borrowed(text),
        None => Cow::Owned(to_text(bytes)),
    }
}

/// Replaces bytes that are not UTF-8 with question marks.
pub(in crate::transport::amqp) fn replace_invalid(bytes: &mut [u8]) {
    let mut from = 0;
    while let Err(error) = std::str::from_utf8(&bytes[from..]) {
        let bad = from + error.valid_up_to();
        let end = error.error_len().map_or(bytes.len(), |length| bad + length);
        bytes[bad..end].fill(b'?');
        from = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_does_not_fit_is_cut_off_at_a_character() {
        for (text, fits) in [
            ("a".repeat(255), 255),
            ("a".repeat(256), 255),
            ("é".repeat(200), 254),
            (format!("{}张", "a".repeat(254)), 254),
        ] {
            assert_eq!(fitting(&text), &text[..fits]);
        }
    }

    #[test]
    fn invalid_bytes_become_question_marks() {
        assert_eq!(to_text("张三".as_bytes()), "张三");
        assert_eq!(to_text(b"i\xe5\xbc"), "i??");
        assert_eq!(to_text(b"key\xc3("), "key?(");
    }

    #[test]
    fn a_known_text_is_borrowed() {
        assert!(matches!(
            to_known_text(b"x", &["", "x"]),
            Cow::Borrowed("x")
        ));
        assert!(matches!(to_known_text(b"", &["", "x"]), Cow::Borrowed("")));
        assert_eq!(to_known_text(b"\xff", &["", "x"]), "?");
    }
}
