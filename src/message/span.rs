use std::ops::Range;

/// Where a text stands in a body, for those who keep both and cannot borrow. One that
/// had escapes is kept as it reads.
#[derive(Debug)]
pub(crate) enum Span {
    In(Range<usize>),
    Own(Box<str>),
}

impl Span {
    /// Finds a text that was read from `body`.
    pub(crate) fn of(text: &str, body: &[u8]) -> Self {
        let range = range_in(body, text);
        match body.get(range.clone()) {
            Some(found) if found == text.as_bytes() => Self::In(range),
            _ => Self::Own(text.into()),
        }
    }

    /// The text.
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

/// Where a part of a body stands in it; out of its bounds if it is none.
pub(crate) fn range_in(body: &[u8], part: &str) -> Range<usize> {
    let start = (part.as_ptr() as usize).wrapping_sub(body.as_ptr() as usize);
    start..start.wrapping_add(part.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there_and_keeps_what_is_not() {
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
