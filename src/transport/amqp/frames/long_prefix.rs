//! The length prefix of four bytes, of frames, texts and tables.

/// The bytes of the prefix.
pub(super) const LONG_PREFIX: usize = 4;

/// Appends what `content` appends, with its length before it.
///
/// Content over the largest length, 4 GiB, is left out: a wrong length would corrupt everything
/// after it. No checked publication is near that size.
pub(super) fn put_prefixed(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; LONG_PREFIX]);
    let start = out.len();
    content(out);
    match u32::try_from(out.len() - start) {
        Ok(length) => out[at..start].copy_from_slice(&length.to_be_bytes()),
        Err(_) => {
            debug_assert!(false, "over 4 GiB of content");
            out.truncate(start);
        }
    }
}
