//! All scenarios with one number of callers, in alternating slices, and their ratios.

use std::time::Duration;

use crate::bounds::{Bound, bounded};
use crate::figure::Figure;
use crate::scenario::Shape;
use crate::target::Target;
use crate::{Options, Scenario, Transport};

/// The largest number of callers of batches: sixteen callers of batches have 1,600 calls in flight,
/// and more add nothing to the measurement.
const MOST_BATCHES: usize = 16;

/// The length of the slice in which system calls are counted, at most: as a mean it is soon exact.
const COUNTING: Duration = Duration::from_millis(500);

/// The figures of one number of callers.
pub struct Comparison {
    transport: Transport,
    callers: usize,
    pub figures: Vec<Figure>,
}

impl Comparison {
    /// Measures all scenarios, slice by slice.
    pub fn measure(
        options: &Options,
        transport: Transport,
        target: &Target,
        callers: usize,
    ) -> Self {
        let slice = Duration::from_secs_f64(options.seconds) / options.pairs;
        let scenarios = options.scenario.iter();
        let scenarios = scenarios.filter(|scenario| scenario.fits(transport, callers));
        let mut figures: Vec<Figure> = scenarios
            .map(|&scenario| {
                Figure::new(Shape {
                    scenario,
                    transport,
                    callers: match scenario {
                        Scenario::Batch => callers.min(MOST_BATCHES),
                        _ => callers,
                    },
                    payload: options.payload,
                    batch: options.batch,
                    services: 1,
                    clients: 1,
                    spins: !options.no_spin,
                })
            })
            .collect();
        for round in 0..options.pairs {
            // Back and forth, so that none is always measured after the same one.
            let forth = 0..figures.len();
            let order: Vec<usize> = match round % 2 {
                0 => forth.collect(),
                _ => forth.rev().collect(),
            };
            for at in order {
                figures[at].measure(target, slice);
            }
        }
        for figure in &mut figures {
            figure.count_system_calls(target, slice.min(COUNTING));
        }
        Self {
            transport,
            callers,
            figures,
        }
    }

    /// Prints the figures on stdout and the ratios on stderr.
    pub fn print(&self) {
        let references = self.references();
        for figure in &self.figures {
            println!("{}", figure.to_json(&references));
            if figure.shape.scenario.is_by_hand() {
                continue;
            }
            for (name, reference) in &references {
                if reference.shape.scenario == figure.shape.scenario {
                    continue;
                }
                eprintln!(
                    "{:?} {} with {} callers: rate {:.2} of {name} ({}), p50 {:.2} of it",
                    self.transport,
                    figure.shape.scenario.name(),
                    figure.shape.callers,
                    figure.rate_to(reference),
                    reference.shape.scenario.name(),
                    figure.p50_to(reference),
                );
            }
        }
        if self.transport == Transport::Amqp {
            self.print_bounds();
        }
    }

    /// Returns the figures that the others are compared with: the fastest hand-written program, and
    /// the limit.
    fn references(&self) -> Vec<(&'static str, &Figure)> {
        let by_hand = self.figures.iter();
        let by_hand = by_hand.filter(|it| it.shape.scenario.is_by_hand());
        // Of one caller the latency counts, of many the rate.
        let best = match self.callers {
            1 => by_hand.min_by(|a, b| a.p50().total_cmp(&b.p50())),
            _ => by_hand.max_by(|a, b| a.rate().total_cmp(&b.rate())),
        };
        let raw = self.figure(Scenario::Raw);
        let all = [best.map(|it| ("best", it)), raw.map(|it| ("raw", it))];
        all.into_iter().flatten().collect()
    }

    fn figure(&self, scenario: Scenario) -> Option<&Figure> {
        self.figures.iter().find(|it| it.shape.scenario == scenario)
    }

    /// Prints the values of a plain call that have bounds.
    fn print_bounds(&self) {
        let Some(call) = self.figure(Scenario::Call) else {
            return;
        };
        let callers = self.callers;
        let print = |what: &str, value: f64, unit: &str, bound| {
            bounded(&format!("{what}, {callers} callers"), value, unit, bound);
        };
        for (name, reference) in self.references() {
            match (callers, name) {
                (1, "best") => {
                    let ratio = call.p50_to(reference);
                    print("p50 of a call", ratio, "of best", Bound::AtMost(0.6));
                }
                (64.., "best") => {
                    let ratio = call.rate_to(reference);
                    print("rate of calls", ratio, "of best", Bound::AtLeast(1.08));
                }
                (64.., _) => {
                    let ratio = call.rate_to(reference);
                    print("rate of calls", ratio, "of raw", Bound::AtLeast(0.85));
                }
                _ => {}
            }
        }
        if callers == 64 {
            let counted = [
                ("system calls", call.system_calls(), 8.0),
                ("context switches", call.switches(), 4.0),
                // Six tenths of the 69 µs that a call took while all went through amiquip's queues.
                ("own processor time, µs", call.own_us(), 41.0),
            ];
            for (what, value, most) in counted {
                if let Some(value) = value {
                    print(what, value, "a call", Bound::AtMost(most));
                }
            }
        }
    }
}
