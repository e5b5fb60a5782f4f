//! A thread that runs callbacks when the results they wait for are there.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select, unbounded};

use super::catch::catch;
use super::deadline;
use super::thread::NamedThread;

/// A result that a callback waits for. Its methods are called by the callback thread, one
/// after the other.
pub(crate) trait Watched: Send {
    /// Registers `ready` to be notified whenever the result may be there.
    fn start(&mut self, ready: &Notifier);

    /// Returns true if the result is there. Does not wait for it.
    fn is_ready(&mut self, ready: &Notifier) -> bool;

    /// Returns the moment at which the callback runs without the result.
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

/// A thread that runs callbacks, one after the other, and watches their deadlines. User code
/// runs here and never on an I/O thread.
pub(crate) struct CallbackThread {
    /// Bounded by the number of results that its owner may have under way.
    commands: Sender<Command>,
    thread: Option<NamedThread>,
    last_id: AtomicU64,
    /// The owner, for logs.
    owner: String,
}

/// The longest time for which dropping the thread's owner waits for the callback that runs.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

impl CallbackThread {
    /// Starts the thread `coney-callback-OWNER`.
    pub(crate) fn start(owner: &str) -> io::Result<Self> {
        let (commands, queue) = unbounded();
        let name = format!("coney-callback-{owner}");
        let thread = NamedThread::spawn(name, move || Callbacks::new().run(&queue))?;
        Ok(Self {
            commands,
            thread: Some(thread),
            last_id: AtomicU64::new(0),
            owner: owner.to_owned(),
        })
    }

    /// Watches a result. Does not block.
    pub(crate) fn watch(&self, watched: Box<dyn Watched>) {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = self.commands.send(Command::Watch(id, watched));
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
    watched: HashMap<u64, Box<dyn Watched>>,
    deadlines: BTreeSet<(Instant, u64)>,
    ready: Sender<u64>,
    notified: Receiver<u64>,
}

/// The longest sleep where no deadline is nearer.
const LONGEST_SLEEP: Duration = Duration::from_secs(3_600);

impl Callbacks {
    fn new() -> Self {
        let (ready, notified) = unbounded();
        Self {
            watched: HashMap::new(),
            deadlines: BTreeSet::new(),
            ready,
            notified,
        }
    }

    fn run(mut self, commands: &Receiver<Command>) {
        let notified = self.notified.clone();
        loop {
            // A steady stream of results must not delay the deadlines.
            let now = Instant::now();
            while let Some(&(deadline, id)) = self.deadlines.first()
                && deadline <= now
            {
                self.finish(id);
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

    fn watch(&mut self, id: u64, mut watched: Box<dyn Watched>) {
        watched.start(&self.notifier(id));
        self.deadlines.insert((watched.deadline(), id));
        self.watched.insert(id, watched);
        self.check(id);
    }

    fn check(&mut self, id: u64) {
        let ready = self.notifier(id);
        // None if its callback has run.
        if let Some(watched) = self.watched.get_mut(&id)
            && watched.is_ready(&ready)
        {
            self.finish(id);
        }
    }

    fn finish(&mut self, id: u64) {
        let Some(watched) = self.watched.remove(&id) else {
            return;
        };
        self.deadlines.remove(&(watched.deadline(), id));
        if catch(|| watched.finish()).is_err() {
            log::error!(target: "coney::client", "a callback panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use parking_lot::Mutex;
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
        let thread = CallbackThread::start("test").unwrap();
        let in_time = Instant::now() + Duration::from_secs(60);
        let watch = |values: &[u8], deadline| {
            let (sender, result) = bounded(1);
            let notifier = Arc::new(Mutex::new(None));
            values.iter().for_each(|value| sender.send(*value).unwrap());
            thread.watch(Box::new(Watch {
                notifier: Arc::clone(&notifier),
                result,
                deadline,
                seen: seen.clone(),
            }));
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
}
