//! The load of the example `surge`, and the picture of it.

use std::path::Path;
use std::time::Duration;

use crate::brokers;
use crate::figure::unbounded;
use crate::load;
use crate::picture;

#[allow(dead_code)]
#[path = "../../examples/surge/counts.rs"]
mod counts;
#[path = "../../examples/surge/run.rs"]
mod run;
#[path = "../../examples/surge/servers.rs"]
mod servers;

pub use counts::Counts;
use servers::Kind;

/// The counts of a run of the example, at equal distances.
pub struct Curve {
    pub name: &'static str,
    pub interval: Duration,
    pub counts: Vec<Counts>,
}

/// Measures runs of such a length, and draws those of the last broker.
pub fn measure(length: Duration, svg: Option<&Path>) {
    let interval = (length / 60).max(Duration::from_millis(100));
    for transport in brokers::all() {
        let curves = Kind::ALL.map(|kind| {
            let counts = run::run(&transport.broker, kind, length, interval, |_, _| {});
            Curve {
                name: kind.name(),
                interval,
                counts: counts.expect("the server and the client start"),
            }
        });
        for curve in &curves {
            report(curve, transport.name);
        }
        if let Some(path) = svg {
            let drawn = picture::draw(path, transport.name, &curves);
            drawn.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

fn report(curve: &Curve, transport: &str) {
    let mut all = Counts::default();
    curve.counts.iter().for_each(|counts| all.merge(counts));
    let case = format!("surge, {}, {transport}", curve.name);
    for (what, number) in [
        ("offered", all.offered),
        ("served", all.served),
        ("busy", all.busy),
        ("failed", all.failed),
        ("workers at most", all.workers as u64),
    ] {
        unbounded(&format!("{case}: {what}"), number as f64, "");
    }
    for (what, part) in [("p50", 0.5), ("p99", 0.99)] {
        let latency = all.latency(part).unwrap_or_default();
        let what = format!("{case}: {what} of served calls");
        unbounded(&what, latency.as_secs_f64() * 1e3, "ms");
    }
    let late = all.late.as_secs_f64() * 1e3;
    unbounded(
        &format!("{case}: the generator is late, at most"),
        late,
        "ms",
    );
}
