//! A simulation of a server behind a queue: what overload does to the calls that are accepted.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::admission::{Admitted, Arrival, LoadControl, LoadSettings, RunTicket};
use super::estimate::QueueDepth;
use super::saturation::Occupancy;
use super::shed::Shed;

const MS: Duration = Duration::from_millis(1);

/// The time from an acknowledgement until the broker's next message is here.
const ROUND_TRIP: Duration = Duration::from_micros(500);

/// The time that a worker takes to refuse a call.
const REFUSAL: Duration = Duration::from_micros(50);

/// The time from the question for the depth to its answer.
const SAMPLE_TIME: Duration = Duration::from_millis(2);

const HANDLING: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
struct Setup {
    workers: usize,
    prefetch: usize,
    /// Calls per second until the load drops, in multiples of what the workers can do.
    load: f64,
    shed: bool,
    /// The calls per second after the drop, likewise.
    load_after: f64,
    /// The share of commands, which have no deadline.
    commands: f64,
    /// The time that each call has.
    timeout: Duration,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Delivery,
    End(usize),
    Sample,
    Depth(u64),
}

#[derive(Clone, Copy, Debug)]
struct Call {
    sent: Duration,
    is_call: bool,
}

#[derive(Debug, Default)]
struct Outcome {
    /// The times of the calls that were answered with a result, in time or late.
    answered: Vec<Duration>,
    in_time: usize,
    refused: usize,
    expired: usize,
    commands: usize,
    /// The moments of refusals and of expiries by the server.
    last_refusal: Duration,
}

struct Simulation {
    setup: Setup,
    start: Instant,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    number: u64,
    random: fastrand::Rng,
    queue: VecDeque<Call>,
    /// Messages on their way, and those that no worker has taken.
    in_flight: VecDeque<Call>,
    waiting: VecDeque<Call>,
    unsettled: usize,
    running: Vec<Option<(Call, Option<RunTicket>)>>,
    control: LoadControl,
    outcome: Outcome,
}

const SURGE: Duration = Duration::from_secs(60);
const AFTER: Duration = Duration::from_secs(20);

impl Simulation {
    fn new(setup: Setup) -> Self {
        let settings = LoadSettings {
            actions: 1,
            shed: setup.shed.then(Shed::new),
            ..LoadSettings::default()
        };
        Self {
            setup,
            start: Instant::now(),
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            number: 0,
            random: fastrand::Rng::with_seed(7),
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            waiting: VecDeque::new(),
            unsettled: 0,
            running: vec![None; setup.workers],
            control: LoadControl::new(&settings),
            outcome: Outcome::default(),
        }
    }

    fn capacity(&self) -> f64 {
        self.setup.workers as f64 / HANDLING.as_secs_f64()
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.number += 1;
        let entry = (self.now + after, self.number, event);
        self.events.push(Reverse(entry));
    }

    fn exponential(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(-mean * (1.0 - self.random.f64()).ln())
    }

    fn occupancy(&self) -> Occupancy {
        Occupancy {
            busy: self.running.iter().flatten().count(),
            workers: self.setup.workers,
            unsettled: self.unsettled - self.in_flight.len(),
            prefetch: self.setup.prefetch,
            waiting: self.waiting.len(),
            batched: 0,
        }
    }

