//! The example `surge`: each call is counted once.

use std::process::Command;

use crate::examples::{example, stdout};
use crate::support::own_amqp_url;

/// Runs the example, and compares its lines with the table at its end.
fn check_surge(command: &mut Command) {
    let text = stdout(&command.args(["--seconds", "3"]).output().unwrap());
    let numbers = |cells: &[&str]| -> Vec<u64> {
        let numbers = cells.iter().map(|it| it.trim().parse());
        numbers.collect::<Result<_, _>>().unwrap()
    };
    let row = |name: &str| -> Vec<u64> {
        let start = format!("| {name}");
        let row = text.lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("no row {name} in {text}"));
        numbers(&row.split('|').collect::<Vec<_>>()[2..6])
    };
    for name in ["4 workers", "2 to 32 workers, shedding"] {
        let lines = text.split(&format!("With {name}:\n")).nth(1);
        let lines = lines.unwrap_or_else(|| panic!("no run {name} in {text}"));
        let lines = lines.lines().skip(1).take_while(|line| !line.is_empty());
        let seconds: Vec<Vec<u64>> = lines
            .map(|line| numbers(&line.split_whitespace().collect::<Vec<_>>()[..5]))
            .collect();
        assert_eq!(seconds.len(), 3, "{name}: {text}");
        let row = row(name);
        let [offered, served, busy, failed] = *row else {
            panic!("{name}: {row:?}")
        };
        // 10 calls a second, a second of 300, and 10 again.
        assert_eq!(offered, 320, "{name}: {text}");
        assert_eq!(served + busy + failed, offered, "{name}: {text}");
        assert!(served > 0, "{name}: {text}");
        // Calls that end after the last second have no line.
        for (column, whole) in row.iter().enumerate() {
            let sum: u64 = seconds.iter().map(|line| line[column + 1]).sum();
            assert!(sum <= *whole, "{name}, column {column}: {text}");
        }
    }
}

#[test]
fn each_call_of_the_surge_is_counted_once_in_memory() {
    check_surge(&mut example("surge"));
}

#[test]
fn each_call_of_the_surge_is_counted_once_over_rabbitmq() {
    check_surge(example("surge").env("AMQP_URL", own_amqp_url()));
}
