//! The ledger: producers, consumers and callers through a random schedule of
//! faults, and an account of every message at the end.
//!
//! A short schedule runs after the other tests; `SOAK_SECONDS=3600 tests/run soak`
//! runs a long one. `LEDGER_SEED` repeats a schedule.

mod book;
mod faults;
mod load;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::book::Book;
use self::faults::Faults;
use self::load::Load;
use crate::support::timing::{GRACE, stall_since};

#[test]
fn nothing_confirmed_is_lost_and_no_call_is_late() {
    let soak = std::env::var("SOAK_SECONDS").ok();
    let seconds = soak.as_deref().unwrap_or("45").parse();
    let length = Duration::from_secs(seconds.expect("SOAK_SECONDS is a number"));
    let is_soak = soak.is_some();
    let seed = match std::env::var("LEDGER_SEED") {
        Ok(seed) => seed.parse().expect("LEDGER_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    // RUST_LOG=coney=warn shows what happens.
    let quiet = env_logger::Env::default().default_filter_or("off");
    let _ = env_logger::Builder::from_env(quiet).try_init();
    println!("LEDGER_SEED={seed}");
    let start = Instant::now();
    stall_since(start);
    let book = Arc::new(Book::new(length));
    let mut faults = Faults::start(seed);
    let mut load = Load::start(&book, &faults);
    let mut progress = Progress {
        start,
        length,
        is_soak,
        half: None,
    };
    while start.elapsed() < length {
        let fault = faults.next();
        progress.report(&book, &fault);
    }
    let end = resident_mib();
    faults.heal();
    load.stop(&book);
    let account = book.account();
    println!("{account}");
    if let Some(half) = progress.half {
        println!("resident memory: {half} MiB at half time, {end} MiB at the end");
        assert!(end <= half + half / 10 + 2, "memory has grown");
    }
    let lost = book.some_missing();
    assert!(
        lost.is_empty(),
        "confirmed and lost: {lost:?}; LEDGER_SEED={seed}"
    );
    assert_eq!(account.unexpected, 0, "never sent; LEDGER_SEED={seed}");
    assert!(account.confirmed > 0 && account.replies > 0 && account.retried > 0);
    assert_eq!(
        account.run_twice, 0,
        "run by two attempts; LEDGER_SEED={seed}"
    );
    let late = account.latest;
    assert!(
        late <= GRACE,
        "ended {late:?} after the deadline; LEDGER_SEED={seed}"
    );
}

struct Progress {
    start: Instant,
    length: Duration,
    is_soak: bool,
    /// Resident memory at half time, of a soak.
    half: Option<u64>,
}

impl Progress {
    fn report(&mut self, book: &Book, fault: &str) {
        if self.half.is_none() && self.is_soak && self.start.elapsed() > self.length / 2 {
            self.half = Some(resident_mib());
        }
        println!(
            "{:5.0} s  {fault:<36} {book}, {} MiB",
            self.start.elapsed().as_secs_f64(),
            resident_mib()
        );
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1_024
}
