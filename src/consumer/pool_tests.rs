//! Tests of the pool with real threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::lane::Shareable;
use super::super::pool_state::Next;
use super::super::turn::Turn;
use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

impl Shareable for usize {}

impl Job for usize {}

fn pool(
    workers: usize,
    end_idle: Option<Duration>,
    run: impl Fn(usize) -> Next<usize> + Send + Sync + 'static,
) -> Pool<usize> {
    let setup = PoolSetup {
        name: "test".to_owned(),
        workers,
        spin_for: Duration::ZERO,
        end_idle,
        may_grow: true,
        on_start: None,
    };
    let pool = Pool::new(setup);
    pool.start(Arc::new(move |job, _: &dyn Turn| run(job)))
        .unwrap();
    pool
}

/// Returns a pool whose jobs run until `release` is dropped, or receives a message for each; and
/// the numbers of the jobs that have begun.
fn gated(workers: usize, end_idle: Option<Duration>) -> (Pool<usize>, Sender<()>, Receiver<usize>) {
    let (release, gate) = bounded::<()>(0);
    let (entered, inside) = crossbeam_channel::unbounded();
    let pool = pool(workers, end_idle, move |job| {
        let _ = entered.send(job);
        let _ = gate.recv();
        Next::Done
    });
    (pool, release, inside)
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let end = soon();
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        thread::yield_now();
    }
}

#[test]
fn every_job_runs_once() {
    let ran = Arc::new(AtomicUsize::new(0));
    let pool = pool(4, None, {
        let ran = Arc::clone(&ran);
        move |n| {
            ran.fetch_add(n, Ordering::Relaxed);
            Next::Done
        }
    });
    for n in 1..=10_000 {
        pool.submit(n).unwrap();
    }
    wait_for("all jobs run", || {
        ran.load(Ordering::Relaxed) == 10_000 * 10_001 / 2
    });
    assert!(pool.stop().is_empty());
    pool.join(soon()).unwrap();
}

#[test]
fn stop_returns_waiting_jobs_and_join_counts_running_ones() {
    let (pool, release, inside) = gated(1, None);
    for job in 1..=3 {
        pool.submit(job).unwrap();
    }
    inside.recv().unwrap();
    assert_eq!(pool.stop(), [2, 3]);
    assert_eq!(pool.submit(4), Err(4));
    assert_eq!(pool.join(Instant::now()), Err(1));
    drop(release);
    pool.join(soon()).unwrap();
}

#[test]
fn jobs_that_are_put_off_run_when_they_are_due_in_that_order() {
    let (send, jobs) = crossbeam_channel::unbounded();
    let begun = Instant::now();
    let due = move |job: usize| begun + Duration::from_millis(job as u64 % 100);
    // The first time, a job is put off until its number of milliseconds.
    let pool = pool(1, None, move |job| {
        if job < 100 {
            return Next::Later(job + 100, due(job));
        }
        assert!(Instant::now() >= due(job), "{job}");
        send.send(job).unwrap();
        Next::Done
    });
    for job in [60, 10, 40] {
        pool.submit(job).unwrap();
    }
    let order: Vec<usize> = (0..3)
        .map(|_| jobs.recv_timeout(Duration::from_secs(10)).unwrap())
        .collect();
    assert_eq!(order, [110, 140, 160]);
    drop(pool.stop());
    pool.join(soon()).unwrap();
}

#[test]
fn jobs_that_are_put_off_at_the_end_are_returned() {
    let pool = pool(1, None, |job| {
        Next::Later(job, soon() + Duration::from_secs(600))
    });
    pool.submit(7).unwrap();
    wait_for("it is put off", || {
        pool.status().running == 0 && pool.status().waiting == 1
    });
    assert_eq!(pool.stop(), [7]);
    pool.join(soon()).unwrap();
}

#[test]
fn a_pool_grows_while_its_workers_are_busy_and_shrinks_when_they_are_idle() {
    let (pool, release, inside) = gated(1, Some(Duration::from_millis(20)));
    for job in 0..4 {
        pool.submit(job).unwrap();
    }
    inside.recv().unwrap();
    let (sender, busy) = bounded(1);
    pool.notify_when_busy(sender);
    busy.recv_timeout(Duration::from_secs(10)).unwrap();
    pool.grow(4).unwrap();
    for _ in 0..3 {
        inside.recv_timeout(Duration::from_secs(10)).unwrap();
    }
    assert_eq!(pool.status().workers, 4);
    drop(release);
    wait_for("three workers end", || pool.status().workers == 1);
    pool.submit(9).unwrap();
    assert_eq!(inside.recv_timeout(Duration::from_secs(10)), Ok(9));
    pool.stop();
    pool.join(soon()).unwrap();
}

#[test]
fn a_stuck_worker_is_replaced_and_one_ends_when_it_returns_in_whichever_order() {
    let (pool, release, inside) = gated(2, None);
    for job in 0..8 {
        pool.submit(job).unwrap();
    }
    for _ in 0..2 {
        inside.recv().unwrap();
    }
    pool.replace_worker().unwrap();
    inside.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(pool.status().workers, 3);
    pool.shared.end_one_worker();
    for _ in 0..3 {
        release.send(()).unwrap();
    }
    wait_for("one worker ends", || pool.status().workers == 2);
    // The end of a handler may be reported before its worker is replaced.
    for _ in 0..20 {
        pool.shared.end_one_worker();
        pool.replace_worker().unwrap();
    }
    assert_eq!(pool.status().workers, 2);
    drop(release);
    wait_for("the rest is run", || {
        pool.status().running + pool.status().waiting == 0
    });
    assert_eq!(pool.status().workers, 2);
    pool.stop();
    pool.join(soon()).unwrap();
}

#[test]
fn a_job_that_is_put_off_runs_although_the_worker_that_waited_for_it_has_ended() {
    let (send, jobs) = crossbeam_channel::unbounded();
    let (release, gate) = bounded::<()>(0);
    let idle = Duration::from_millis(5);
    let pool = pool(1, Some(idle), move |job| {
        if job < 100 {
            let _ = gate.recv();
            return Next::Later(job + 100, Instant::now() + 20 * idle);
        }
        send.send(job).unwrap();
        Next::Done
    });
    for job in 0..8 {
        pool.submit(job).unwrap();
    }
    pool.grow(8).unwrap();
    drop(release);
    for _ in 0..8 {
        jobs.recv_timeout(Duration::from_secs(10)).unwrap();
    }
    pool.stop();
    pool.join(soon()).unwrap();
}
