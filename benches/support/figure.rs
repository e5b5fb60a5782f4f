//! The lines of a report: figures, and the bounds that they have to keep.

use std::fmt;

use serde::Serialize;

/// The bound of a figure.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "not every benchmark has all of them")]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    Within(f64, f64),
}

impl Bound {
    fn is_reached(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Within(least, most) => (least..=most).contains(&value),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {}", rounded(*most)),
            Self::AtLeast(least) => write!(f, "≥ {}", rounded(*least)),
            Self::Within(least, most) => {
                write!(f, "{} to {}", rounded(*least), rounded(*most))
            }
        }
    }
}

/// A line of the report.
#[derive(Serialize)]
struct Figure<'a> {
    what: &'a str,
    value: f64,
    unit: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<bool>,
}

/// Prints a figure that has to keep a bound.
pub fn bounded(what: &str, value: f64, unit: &str, bound: Bound) {
    print(what, value, unit, Some(bound));
}

/// Prints a figure that the others are compared with.
pub fn unbounded(what: &str, value: f64, unit: &str) {
    print(what, value, unit, None);
}

fn print(what: &str, value: f64, unit: &str, bound: Option<Bound>) {
    let figure = Figure {
        what,
        value: rounded(value),
        unit,
        wanted: bound.map(|bound| bound.to_string()),
        reached: bound.map(|bound| bound.is_reached(value)),
    };
    let line = serde_json::to_string(&figure);
    println!("{}", line.expect("a figure can be encoded"));
}

/// Rounds to four digits after the point: rates near 1 need them.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// Returns the median, the upper one of two.
#[allow(dead_code, reason = "not every benchmark needs it")]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
