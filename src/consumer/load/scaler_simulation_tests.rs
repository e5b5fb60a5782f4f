//! A simulation of a server whose number of workers follows the load, in steps of a millisecond.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::admission::{Admitted, Arrival, LoadControl, LoadSettings, RunTicket};
use super::estimate::QueueDepth;
use super::processor::ProcessorDemand;
use super::saturation::Occupancy;
use super::scaler::{Observation, Scaler};
use super::scaling::Scaling;
use super::worker_count::WorkerCount;

const MS: Duration = Duration::from_millis(1);

/// The work of each request.
const HANDLING_MS: f64 = 50.0;

const PROCESSORS: usize = 2;

/// The time before the load goes up.
const QUIET_MS: u32 = 2_000;

#[derive(Clone, Copy, Debug)]
struct Setup {
    /// The calls per second, before and after the step.
    rates: [f64; 2],
    /// True if handlers compute, false if they sleep.
    compute: bool,
    /// True if the processor time can be measured.
    is_measured: bool,
    workers: WorkerCount,
}

struct Running {
    sent: u32,
    left_ms: f64,
    ticket: RunTicket,
}

#[derive(Debug, Default)]
struct Outcome {
    /// The number of workers in each millisecond.
    workers: Vec<usize>,
    /// The moment of the arrival and the time of each answered call, in milliseconds.
    answered: Vec<(u32, u32)>,
}

impl Outcome {
    /// Returns the time after the step at which there were so many workers.
    fn reached(&self, workers: usize) -> Option<u32> {
        let at = self.workers.iter().position(|now| *now >= workers)?;
        u32::try_from(at).ok()?.checked_sub(QUIET_MS)
    }

    fn most(&self) -> usize {
        self.workers.iter().copied().max().unwrap_or_default()
    }

    /// Returns the 99th percentile of the calls that were sent within these milliseconds.
    fn p99(&self, sent: std::ops::Range<u32>) -> u32 {
        let of_then = self.answered.iter().filter(|(at, _)| sent.contains(at));
        let mut times: Vec<u32> = of_then.map(|(_, took)| *took).collect();
        times.sort_unstable();
        times[times.len() * 99 / 100]
    }
}

fn simulate(setup: Setup, end_ms: u32) -> Outcome {
    let start = Instant::now();
    let mut random = fastrand::Rng::with_seed(11);
    let mut control = LoadControl::new(&LoadSettings {
        actions: 1,
        ..LoadSettings::default()
    });
    let mut scaler = Scaler::new(&Scaling::new(), setup.workers, PROCESSORS);
    let mut workers = setup.workers.least();
    let (mut queue, mut waiting) = (VecDeque::new(), VecDeque::new());
    let mut running: Vec<Running> = Vec::new();
    let (mut used, mut waited) = (0.0, 0.0);
    let mut outcome = Outcome::default();
    let mut next_arrival = 0.0;
    for at in 0..end_ms {
        let now = start + at * MS;
        let occupancy = |running: usize, waiting: usize| Occupancy {
            busy: running,
            workers,
            unsettled: running + waiting,
            prefetch: 2 * workers,
            waiting,
            batched: 0,
        };
        while next_arrival <= f64::from(at) {
            queue.push_back(at);
            let rate = setup.rates[usize::from(at >= QUIET_MS)];
            next_arrival += -1_000.0 / rate * (1.0 - random.f64()).ln();
        }
        // The handlers that end.
        let share = match setup.compute {
            true => (PROCESSORS as f64 / running.len() as f64).min(1.0),
            false => 1.0,
        };
        if setup.compute {
            let using = running.len().min(PROCESSORS);
            used += using as f64;
            waited += (running.len() - using) as f64;
        }
        let mut n = 0;
        while n < running.len() {
            running[n].left_ms -= share;
            if running[n].left_ms > 0.0 {
                n += 1;
                continue;
            }
            let seen = occupancy(running.len(), waiting.len());
            let done = running.swap_remove(n);
            control.finished(now, done.ticket, true, &seen);
            outcome.answered.push((done.sent, at - done.sent));
        }
        // What they make room for.
        while waiting.len() + running.len() < 2 * workers
            && let Some(call) = queue.pop_front()
        {
            waiting.push_back(call);
        }
        while running.len() < workers
            && let Some(sent) = waiting.pop_front()
        {
            let arrival = Arrival {
                action: 0,
                is_call: true,
                left: None,
                timeout: None,
                opens_message: true,
            };
            let seen = occupancy(running.len() + 1, waiting.len());
            let Admitted::Run(ticket) = control.admit(now, &arrival, &seen) else {
                panic!("refused without shedding");
            };
            running.push(Running {
                sent,
                left_ms: HANDLING_MS,
                ticket,
            });
        }
        if at % 100 == 0 {
            let seen = occupancy(running.len(), waiting.len());
            control.update(now, &seen);
            if control.next_sample().is_some_and(|next| next <= now) {
                control.sampling(now);
                let depth = QueueDepth {
                    shared: queue.len() as u64,
                    consumers: 1,
                    own: 0,
                };
                control.sampled(now, &depth);
            }
            let time = 100.0 * workers as f64;
            let demand = ProcessorDemand::of(used / time, waited / time);
            (used, waited) = (0.0, 0.0);
            workers = scaler.observe(
                now,
                &Observation {
                    is_saturated: control.saturated_since(now).is_some(),
                    wait: control.wait(now, &seen),
                    workers,
                    nested: 0,
                    demand: setup.is_measured.then_some(demand),
                },
            );
        }
        outcome.workers.push(workers);
    }
    outcome
}

const SLEEPING: Setup = Setup {
    rates: [10.0, 300.0],
    compute: false,
    is_measured: true,
    workers: WorkerCount::range(2, 32),
};

#[test]
fn a_step_of_the_load_is_answered_within_a_second() {
    let outcome = simulate(SLEEPING, 12_000);
    println!(
        "10 to 300/s: {:?} ms to 16 workers, most {}, p99 before {} ms, in the first second {} ms, \
         then {} ms",
        outcome.reached(16),
        outcome.most(),
        outcome.p99(0..QUIET_MS),
        outcome.p99(QUIET_MS..QUIET_MS + 1_000),
        outcome.p99(QUIET_MS + 1_000..10_000),
    );
    assert!(outcome.p99(QUIET_MS + 1_000..10_000) <= 150);
    assert_eq!(outcome.workers[usize::try_from(QUIET_MS).unwrap() - 1], 2);
}

#[test]
fn handlers_that_sleep_get_all_workers_within_half_a_second_of_saturation() {
    let rates = [10.0, 2_000.0];
    let outcome = simulate(Setup { rates, ..SLEEPING }, 4_000);
    let reached = outcome.reached(32);
    println!("10 to 2,000/s: {reached:?} ms to 32 workers");
    // A tenth of a second to be saturated, and one until the next look.
    assert!(reached.is_some_and(|after| after <= 600), "{reached:?}");
}

#[test]
fn handlers_that_compute_get_no_more_workers_than_help_them() {
    for rates in [[10.0, 100.0], [10.0, 1_000.0]] {
        let setup = Setup {
            rates,
            compute: true,
            ..SLEEPING
        };
        let outcome = simulate(setup, 20_000);
        println!("computing, {rates:?}/s: at most {} workers", outcome.most());
        assert!(outcome.most() <= 4, "{}", outcome.most());
        // Where nothing is measured, nothing holds the number back.
        let blind = simulate(
            Setup {
                is_measured: false,
                ..setup
            },
            20_000,
        );
        assert_eq!(blind.most(), 32);
    }
}
