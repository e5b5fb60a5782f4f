//! A relay for log lines from threads that must not run user code.
//!
//! A logger is the program's own code: it may block, panic, or call coney. So the lines of the I/O
//! threads and the memory broker, and of threads that a panic in it would end, are written by a
//! thread of their own, `coney-log`, which starts with the first line and lasts as long as the
//! process.

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use log::Level;

use crate::base::catch::catch;

/// The number of lines that may be queued while the logger blocks; further ones are dropped and
/// counted.
const MAX_QUEUED_LINES: usize = 1_024;

enum Line {
    Log(Level, &'static str, String),
    /// A request to confirm that all lines before it have been written.
    Flush(Sender<()>),
}

static LINES: LazyLock<Option<Sender<Line>>> = LazyLock::new(|| {
    let (lines, inbox) = bounded(MAX_QUEUED_LINES);
    let thread = thread::Builder::new().name("coney-log".to_owned());
    let started = thread.spawn(move || write(&inbox));
    started.is_ok().then_some(lines)
});

static DROPPED: AtomicUsize = AtomicUsize::new(0);

/// Queues a line for the log thread; never blocks, and calls no logger.
pub(crate) fn log(level: Level, target: &'static str, text: fmt::Arguments<'_>) {
    if level > log::max_level() {
        return;
    }
    let line = Line::Log(level, target, text.to_string());
    let sent = LINES.as_ref().map(|lines| lines.try_send(line));
    if !matches!(sent, Some(Ok(()))) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Blocks until all lines queued so far have been written, at most until `deadline`.
pub(crate) fn flush(deadline: Instant) {
    if log::max_level() == log::LevelFilter::Off {
        return;
    }
    let Some(lines) = LINES.as_ref() else { return };
    if thread::current().name() == Some("coney-log") {
        return; // called by a logger that closes a broker
    }
    let (done, is_done) = bounded(1);
    if lines.send_deadline(Line::Flush(done), deadline).is_ok() {
        let _ = is_done.recv_deadline(deadline);
    }
}

fn write(lines: &Receiver<Line>) {
    for line in lines {
        match line {
            Line::Log(level, target, text) => {
                let dropped = DROPPED.swap(0, Ordering::Relaxed);
                // A logger that panics must not end this thread.
                let _ = catch(|| {
                    log::log!(target: target, level, "{text}");
                    if dropped > 0 {
                        log::warn!(
                            target: "coney::log",
                            "{dropped} log lines were dropped: the logger is too slow"
                        );
                    }
                });
            }
            Line::Flush(done) => drop(done.send(())),
        }
    }
}
