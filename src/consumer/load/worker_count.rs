//! The number of workers, fixed or within a range.

use std::ops::RangeInclusive;

use crate::error::{Error, ErrorKind, Result};

/// The number of workers of a server or a subscriber: fixed, as `10`, or within a range, as
/// `2..=32`.
///
/// With a range the number follows the time for which requests wait: see
/// [`Scaling`](crate::server::Scaling).
///
/// ```
/// use coney::server::WorkerCount;
///
/// let fixed = WorkerCount::from(10);
/// assert_eq!((fixed.least(), fixed.most()), (10, 10));
/// let range = WorkerCount::from(2..=32);
/// assert_eq!((range.least(), range.most()), (2, 32));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerCount {
    least: usize,
    most: usize,
}

impl WorkerCount {
    /// Returns a range that a constant can hold.
    #[cfg(test)]
    pub(crate) const fn range(least: usize, most: usize) -> Self {
        Self { least, most }
    }

    /// Returns the lowest number of workers.
    pub fn least(&self) -> usize {
        self.least
    }

    /// Returns the highest number of workers.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Returns true if the number never changes.
    pub(crate) fn is_fixed(&self) -> bool {
        self.least == self.most
    }

    /// Checks the numbers. `owner` is the service that they belong to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] if there may be no worker, or the range is empty.
    pub(crate) fn check(&self, owner: &str) -> Result<()> {
        let Self { least, most } = self;
        if *least >= 1 && least <= most {
            return Ok(());
        }
        let text = match least == most {
            true => format!("{owner}: workers must be at least 1"),
            false => format!(
                "{owner}: the workers {least}..={most} are no range of at least 1, such as 2..=32"
            ),
        };
        Err(Error::new(ErrorKind::InvalidConfig, text))
    }
}

impl From<usize> for WorkerCount {
    fn from(workers: usize) -> Self {
        Self {
            least: workers,
            most: workers,
        }
    }
}

impl From<RangeInclusive<usize>> for WorkerCount {
    fn from(workers: RangeInclusive<usize>) -> Self {
        Self {
            least: *workers.start(),
            most: *workers.end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_without_a_worker_are_refused() {
        for (count, wrong) in [
            (WorkerCount::from(0), Some("at least 1")),
            (WorkerCount::from(1), None),
            (WorkerCount::from(2..=32), None),
            (WorkerCount::from(3..=3), None),
            (WorkerCount::from(0..=4), Some("0..=4")),
            #[allow(clippy::reversed_empty_ranges)]
            (WorkerCount::from(5..=4), Some("5..=4")),
        ] {
            let checked = count.check("math").map_err(|error| error.to_string());
            match (checked, wrong) {
                (Ok(()), None) => {}
                (Err(error), Some(text)) => {
                    assert!(error.contains(text) && error.contains("math"), "{error}");
                }
                other => panic!("{count:?}: {other:?}"),
            }
        }
        assert!(WorkerCount::from(3..=3).is_fixed() && !WorkerCount::from(2..=3).is_fixed());
    }
}