    fn run(mut self) -> Outcome {
        self.at(Duration::ZERO, Event::Arrival);
        self.at(Duration::ZERO, Event::Sample);
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now > SURGE + AFTER {
                break;
            }
            self.now = now;
            match event {
                Event::Arrival => self.arrive(),
                Event::Delivery => {
                    let call = self.in_flight.pop_front().unwrap();
                    self.waiting.push_back(call);
                }
                Event::End(worker) => self.end(worker),
                Event::Sample => self.sample(),
                Event::Depth(depth) => {
                    let depth = QueueDepth {
                        shared: depth,
                        consumers: 1,
                        own: 0,
                    };
                    self.control.sampled(self.start + self.now, &depth);
                }
            }
            self.deliver();
            self.take();
        }
        self.outcome
    }

    fn arrive(&mut self) {
        let is_call = self.random.f64() >= self.setup.commands;
        self.queue.push_back(Call {
            sent: self.now,
            is_call,
        });
        let load = match self.now < SURGE {
            true => self.setup.load,
            false => self.setup.load_after,
        };
        let next = self.exponential(1.0 / (load * self.capacity()));
        self.at(next, Event::Arrival);
    }

    /// Sends messages up to the prefetch. Calls past their time are dropped by the broker.
    fn deliver(&mut self) {
        while self.unsettled < self.setup.prefetch
            && let Some(call) = self.queue.pop_front()
        {
            if !call.is_call || self.now < call.sent + self.setup.timeout {
                self.unsettled += 1;
                self.in_flight.push_back(call);
                self.at(ROUND_TRIP, Event::Delivery);
            }
        }
    }

    fn take(&mut self) {
        while let Some(worker) = self.running.iter().position(Option::is_none)
            && let Some(call) = self.waiting.pop_front()
        {
            self.running[worker] = Some((call, None));
            let left = (call.sent + self.setup.timeout).saturating_sub(self.now);
            let arrival = Arrival {
                action: 0,
                is_call: call.is_call,
                left: call.is_call.then_some(left),
                timeout: call.is_call.then_some(self.setup.timeout),
                opens_message: true,
            };
            let now = self.start + self.now;
            // What servers check without load control.
            let has_passed = call.is_call && left.is_zero();
            let admitted = match has_passed {
                true => Admitted::Expired,
                false => self.control.admit(now, &arrival, &self.occupancy()),
            };
            let takes = match admitted {
                Admitted::Run(ticket) => {
                    self.running[worker] = Some((call, Some(ticket)));
                    // Between half and one and a half times the mean.
                    HANDLING.mul_f64(0.5 + self.random.f64())
                }
                Admitted::Busy { .. } => {
                    self.outcome.refused += 1;
                    self.outcome.last_refusal = self.now;
                    REFUSAL
                }
                Admitted::Expired => {
                    self.outcome.expired += 1;
                    REFUSAL
                }
            };
            self.at(takes, Event::End(worker));
        }
    }

    fn end(&mut self, worker: usize) {
        let occupancy = self.occupancy();
        let (call, ticket) = self.running[worker].take().unwrap();
        self.unsettled -= 1;
        let Some(ticket) = ticket else { return };
        let now = self.start + self.now;
        self.control.finished(now, ticket, true, &occupancy);
        let took = self.now - call.sent;
        let in_surge = self.now < SURGE;
        match call.is_call {
            true if in_surge => {
                self.outcome.answered.push(took);
                self.outcome.in_time += usize::from(took <= self.setup.timeout);
            }
            true => {}
            false => self.outcome.commands += usize::from(in_surge),
        }
    }

    fn sample(&mut self) {
        let now = self.start + self.now;
        let occupancy = self.occupancy();
        self.control.update(now, &occupancy);
        if self.control.next_sample().is_some_and(|at| at <= now) {
            self.control.sampling(now);
            let depth = self.queue.len() as u64;
            self.at(SAMPLE_TIME, Event::Depth(depth));
        }
        self.at(100 * MS, Event::Sample);
    }
}

struct Figures {
    /// The share of the workers' capacity that went to calls answered in time.
    goodput: f64,
    /// The 99th percentile of the times of calls that were run.
    p99: Duration,
    outcome: Outcome,
}

fn simulate(setup: Setup) -> Figures {
    let simulation = Simulation::new(setup);
    let capacity = simulation.capacity();
    let mut outcome = simulation.run();
    outcome.answered.sort_unstable();
    let p99 = outcome.answered.get(outcome.answered.len() * 99 / 100);
    let figures = Figures {
        goodput: outcome.in_time as f64 / (capacity * SURGE.as_secs_f64()),
        p99: p99.copied().unwrap_or_default(),
        outcome,
    };
    println!(
        "{setup:?}: goodput {:.3}, p99 {:?}, refused {}, expired {}, commands {}, last refusal {:?}",
        figures.goodput,
        figures.p99,
        figures.outcome.refused,
        figures.outcome.expired,
        figures.outcome.commands,
        figures.outcome.last_refusal,
    );
    figures
}

const SETUP: Setup = Setup {
    workers: 10,
    prefetch: 20,
    load: 2.0,
    shed: true,
    load_after: 0.5,
    commands: 0.0,
    timeout: Duration::from_secs(1),
};

/// A quarter of the timeout.
const BOUND: Duration = Duration::from_millis(250);

#[test]
fn an_overloaded_server_keeps_its_throughput_and_answers_in_time() {
    for load in [2.0, 10.0] {
        // For comparison.
        let without = simulate(Setup {
            load,
            shed: false,
            ..SETUP
        });
        assert!(without.goodput < 0.9);
        for (workers, prefetch) in [(10, 20), (2, 4)] {
            let figures = simulate(Setup {
                workers,
                prefetch,
                load,
                ..SETUP
            });
            assert!(figures.goodput >= 0.9, "{:.3}", figures.goodput);
            assert!(figures.p99 <= BOUND + 3 * HANDLING, "{:?}", figures.p99);
            let end = figures.outcome.last_refusal;
            assert!(end <= SURGE + Duration::from_secs(5), "{end:?}");
        }
    }
}

#[test]
fn a_server_with_room_refuses_nothing() {
    for load in [0.5, 0.8] {
        let figures = simulate(Setup { load, ..SETUP });
        assert_eq!(figures.outcome.refused + figures.outcome.expired, 0);
    }
}

/// The bound is 5 s, which the commands alone exceed after 25 s.
#[test]
fn calls_get_through_although_commands_alone_fill_the_queue() {
    let figures = simulate(Setup {
        load: 1.2,
        commands: 0.9,
        timeout: Duration::from_secs(60),
        ..SETUP
    });
    assert!(figures.outcome.refused > 0);
    assert!(figures.goodput > 0.08, "{}", figures.goodput);
}
