//! The verdict on a server's health: what rounds of checks make of single results.

/// The result of all checks: the name and the error of a failed check, or `None` if the server is
/// healthy.
pub(super) type HealthVerdict = Option<String>;

/// A failed check that makes the server unhealthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) text: String,
    /// True if the check waits for some time before it fails: then one success is enough too.
    pub(super) is_immediate: bool,
}

/// The results of rounds of checks.
///
/// A healthy server becomes unhealthy when one check fails several times in a row; an unhealthy one
/// becomes healthy when all checks pass several times in a row.
#[derive(Debug)]
pub(super) struct HealthRounds {
    /// The number of failures in a row that make the server unhealthy.
    failures: u32,
    /// The number of rounds in a row without a failure that make it healthy again.
    successes: u32,
    /// The number of times that each check has failed in a row.
    failed: Vec<u32>,
    /// The number of rounds in a row without a failure, while unhealthy.
    passed: u32,
    fault: Option<Fault>,
    is_first: bool,
}

impl HealthRounds {
    pub(super) fn new(checks: usize, failures: u32, successes: u32) -> Self {
        Self {
            failures: failures.max(1),
            successes: successes.max(1),
            failed: vec![0; checks],
            passed: 0,
            fault: None,
            is_first: true,
        }
    }

    /// Records that a check has passed.
    pub(super) fn passed(&mut self, check: usize) {
        self.failed[check] = 0;
    }

    /// Records that a check has failed, and returns the number of failures in a row; `None` if they
    /// make the server unhealthy, which ends the round. In the first round one is enough, and for
    /// an unhealthy server too.
    pub(super) fn failed(&mut self, check: usize, is_immediate: bool) -> Option<u32> {
        let failed = self.failed[check].saturating_add(1);
        self.failed[check] = failed;
        let is_enough = failed >= self.failures || self.is_first || self.fault.is_some();
        (!is_enough && !is_immediate).then_some(failed)
    }

    /// Ends a round, with the fault that has ended it or without one.
    pub(super) fn end(&mut self, fault: Option<Fault>) {
        self.is_first = false;
        if fault.is_some() {
            (self.fault, self.passed) = (fault, 0);
            return;
        }
        let Some(fault) = &self.fault else { return };
        self.passed += 1;
        if fault.is_immediate || self.passed >= self.successes {
            (self.fault, self.passed) = (None, 0);
        }
    }

    /// Returns the number of rounds without a failure, and of those that are needed, while the
    /// server is unhealthy.
    pub(super) fn recovering(&self) -> Option<(u32, u32)> {
        (self.passed > 0).then_some((self.passed, self.successes))
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn verdict(&self) -> HealthVerdict {
        self.fault.as_ref().map(|fault| fault.text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a round of one check.
    fn round(rounds: &mut HealthRounds, passes: bool, is_immediate: bool) -> bool {
        let fault = match passes {
            true => {
                rounds.passed(0);
                None
            }
            false => rounds.failed(0, is_immediate).is_none().then(|| Fault {
                text: "disk: full".to_owned(),
                is_immediate,
            }),
        };
        rounds.end(fault);
        rounds.verdict().is_none()
    }

    #[test]
    fn several_failures_in_a_row_are_needed_and_several_successes() {
        let mut rounds = HealthRounds::new(1, 3, 2);
        let results = [
            true, false, false, true, false, false, false, true, false, true, true, false,
        ];
        let healthy = results.map(|passes| round(&mut rounds, passes, false));
        assert_eq!(
            healthy,
            [
                true, true, true, true, true, true, false, false, false, false, true, true
            ]
        );
    }

    #[test]
    fn one_failure_is_enough_at_the_start_and_in_an_immediate_check() {
        let mut rounds = HealthRounds::new(1, 3, 2);
        assert!(!round(&mut rounds, false, false), "at the start");
        assert!(!round(&mut rounds, true, false));
        assert_eq!(rounds.recovering(), Some((1, 2)));
        assert!(round(&mut rounds, true, false));
        assert!(!round(&mut rounds, false, true) && round(&mut rounds, true, true));
    }

    #[test]
    fn an_unhealthy_server_stays_so_while_any_check_fails() {
        let mut rounds = HealthRounds::new(2, 3, 1);
        let fault = |text: &str| Fault {
            text: text.to_owned(),
            is_immediate: false,
        };
        rounds.end(Some(fault("disk")));
        rounds.passed(0);
        assert_eq!(rounds.failed(1, false), None, "once is enough now");
        rounds.end(Some(fault("database")));
        assert_eq!(rounds.verdict().as_deref(), Some("database"));
        rounds.passed(0);
        rounds.passed(1);
        rounds.end(None);
        assert_eq!(rounds.verdict(), None);
        assert_eq!(rounds.failed(1, false), Some(1));
    }

    proptest! {
        /// The model looks at the last results.
        #[test]
        fn the_verdict_changes_only_after_enough_results_in_a_row(
            results in prop::collection::vec(any::<bool>(), 1..60),
            failures in 1..5_u32, successes in 1..5_u32,
        ) {
            let mut rounds = HealthRounds::new(1, failures, successes);
            let mut was_healthy = true;
            for at in 0..results.len() {
                let is_healthy = round(&mut rounds, results[at], false);
                let last_are = |wanted: bool, many: u32| {
                    let last = results[..=at].iter().rev().take(usize::try_from(many).unwrap());
                    let last: Vec<_> = last.collect();
                    last.len() == usize::try_from(many).unwrap()
                        && last.iter().all(|result| **result == wanted)
                };
                let wanted = match was_healthy {
                    true if at == 0 => results[0],
                    true => !last_are(false, failures),
                    false => last_are(true, successes),
                };
                prop_assert_eq!(is_healthy, wanted);
                was_healthy = is_healthy;
            }
        }
    }
}
