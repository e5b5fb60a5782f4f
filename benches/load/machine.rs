//! The load of the machine, which the figures depend on.

use std::thread;

use crate::Scenario;

/// Prints what else runs on the machine, if that is more than its processors can do.
pub fn report_load(scenario: Scenario) {
    let processors = thread::available_parallelism().map_or(1, |number| number.get());
    let Some(load) = load_average() else { return };
    let half = processors as f64 / 2.0;
    if load > half {
        eprintln!(
            "{scenario:?}: the load average is {load:.1} on {processors} processors, so figures of \
             latency may be those of the machine"
        );
    }
}

/// Returns the load average of the last minute: Linux only.
fn load_average() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}
