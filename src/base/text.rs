//! Texts cut to a limit.

/// Returns the longest prefix of `text` that has at most `max_bytes` bytes and ends between two
/// characters.
pub(crate) fn prefix(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::prefix;

    #[test]
    fn a_prefix_holds_whole_characters() {
        assert_eq!(prefix("张三", 6), "张三");
        assert_eq!(prefix("张三", 5), "张");
        assert_eq!(prefix("张三", 2), "");
        assert_eq!(prefix("abc", 9), "abc");
    }
}
