//! A thread that runs callbacks when the results they wait for are there.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select, unbounded};
use parking_lot::Mutex;

use super::catch::catch;
use super::deadline;
use super::log_relay;
use super::thread::NamedThread;
use crate::error::{Error, ErrorKind, Result};

/// A result that a callback waits for. Its methods are called by the callback thread, one
/// after the other, except `start`. If `is_ready` panics, `finish` is called next.
pub(crate) trait Watched: Send {
    /// Registers `ready` to be notified whenever the result may be there. Called by the thread
    /// that adds the callback: were it the callback thread, the results that arrive while a
    /// callback blocks would not count as in flight.
    fn start(&mut self, ready: &Notifier);

    /// Returns true if the result is there. Does not wait for it, but may send a request again.
    fn is_ready(&mut self, ready: &Notifier) -> bool;

    /// Returns the moment at which the callback runs without the result, unless `is_ready`, which is
    /// called then, moves it.
    fn deadline(&self) -> Instant;

    /// Runs the callback, with the result if it is there.
    fn finish(self: Box<Self>);
}

/// The way to report that a watched result may be there. Never blocks.
#[derive(Clone, Debug)]
pub(crate) struct Notifier {
    ready: Sender<u64>,
    id: u64,
}

impl Notifier {
    /// Creates a notifier that sends `id`. The channel must be unbounded.
    pub(crate) fn new(ready: Sender<u64>, id: u64) -> Self {
        Self { ready, id }
    }

    pub(crate) fn notify(&self) {
        let _ = self.ready.send(self.id);
    }
}

enum Command {
    Watch(u64, Box<dyn Watched>),
    Stop,
}

/// The callback thread of a client or a connection, once there was a callback.
#[derive(Default)]
pub(crate) struct LazyCallbackThread(Mutex<Option<CallbackThread>>);

impl LazyCallbackThread {
    /// Watches a result on the thread, which starts with the first, named after `owner`. Does not
    /// block.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the thread cannot be started, or has ended; the message whose result
    /// this is has been sent all the same.
    pub(crate) fn watch(&self, owner: &str, mut watched: Box<dyn Watched>) -> Result<()> {
        let fault = |what| {
            let fault = format!("{owner}: {what}");
            Error::new(ErrorKind::Io, fault).with_nothing_ran(false)
        };
        let mut thread = self.0.lock();
        if thread.is_none() {
            let started = CallbackThread::start(owner);
            let no_thread = |error| fault("cannot start the callback thread").with_source(error);
            *thread = Some(started.map_err(no_thread)?);
        }
        let Some((commands, ready)) = thread.as_ref().map(CallbackThread::next) else {
            return Err(fault("the callback thread has ended"));
        };
        // Starting may run a balancer, and a callback that is dropped may add another one.
        drop(thread);
        watched.start(&ready);
        let sent = commands.send(Command::Watch(ready.id, watched));
        sent.map_err(|_| fault("the callback thread has ended"))
    }
}

/// A thread that runs callbacks, one after the other, and watches their deadlines. User code
/// runs here and never on an I/O thread.
struct CallbackThread {
    commands: Sender<Command>,
    /// The ids of the results that may be there.
    ready: Sender<u64>,
    thread: Option<NamedThread>,
    last_id: AtomicU64,
    /// The owner, for logs.
    owner: String,
}

/// The longest time for which dropping the thread's owner waits for the callback that runs.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

impl CallbackThread {
    /// Starts the thread `coney-callback-OWNER`.
    fn start(owner: &str) -> io::Result<Self> {
        let (commands, queue) = unbounded();
        let name = format!("coney-callback-{owner}");
        let (ready, notified) = unbounded();
        let callbacks = Callbacks::new(ready.clone());
        let thread = NamedThread::spawn(name, move || callbacks.run(&queue, &notified))?;
        Ok(Self {
            commands,
            ready,
            thread: Some(thread),
            last_id: AtomicU64::new(0),
            owner: owner.to_owned(),
        })
    }

    /// Returns the channel for the next result to watch, and its notifier.
    fn next(&self) -> (Sender<Command>, Notifier) {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let ready = Notifier::new(self.ready.clone(), id);
        (self.commands.clone(), ready)
    }
}

impl Drop for CallbackThread {
    /// Waits for the callback that runs, at most 10 s; a callback that drops the owner does not
    /// wait for itself.
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join_deadline(deadline::after(JOIN_TIMEOUT)).is_err()
        {
            log::warn!(
                target: "coney::client",
                "{}: a callback still runs {JOIN_TIMEOUT:?} after its owner was dropped",
                self.owner
            );
        }
    }
}

/// The results that the thread watches.
struct Callbacks {
    /// Each with the deadline that it has among `deadlines`.
    watched: HashMap<u64, (Box<dyn Watched>, Instant)>,
    deadlines: BTreeSet<(Instant, u64)>,
    ready: Sender<u64>,
}

/// The longest sleep where no deadline is nearer.
const LONGEST_SLEEP: Duration = Duration::from_secs(3_600);

impl Callbacks {
    fn new(ready: Sender<u64>) -> Self {
        Self {
            watched: HashMap::new(),
            deadlines: BTreeSet::new(),
            ready,
        }
    }

