//! The README's programs: what stands there is what is built and run here.

use std::process::Command;

use crate::support::process::example;

/// Each program, and what it prints, in some order.
const PROGRAMS: [(&str, &[&str]); 5] = [
    ("call", &["User { user_id: 7, name: \"张三\" }"]),
    ("command", &["order 4711", "order 4712"]),
    ("batch", &["42, number 7"]),
    ("event", &["thank you for 4711", "4711"]),
    ("registry", &[]),
];

#[test]
fn its_programs_are_those_that_are_tested() {
    let readme = include_str!("../../README.md");
    let blocks: Vec<&str> = readme
        .split("```rust\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert_eq!(blocks.len(), PROGRAMS.len());
    for (block, (name, _)) in blocks.into_iter().zip(PROGRAMS) {
        let path = format!("{}/tests/readme/{name}.rs", env!("CARGO_MANIFEST_DIR"));
        let program = std::fs::read_to_string(path).unwrap();
        let program = program.split_once("\n\n").unwrap().1; // a line says what it is
        assert_eq!(words(block), words(program), "{name}");
    }
}

/// The README's lines are longer than rustfmt's.
fn words(program: &str) -> String {
    program.replace(char::is_whitespace, "").replace(',', "")
}

#[test]
fn its_programs_print_what_they_should_every_time() {
    for (name, wanted) in PROGRAMS {
        for run in 0..50 {
            let program = example(&format!("readme_{name}"));
            let output = Command::new(program).output().unwrap();
            assert!(output.status.success(), "{name}, run {run}: {output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            let mut lines: Vec<&str> = text.lines().collect();
            let mut wanted = wanted.to_vec();
            lines.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(lines, wanted, "{name}, run {run}");
        }
    }
}
