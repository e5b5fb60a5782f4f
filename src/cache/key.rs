//! The keys of responses, owned and borrowed.

use quick_cache::Equivalent;

/// The request of a stored response.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    action: u64,
    varied: Box<[u8]>,
    payload: Box<str>,
}

/// A request that is looked up: a [`Key`] that is borrowed. Its fields are the same and in the same
/// order, and so is its hash.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct KeyRef<'a> {
    /// The number of the action in its cache.
    pub(super) action: u64,
    /// The headers that the response depends on: see [`varied`].
    pub(super) varied: &'a [u8],
    /// The payload as JSON text.
    pub(super) payload: &'a str,
}

impl KeyRef<'_> {
    pub(super) fn to_key(self) -> Key {
        Key {
            action: self.action,
            varied: self.varied.into(),
            payload: self.payload.into(),
        }
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.action == key.action && *self.varied == *key.varied && *self.payload == *key.payload
    }
}

impl Key {
    pub(super) fn as_ref(&self) -> KeyRef<'_> {
        KeyRef {
            action: self.action,
            varied: &self.varied,
            payload: &self.payload,
        }
    }

    pub(super) fn payload(&self) -> &str {
        &self.payload
    }

    /// Returns the size of its own allocations, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.varied.len() + self.payload.len()
    }
}

/// Encodes the values of headers so that no two lists have the same bytes: a missing header differs
/// from an empty one, and each value carries its length.
pub(super) fn varied(values: impl Iterator<Item = Option<String>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        bytes.push(u8::from(value.is_some()));
        if let Some(value) = value {
            bytes.extend_from_slice(&value.len().to_le_bytes());
            bytes.extend_from_slice(value.as_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use proptest::prelude::*;

    use super::*;

    type Values = Vec<Option<String>>;

    fn bytes(values: &Values) -> Vec<u8> {
        varied(values.iter().cloned())
    }

    fn values() -> impl Strategy<Value = Values> {
        proptest::collection::vec(proptest::option::of("[ab\u{0}\u{1}]{0,3}"), 2)
    }

    proptest! {
        #[test]
        fn different_headers_have_different_bytes(one in values(), other in values()) {
            prop_assert_eq!(bytes(&one) == bytes(&other), one == other);
        }

        #[test]
        fn a_borrowed_key_finds_its_owned_one_and_no_other(
            one in (0..2_u64, "[ab]{0,2}", "[ab]{0,2}"),
            other in (0..2_u64, "[ab]{0,2}", "[ab]{0,2}"),
        ) {
            let key = |of: &(u64, String, String)| KeyRef {
                action: of.0,
                varied: of.1.as_bytes(),
                payload: &of.2,
            }
            .to_key();
            let (owned, sought) = (key(&one), key(&other));
            let hasher = RandomState::new();
            prop_assert_eq!(hasher.hash_one(owned.as_ref()), hasher.hash_one(&owned));
            prop_assert_eq!(sought.as_ref().equivalent(&owned), one == other);
        }
    }
}
