//! The processor time that the workers use, and for which they wait.

use std::fs::File;
use std::io::{Read, Seek};
use std::time::{Duration, Instant};

/// Linux's file with a thread's time on a processor, its time waiting for one, and the number of
/// its turns, in nanoseconds. An open file goes on to show the thread that opened it.
const FILE: &str = "/proc/thread-self/schedstat";

/// The longest time between two readings that are compared: what workers did long ago says nothing
/// about the present.
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest time between two readings: Linux brings the numbers of a running thread up to date
/// every few milliseconds only.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

/// The most that counts of the time waiting for a processor, as a multiple of the time on one.
/// Handlers that sleep wait for a processor for a moment after each sleep, on a busy machine for a
/// multiple of the time that they use: that is no reason against more of them.
const MOST_DELAY: f64 = 4.0;

/// The processor clock of one worker's thread.
#[derive(Debug)]
pub(crate) struct WorkerClock(File);

/// A reading of a clock: the time on a processor, and the time waiting for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reading {
    ran: u64,
    waited: u64,
}

impl WorkerClock {
    /// Opens the clock of the calling thread. Returns `None` where there is none: on systems other
    /// than Linux.
    pub(crate) fn of_this_thread() -> Option<Self> {
        let mut clock = Self(File::open(FILE).ok()?);
        clock.read()?;
        Some(clock)
    }

    /// Reads the clock. Returns `None` once the thread has ended.
    fn read(&mut self) -> Option<Reading> {
        let mut text = [0; 128];
        self.0.rewind().ok()?;
        let length = self.0.read(&mut text).ok()?;
        parse(&text[..length])
    }
}

fn parse(text: &[u8]) -> Option<Reading> {
    let mut numbers = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let mut next = || numbers.next()?.parse().ok();
    Some(Reading {
        ran: next()?,
        waited: next()?,
    })
}

/// The processors that a worker would use if there were enough: the mean of all workers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ProcessorDemand(pub(crate) f64);

impl ProcessorDemand {
    /// Computes the demand from the part of its time for which a worker used a processor, and the
    /// part for which it waited for one.
    pub(super) fn of(used: f64, waited: f64) -> Self {
        Self(used + waited.min(MOST_DELAY * used))
    }
}

/// The time of all workers, in nanoseconds. Workers start at different times, and one that has run
/// for half of an interval counts half.
#[derive(Debug, Default)]
struct Sum {
    ran: u64,
    waited: u64,
    all: u128,
}

impl Sum {
    /// Adds the time between two readings of a worker's clock.
    fn add(&mut self, from: Reading, to: Reading, passed: Duration) {
        if passed <= LONGEST_INTERVAL {
            self.ran += to.ran.saturating_sub(from.ran);
            self.waited += to.waited.saturating_sub(from.waited);
            self.all += passed.as_nanos();
        }
    }

    /// Returns the mean demand of a worker; `None` if there was none.
    fn demand(&self) -> Option<ProcessorDemand> {
        let part = |nanos: u64| nanos as f64 / self.all as f64;
        (self.all > 0).then(|| ProcessorDemand::of(part(self.ran), part(self.waited)))
    }
}

/// The meter of all workers' processor clocks. Reading one takes about a microsecond.
#[derive(Debug, Default)]
pub(crate) struct ProcessorMeter {
    clocks: Vec<ReadClock>,
    /// The last reading of all clocks, and its result.
    last: Option<(Instant, Option<ProcessorDemand>)>,
}

/// A clock, and its last reading.
#[derive(Debug)]
struct ReadClock {
    clock: WorkerClock,
    reading: Reading,
    read_at: Instant,
}

impl ProcessorMeter {
    /// Adds the clock of a worker that has started.
    pub(crate) fn add(&mut self, mut clock: WorkerClock, now: Instant) {
        if let Some(reading) = clock.read() {
            self.clocks.push(ReadClock {
                clock,
                reading,
                read_at: now,
            });
        }
    }

    /// Returns the demand since the last reading of all clocks, and reads them; the last result if
    /// that was less than 50 ms ago. `None` if it is too long ago, or there is no clock. Clocks of
    /// threads that have ended are removed.
    pub(crate) fn read(&mut self, now: Instant) -> Option<ProcessorDemand> {
        if let Some((read_at, demand)) = self.last
            && now.saturating_duration_since(read_at) < SHORTEST_INTERVAL
        {
            return demand;
        }
        let mut sum = Sum::default();
        self.clocks.retain_mut(|it| {
            let Some(reading) = it.clock.read() else {
                return false;
            };
            sum.add(
                it.reading,
                reading,
                now.saturating_duration_since(it.read_at),
            );
            (it.reading, it.read_at) = (reading, now);
            true
        });
        let demand = sum.demand();
        self.last = Some((now, demand));
        demand
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use std::thread;

    #[test]
    fn the_numbers_of_linux_are_read() {
        let reading = Reading {
            ran: 82_716,
            waited: 602_996,
        };
        assert_eq!(parse(b"82716 602996 2\n"), Some(reading));
        assert_eq!(parse(b"82716"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn waiting_counts_as_demand_in_proportion_to_running() {
        assert_eq!(ProcessorDemand::of(1.0, 3.0), ProcessorDemand(4.0));
        assert_eq!(ProcessorDemand::of(0.01, 3.0), ProcessorDemand(0.05));
    }

    #[test]
    fn a_worker_that_has_just_started_says_nothing_yet() {
        let ms = |ran: u64, waited: u64| Reading {
            ran: ran * 1_000_000,
            waited: waited * 1_000_000,
        };
        let mut sum = Sum::default();
        assert_eq!(sum.demand(), None);
        sum.add(ms(500, 0), ms(580, 20), Duration::from_millis(100));
        sum.add(ms(700, 7), ms(799, 8), Duration::from_millis(100));
        let demand = sum.demand();
        assert_eq!(demand, Some(ProcessorDemand(1.0)));
        sum.add(ms(0, 0), ms(0, 0), Duration::ZERO);
        assert_eq!(sum.demand(), demand);
        // Too long ago.
        sum.add(ms(0, 0), ms(1, 0), Duration::from_millis(1_001));
        assert_eq!(sum.demand(), demand);
    }

    #[test]
    fn a_thread_that_computes_is_seen_from_another_until_it_ends() {
        let (clocks, opened) = bounded(1);
        let (stop, stopped) = bounded::<()>(0);
        let thread = thread::spawn(move || {
            clocks.send(WorkerClock::of_this_thread()).unwrap();
            while stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Empty) {}
        });
        let mut meter = ProcessorMeter::default();
        assert_eq!(meter.read(Instant::now()), None);
        let clock = opened.recv().unwrap();
        let has_clock = clock.is_some();
        assert_eq!(has_clock, cfg!(target_os = "linux"));
        let added = Instant::now();
        clock.into_iter().for_each(|clock| meter.add(clock, added));
        let last = Instant::now() + Duration::from_secs(60);
        let mut demand = 0.0;
        while has_clock && demand <= 0.0 {
            assert!(Instant::now() < last, "the thread does not run");
            thread::yield_now();
            demand = meter.read(Instant::now()).map_or(0.0, |demand| demand.0);
        }
        drop(stop);
        thread.join().unwrap();
        // The thread may be joined a moment before its files are gone.
        while !meter.clocks.is_empty() {
            assert!(Instant::now() < last, "the clock is kept");
            let _ = meter.read(Instant::now());
        }
    }
}
