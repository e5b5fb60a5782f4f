//! The counters of the shop, the line that is printed for a tick, and the table at the end.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use coney::Error;
use coney::client::{Answer, Origin};
use coney::resilience::BreakerHandle;

use crate::schedule::Condition;
use crate::shop::THREADS;

/// The counts of a tick, or of a run.
#[derive(Default)]
pub struct Counts {
    pub customers: u64,
    pub turned_away: u64,
    pub calls: u64,
    /// The requests that were sent to the service.
    pub messages: u64,
    served: u64,
    stale: u64,
    fallback: u64,
    failed: u64,
    /// The calls that the service did not answer, by the policy that refused them or the kind of
    /// their error.
    causes: BTreeMap<&'static str, u64>,
    /// The longest time from a customer's arrival to the page, or to the error.
    longest_wait: Duration,
    /// The time for which all threads were in calls.
    all_stuck: Duration,
}

/// The counts since they were last taken, and the threads that are in calls.
#[derive(Default)]
pub struct Counter {
    counts: Mutex<Counts>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    in_calls: usize,
    /// The time since which all are.
    all_since: Option<Instant>,
}

impl Counter {
    /// Adds to the counts.
    pub fn add(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.counts.lock().unwrap());
    }

    /// Takes the counts, and begins anew.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut self.counts.lock().unwrap())
    }

    /// Counts the call of one thread, from its begin to its end.
    pub fn during_call<R>(&self, call: impl FnOnce() -> R) -> R {
        self.add(|counts| counts.calls += 1);
        let mut threads = self.threads.lock().unwrap();
        threads.in_calls += 1;
        if threads.in_calls == THREADS {
            threads.all_since = Some(Instant::now());
        }
        drop(threads);
        let result = call();
        let mut threads = self.threads.lock().unwrap();
        threads.in_calls -= 1;
        if let Some(since) = threads.all_since.take() {
            self.add(|counts| counts.all_stuck += since.elapsed());
        }
        result
    }
}

impl Counts {
    /// Adds a customer who has the page, or an error in its place.
    pub fn page<T>(&mut self, page: coney::Result<Answer<T>>, waited: Duration) {
        self.longest_wait = self.longest_wait.max(waited);
        let count = match page.as_ref().map(Answer::origin) {
            Ok(Origin::Fallback) => &mut self.fallback,
            Ok(Origin::Stale) => &mut self.stale,
            Ok(_) => &mut self.served,
            Err(_) => &mut self.failed,
        };
        *count += 1;
        if let Err(error) = page {
            self.unavailable(&error);
        }
    }

    /// Adds a call that the service did not answer.
    pub fn unavailable(&mut self, error: &Error) {
        let refused = error.refused_by().map(|by| by.as_str());
        let cause = refused.unwrap_or(error.kind().as_str());
        *self.causes.entry(cause).or_default() += 1;
    }

    /// Adds the counts of a tick to those of the run.
    pub fn merge(&mut self, tick: Self) {
        self.customers += tick.customers;
        self.turned_away += tick.turned_away;
        self.calls += tick.calls;
        self.messages += tick.messages;
        self.served += tick.served;
        self.stale += tick.stale;
        self.fallback += tick.fallback;
        self.failed += tick.failed;
        for (cause, number) in tick.causes {
            *self.causes.entry(cause).or_default() += number;
        }
        self.longest_wait = self.longest_wait.max(tick.longest_wait);
        self.all_stuck += tick.all_stuck;
    }
}

impl Counts {
    /// Returns the heading of the lines.
    pub fn heading() -> String {
        format!(
            "{:>2}  {:10}  {:>9}  {:>6}  {:>5}  {:>8}  {:>6}  {:>11}  {:>12}  {:>13}  {:9}  {}",
            "",
            "stock is",
            "customers",
            "served",
            "stale",
            "fallback",
            "failed",
            "turned away",
            "longest wait",
            "messages/call",
            "breaker",
            "not answered because"
        )
    }

    /// Returns the line of a tick.
    pub fn line(
        &self,
        number: u32,
        condition: Condition,
        breaker: Option<BreakerHandle>,
    ) -> String {
        let calls = self.calls.max(1) as f64;
        let causes = self.causes.iter();
        let causes = causes.map(|(cause, number)| format!("{cause} {number}"));
        let causes: Vec<String> = causes.collect();
        format!(
            "{number:>2}  {condition:10}  {:>9}  {:>6}  {:>5}  {:>8}  {:>6}  {:>11}  {:>9} ms  {:>13.2}  {:9}  {}",
            self.customers,
            self.served,
            self.stale,
            self.fallback,
            self.failed,
            self.turned_away,
            self.longest_wait.as_millis(),
            self.messages as f64 / calls,
            breaker.map_or("-", |breaker| breaker.state().as_str()),
            causes.join(", ")
        )
    }

    /// Returns the table of the two runs, in Markdown.
    pub fn table(without: &Self, with: &Self) -> String {
        let mut table = String::from(
            "\
|                    | customers | served | stale | fallback | failed | turned away | longest wait | all threads stuck | messages in vain |
| ------------------ | --------: | -----: | ----: | -------: | -----: | ----------: | -----------: | ----------------: | ---------------: |",
        );
        for (name, counts) in [("without resilience", without), ("with resilience", with)] {
            table += &format!("\n| {name:18} |{}", counts.row());
        }
        table
    }

    fn row(&self) -> String {
        format!(
            " {:>9} | {:>6} | {:>5} | {:>8} | {:>6} | {:>11} | {:>9} ms | {:>15.1} s | {:>16} |",
            self.customers,
            self.served,
            self.stale,
            self.fallback,
            self.failed,
            self.turned_away,
            self.longest_wait.as_millis(),
            self.all_stuck.as_secs_f64(),
            self.messages.saturating_sub(self.served)
        )
    }
}