    fn run(mut self, commands: &Receiver<Command>, notified: &Receiver<u64>) {
        loop {
            // A steady stream of results must not delay the deadlines.
            let now = Instant::now();
            while let Some(&(deadline, id)) = self.deadlines.first()
                && deadline <= now
            {
                self.check(id);
                if self.deadlines.first() == Some(&(deadline, id)) {
                    self.finish(id);
                }
            }
            let next = self.deadlines.first().map(|(deadline, _)| *deadline);
            let sleep = next.map_or(LONGEST_SLEEP, |next| next.saturating_duration_since(now));
            select! {
                recv(commands) -> command => match command {
                    Ok(Command::Watch(id, watched)) => self.watch(id, watched),
                    Ok(Command::Stop) | Err(_) => break,
                },
                recv(notified) -> id => if let Ok(id) = id { self.check(id) },
                default(sleep) => {}
            }
        }
        while let Ok(id) = notified.try_recv() {
            self.check(id);
        }
    }

    fn notifier(&self, id: u64) -> Notifier {
        Notifier::new(self.ready.clone(), id)
    }

    fn watch(&mut self, id: u64, watched: Box<dyn Watched>) {
        let deadline = watched.deadline();
        self.deadlines.insert((deadline, id));
        self.watched.insert(id, (watched, deadline));
        self.check(id); // its notification may have come before it
    }

    fn check(&mut self, id: u64) {
        let ready = self.notifier(id);
        // None if its callback has run.
        let Some((watched, deadline)) = self.watched.get_mut(&id) else {
            return;
        };
        let is_ready = catch(|| watched.is_ready(&ready)).unwrap_or_else(|_| {
            log_panic();
            true
        });
        if is_ready {
            self.finish(id);
        } else if watched.deadline() != *deadline {
            self.deadlines.remove(&(*deadline, id));
            *deadline = watched.deadline();
            self.deadlines.insert((*deadline, id));
        }
    }

    fn finish(&mut self, id: u64) {
        let Some((watched, deadline)) = self.watched.remove(&id) else {
            return;
        };
        self.deadlines.remove(&(deadline, id));
        if catch(|| watched.finish()).is_err() {
            log_panic();
        }
    }
}

/// Logs a panic, though not its text, which may be a payload. Logs on another thread: a logger
/// that panics must not end this one.
fn log_panic() {
    log_relay::log(
        log::Level::Error,
        "coney::client",
        format_args!("a callback panicked"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use std::sync::Arc;

    struct Watch {
        notifier: Arc<Mutex<Option<Notifier>>>,
        result: Receiver<u8>,
        deadline: Instant,
        seen: Sender<Option<u8>>,
    }

    impl Watched for Watch {
        fn start(&mut self, ready: &Notifier) {
            *self.notifier.lock() = Some(ready.clone());
        }

        fn is_ready(&mut self, _ready: &Notifier) -> bool {
            !self.result.is_empty()
        }

        fn deadline(&self) -> Instant {
            self.deadline
        }

        fn finish(self: Box<Self>) {
            let result = self.result.try_recv().ok();
            self.seen.send(result).unwrap();
            assert_ne!(result, Some(9), "a panic ends one callback only");
        }
    }

    #[test]
    fn callbacks_run_when_they_are_ready_or_late() {
        let (seen, results) = unbounded();
        let thread = LazyCallbackThread::default();
        let in_time = Instant::now() + Duration::from_secs(60);
        let watch = |values: &[u8], deadline| {
            let (sender, result) = bounded(1);
            let notifier = Arc::new(Mutex::new(None));
            values.iter().for_each(|value| sender.send(*value).unwrap());
            let watched = Box::new(Watch {
                notifier: Arc::clone(&notifier),
                result,
                deadline,
                seen: seen.clone(),
            });
            thread.watch("test", watched).unwrap();
            (sender, notifier)
        };
        let _ready = watch(&[9], in_time);
        assert_eq!(results.recv(), Ok(Some(9)));
        let (sender, notifier) = watch(&[], in_time);
        let ready = loop {
            match notifier.lock().clone() {
                Some(ready) => break ready,
                None => std::thread::yield_now(),
            }
        };
        ready.notify(); // nothing is there yet
        sender.send(7).unwrap();
        ready.notify();
        ready.notify();
        assert_eq!(results.recv(), Ok(Some(7)));
        let _late = watch(&[], Instant::now());
        assert_eq!(results.recv(), Ok(None));
    }

    struct Panicking(Sender<()>);

    impl Watched for Panicking {
        fn start(&mut self, _ready: &Notifier) {}

        fn is_ready(&mut self, _ready: &Notifier) -> bool {
            panic!("a panic that the test wants");
        }

        fn deadline(&self) -> Instant {
            Instant::now() + Duration::from_secs(60)
        }

        fn finish(self: Box<Self>) {
            self.0.send(()).unwrap();
        }
    }

    #[test]
    fn a_panic_in_a_result_ends_its_own_callback_only() {
        let (seen, finished) = unbounded();
        let thread = LazyCallbackThread::default();
        for _ in 0..3 {
            let watched = Box::new(Panicking(seen.clone()));
            thread.watch("test", watched).unwrap();
            assert_eq!(finished.recv_timeout(Duration::from_secs(60)), Ok(()));
        }
    }

    #[test]
    fn a_thread_that_has_ended_watches_nothing() {
        let (seen, finished) = unbounded();
        let lazy = LazyCallbackThread::default();
        let watch = || lazy.watch("test", Box::new(Panicking(seen.clone())));
        watch().unwrap();
        assert_eq!(finished.recv_timeout(Duration::from_secs(60)), Ok(()));
        let stop = |thread: &CallbackThread| thread.commands.send(Command::Stop);
        lazy.0.lock().as_ref().map(stop).unwrap().unwrap();
        let error = loop {
            if let Err(error) = watch() {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    }
}
