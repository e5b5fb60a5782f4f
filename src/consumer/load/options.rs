//! The settings of the workers and the load of a server or a subscriber.

use std::time::Duration;

use super::admission::LoadSettings;
use super::gate::LoadGate;
use super::overdue_watch::OverdueWatch;
use super::scaling::Scaling;
use super::shed::Shed;
use super::worker_count::WorkerCount;
use crate::error::{Error, ErrorKind, Result};

/// The settings of the workers and the load. The defaults are documented at the builders' setters.
#[derive(Clone, Debug)]
pub(crate) struct LoadOptions {
    pub(crate) workers: WorkerCount,
    /// The prefetch that the program has set.
    pub(crate) prefetch: Option<u16>,
    /// The number of messages that may wait in this process for a place of their action, beside
    /// the prefetch that the workers need.
    pub(crate) waiting_room: u16,
    /// True if an action has a bound.
    pub(crate) has_bounds: bool,
    pub(crate) scaling: Scaling,
    pub(crate) shed: Option<Shed>,
    pub(crate) handler_timeout: Option<Duration>,
}

/// The longest time after which a handler is overdue, so that no sum overflows.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The least prefetch of a fixed number of workers.
const DEFAULT_PREFETCH: u16 = 10;

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            workers: WorkerCount::from(10),
            prefetch: None,
            waiting_room: 0,
            has_bounds: false,
            scaling: Scaling::new(),
            shed: None,
            handler_timeout: None,
        }
    }
}

impl LoadOptions {
    /// Returns the prefetch of each queue for so many workers: at least one message for each, and
    /// two if calls are shed, since a worker that refuses a call needs the next one at once. With
    /// more workers than the fixed number, some are stuck, and each of those holds a message.
    pub(crate) fn prefetch_for(&self, workers: usize) -> u16 {
        let per_worker = if self.shed.is_some() { 2 } else { 1 };
        let for_workers = u16::try_from(workers.saturating_mul(per_worker)).unwrap_or(u16::MAX);
        let stuck = workers.saturating_sub(self.workers.most());
        let stuck = u16::try_from(stuck).unwrap_or(u16::MAX);
        match (self.prefetch, self.workers.is_fixed()) {
            (Some(prefetch), true) => prefetch.saturating_add(stuck),
            (Some(prefetch), false) => prefetch.max(for_workers),
            (None, true) if self.shed.is_none() => {
                let room = self.waiting_room.saturating_add(stuck);
                DEFAULT_PREFETCH
                    .max(for_workers.saturating_sub(stuck))
                    .saturating_add(room)
            }
            (None, _) => for_workers.saturating_add(self.waiting_room),
        }
    }

    /// Returns the prefetch of the instance's own queue beside that of the service's. The broker
    /// does not count what waits in it, so while the number of workers may change, one message
    /// more shows that some do.
    pub(crate) fn own_prefetch(&self, prefetch: u16) -> u16 {
        prefetch.saturating_add(u16::from(!self.workers.is_fixed()))
    }

    /// Returns the prefetch at the start.
    pub(crate) fn first_prefetch(&self) -> u16 {
        self.prefetch_for(self.workers.least())
    }

    /// Returns the prefetch that the program has set, or that of the highest number of workers.
    pub(crate) fn widest_prefetch(&self) -> u16 {
        let most = self.prefetch_for(self.workers.most());
        self.prefetch.unwrap_or(most)
    }

    /// Creates the gate for so many actions.
    pub(crate) fn gate(&self, actions: usize) -> LoadGate {
        let settings = LoadSettings {
            actions,
            shed: self.shed.clone(),
            has_bounds: self.has_bounds,
        };
        let overdue = self
            .handler_timeout
            .map(|timeout| OverdueWatch::new(timeout.min(LONGEST_TIMEOUT), self.workers.most()));
        let prefetch = usize::from(self.first_prefetch());
        LoadGate::new(&settings, !self.workers.is_fixed(), prefetch, overdue)
    }

    /// Returns true if the load has to be watched by a thread.
    pub(crate) fn needs_thread(&self) -> bool {
        self.shed.is_some() || !self.workers.is_fixed() || self.handler_timeout.is_some()
    }

    /// Checks the settings. `owner` is the service that they belong to.
    pub(crate) fn check(&self, owner: &str) -> Result<()> {
        self.workers.check(owner)?;
        self.scaling.check()?;
        if let Some(shed) = &self.shed {
            shed.check()?;
        }
        let fault = if self.prefetch == Some(0) {
            "the prefetch must be at least 1"
        } else if self.handler_timeout.is_some_and(|it| it.is_zero()) {
            "a handler_timeout of zero makes every handler overdue: set a longer one, or none"
        } else {
            return Ok(());
        };
        let text = format!("{owner}: {fault}");
        Err(Error::new(ErrorKind::InvalidConfig, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefetch_follows_the_workers_unless_their_number_is_fixed() {
        let fixed = LoadOptions::default();
        assert_eq!(fixed.first_prefetch(), 10);
        let many = LoadOptions {
            workers: 32.into(),
            ..LoadOptions::default()
        };
        assert_eq!([32, 33].map(|it| many.prefetch_for(it)), [32, 33]);
        let few = LoadOptions {
            workers: 2.into(),
            ..LoadOptions::default()
        };
        assert_eq!(few.first_prefetch(), 10);
        assert_eq!(
            [2, 3].map(|it| few.prefetch_for(it)),
            [10, 11],
            "one is stuck"
        );
        assert_eq!(few.own_prefetch(10), 10);
        let scaled = LoadOptions {
            workers: (2..=32).into(),
            ..LoadOptions::default()
        };
        assert_eq!([2, 4, 32].map(|it| scaled.prefetch_for(it)), [2, 4, 32]);
        assert_eq!(scaled.own_prefetch(2), 3);
        let shedding = LoadOptions {
            shed: Some(Shed::new()),
            ..scaled.clone()
        };
        assert_eq!([2, 32].map(|it| shedding.prefetch_for(it)), [4, 64]);
        let set = LoadOptions {
            prefetch: Some(5),
            ..scaled
        };
        assert_eq!([2, 8].map(|it| set.prefetch_for(it)), [5, 8]);
    }

    #[test]
    fn settings_without_effect_are_refused() {
        for options in [
            LoadOptions {
                prefetch: Some(0),
                ..LoadOptions::default()
            },
            LoadOptions {
                handler_timeout: Some(Duration::ZERO),
                ..LoadOptions::default()
            },
            LoadOptions {
                workers: 0.into(),
                ..LoadOptions::default()
            },
        ] {
            let error = options.check("math").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{options:?}");
            assert!(error.to_string().starts_with("math: "), "{error}");
        }
        assert!(LoadOptions::default().check("math").is_ok());
    }
}
