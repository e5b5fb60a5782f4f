//! Places of texts in a body.

use std::ops::Range;

/// The place of a text in a body, for a holder of both that cannot borrow. A text that had escapes
/// is stored unescaped.
#[derive(Debug, Clone)]
pub(crate) enum Span {
    In(Range<usize>),
    Own(Box<str>),
}

impl Span {
    /// Locates a text that was read from `body`.
    pub(crate) fn of(text: &str, body: &[u8]) -> Self {
        let range = range_in(body, text);
        match body.get(range.clone()) {
            Some(found) if found == text.as_bytes() => Self::In(range),
            _ => Self::Own(text.into()),
        }
    }

    /// Returns the text.
    pub(crate) fn get<'a>(&'a self, body: &'a [u8]) -> &'a str {
        match self {
            Self::In(range) => {
                let bytes = body.get(range.clone()).unwrap_or_default();
                std::str::from_utf8(bytes).unwrap_or_default()
            }
            Self::Own(text) => text,
        }
    }
}

/// Returns the range of `part` in a body that it borrows from; a range out of bounds if it does
/// not.
pub(crate) fn range_in(body: &[u8], part: &str) -> Range<usize> {
    let start = (part.as_ptr() as usize).wrapping_sub(body.as_ptr() as usize);
    start..start.wrapping_add(part.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locates_borrowed_texts_and_stores_others() {
        let body = b"{\"a\":\"bc\"}";
        let text = std::str::from_utf8(&body[6..8]).unwrap();
        assert!(matches!(Span::of(text, body), Span::In(range) if range == (6..8)));
        for other in ["bc", "", "elsewhere"] {
            let other = String::from(other);
            assert_eq!(Span::of(&other, body).get(body), other);
        }
        assert_eq!(Span::of(text, body).get(b"short"), "", "never panics");
    }
}
