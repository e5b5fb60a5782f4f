//! A cursor over received bytes, which checks every length.

/// The deepest nesting of headers that is decoded: deeper than any program nests on purpose, and
/// far below the limit of a stack.
pub(in crate::transport::amqp) const MAX_NESTING: usize = 100;

/// The error of a payload that is not well-formed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::transport::amqp) struct Malformed;

/// The bytes that have not been read yet.
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn octet(&mut self) -> Result<u8, Malformed> {
        let [octet] = self.array()?;
        Ok(octet)
    }

    /// Takes a field with a length of one byte before it.
    pub(super) fn short(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.octet()?;
        self.take(length.into())
    }

    /// Takes a field with a length of four bytes before it.
    pub(super) fn long(&mut self) -> Result<&'a [u8], Malformed> {
        let length = u32::from_be_bytes(self.array()?);
        self.take(usize::try_from(length).map_err(|_| Malformed)?)
    }
}
