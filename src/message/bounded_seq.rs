//! A JSON array with a bound on its length.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// A JSON array of no more than `N` values. A longer one is refused at the first value beyond
/// them and not read on, as a value takes more memory than its text.
pub(crate) struct BoundedSeq<T, const N: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for BoundedSeq<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = Values::<T, N>(PhantomData);
        deserializer.deserialize_seq(values).map(Self)
    }
}

struct Values<T, const N: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Values<T, N> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of at most {N} values")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Vec<T>, A::Error> {
        let mut read = Vec::new();
        while let Some(value) = values.next_element()? {
            if read.len() == N {
                return Err(A::Error::invalid_length(N + 1, &self));
            }
            read.push(value);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_up_to_the_bound() {
        let read = |json: &str| serde_json::from_str::<BoundedSeq<u8, 3>>(json).map(|it| it.0);
        assert!(read("[]").unwrap().is_empty());
        assert_eq!(read("[1,2,3]").unwrap(), [1, 2, 3]);
        let error = read("[1,2,3,4,nonsense").unwrap_err().to_string();
        assert!(error.contains("at most 3"), "{error}");
        assert!(read("7").is_err());
    }
}
