//! Tests of a shared limit as one process sees it, with a source of tokens inside the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::gcra::Gcra;
use super::peers::CountPeers;
use super::rate::Rate;
use super::shared_limit::SharedLimit;
use super::token_source::{Lease, LeaseRequest, LeaseTerms, TokenSource};
use crate::error::{Error, ErrorKind, Result};

const PATIENCE: Duration = Duration::from_secs(30);

fn in_time() -> Instant {
    Instant::now() + PATIENCE
}

/// A source that hands each request to the test, which answers it.
struct AskedSource {
    asked: Sender<Vec<(Option<String>, u32)>>,
    answers: Receiver<Result<Vec<Lease>>>,
}

type Asked = Receiver<Vec<(Option<String>, u32)>>;

impl TokenSource for AskedSource {
    fn lease(&self, _: &str, _: &LeaseTerms, requests: &[LeaseRequest<'_>]) -> Result<Vec<Lease>> {
        let requests = requests.iter();
        let requests = requests.map(|it| (it.key.map(str::to_owned), it.wanted));
        let _ = self.asked.send(requests.collect());
        // It ends with the test.
        self.answers.recv().unwrap_or_else(|_| Ok(Vec::new()))
    }

    fn describe(&self) -> String {
        "the test".to_owned()
    }
}

fn asked_limit(
    rate: Rate,
    peers: Option<u32>,
) -> (Arc<SharedLimit>, Asked, Sender<Result<Vec<Lease>>>) {
    let (asked, requests) = unbounded();
    let (answer, answers) = unbounded();
    let source = Arc::new(AskedSource { asked, answers });
    let limit = SharedLimit::new("test", rate, source, peers);
    (Arc::new(limit), requests, answer)
}

fn granted(tokens: u32) -> Result<Vec<Lease>> {
    let next_in = Duration::ZERO;
    Ok(vec![Lease {
        granted: tokens,
        next_in,
    }])
}

#[test]
fn a_first_call_waits_for_the_answer_and_each_key_asks_for_itself() {
    let (limit, asked, answer) = asked_limit(Rate::per_second(100), Some(1));
    for key in [None, Some("a"), Some("")] {
        let calling = Arc::clone(&limit);
        let call = thread::spawn(move || {
            loop {
                // A busy machine may need longer than the call waits.
                if calling.take(key, in_time(), false).is_ok() {
                    return;
                }
            }
        });
        let requests = asked.recv_timeout(PATIENCE).unwrap();
        assert_eq!(requests[0].0.as_deref(), key);
        answer.send(granted(requests[0].1)).unwrap();
        loop {
            if call.is_finished() {
                break;
            }
            // Its token may have lapsed.
            if let Ok(again) = asked.recv_timeout(Duration::from_millis(5)) {
                answer.send(granted(again[0].1)).unwrap();
            }
        }
        call.join().unwrap();
    }
}

#[test]
fn a_source_that_fails_leaves_the_share_until_it_answers() {
    let (limit, asked, answer) = asked_limit(Rate::per_second(1_000), None);
    let count: CountPeers = Arc::new(|| Some(4));
    limit.count_peers_by(&count);
    let failed = || Err(Error::new(ErrorKind::Registry, "no Redis"));
    answer.send(failed()).unwrap();
    // Most calls are refused, and some admitted: neither open nor shut.
    let start = Instant::now();
    let (mut admitted, mut refused) = (0u32, 0u32);
    while admitted < 20 || refused == 0 {
        match limit.take(None, in_time(), false) {
            Ok(()) => admitted += 1,
            Err(wait) => {
                refused += 1;
                thread::sleep(wait.min(Duration::from_millis(5)));
            }
        }
        while asked.try_iter().count() > 1 {
            answer.send(failed()).unwrap();
        }
    }
    // A quarter of the rate, and before it is counted all of it.
    let most = 1_000.0 * start.elapsed().as_secs_f64() + 100.0;
    assert!(f64::from(admitted) <= most, "{admitted} of {most}");
    for _ in 0..100 {
        answer.send(granted(0)).unwrap();
    }
}

#[test]
fn a_source_that_panics_is_one_that_fails() {
    struct Panicking(AtomicBool);
    impl TokenSource for Panicking {
        fn lease(&self, _: &str, _: &LeaseTerms, asked: &[LeaseRequest<'_>]) -> Result<Vec<Lease>> {
            assert!(self.0.swap(true, Ordering::SeqCst), "a test");
            let next_in = Duration::ZERO;
            Ok(vec![Lease {
                granted: asked[0].wanted,
                next_in,
            }])
        }

        fn describe(&self) -> String {
            String::new()
        }
    }
    let source = Arc::new(Panicking(AtomicBool::new(false)));
    let limit = SharedLimit::new("test", Rate::per_second(10_000), source, Some(1));
    while limit.take(None, in_time(), false).is_err() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// A source that counts as the script in Redis does, for several limits that stand for processes.
struct OneStore {
    gcra: Mutex<Gcra>,
    granted: AtomicU32,
}

impl TokenSource for OneStore {
    fn lease(&self, _: &str, _: &LeaseTerms, requests: &[LeaseRequest<'_>]) -> Result<Vec<Lease>> {
        let mut gcra = self.gcra.lock();
        let lease = |request: &LeaseRequest<'_>| {
            let now = Instant::now();
            let mut lease = Lease {
                granted: 0,
                next_in: Duration::ZERO,
            };
            while lease.granted < request.wanted {
                match gcra.reserve(now, Duration::ZERO) {
                    Ok(_) => lease.granted += 1,
                    Err(wait) => {
                        lease.next_in = wait;
                        break;
                    }
                }
            }
            self.granted.fetch_add(lease.granted, Ordering::Relaxed);
            lease
        };
        Ok(requests.iter().map(lease).collect())
    }

    fn describe(&self) -> String {
        String::new()
    }
}

#[test]
fn no_process_admits_more_than_was_leased_to_it_and_all_get_something() {
    let rate = Rate::per_second(2_000);
    let store = Arc::new(OneStore {
        gcra: Mutex::new(Gcra::new(&rate)),
        granted: AtomicU32::new(0),
    });
    let processes: Vec<_> = (0..4)
        .map(|_| {
            let source = Arc::clone(&store) as Arc<dyn TokenSource>;
            // Late answers of a busy machine must not admit anything here.
            let limit = SharedLimit::new("test", rate, source, Some(1_000_000));
            thread::spawn(move || {
                let (mut admitted, end) = (0u32, in_time());
                while admitted < 50 && Instant::now() < end {
                    match limit.take(None, end, false) {
                        Ok(()) => admitted += 1,
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
                admitted
            })
        })
        .collect();
    let admitted: Vec<u32> = processes.into_iter().map(|it| it.join().unwrap()).collect();
    assert_eq!(admitted, [50; 4]);
    assert!(store.granted.load(Ordering::Relaxed) >= 200);
}
