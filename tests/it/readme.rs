//! The READMEs: their program is built and run, and what they point to exists.

use std::process::Command;

use crate::support::process::example;

const ENGLISH: &str = include_str!("../../README.md");
const CHINESE: &str = include_str!("../../README.zh-CN.md");

/// The READMEs' program and the small examples, each with the lines that it prints in some order.
const PROGRAMS: [(&str, &[&str]); 5] = [
    ("readme_call", &["User { id: 7, name: \"user 7\" }"]),
    ("command", &["order 4711", "order 4712"]),
    ("batch", &["42, number 7"]),
    ("event", &["thank you for 4711", "4711"]),
    ("registry", &["user 7", "user 8 from version 1.4.2"]),
];

/// Returns the code blocks of a language.
fn blocks<'r>(readme: &'r str, language: &str) -> Vec<&'r str> {
    let fence = format!("```{language}\n");
    let parts = readme.split(&fence).skip(1);
    parts
        .map(|rest| rest.split("```").next().unwrap())
        .collect::<Vec<_>>()
}

#[test]
fn the_program_is_the_one_that_is_tested() {
    let program = include_str!("../readme/call.rs");
    let program = program.split_once("\n\n").unwrap().1; // after the line that says what it is
    for readme in [ENGLISH, CHINESE] {
        assert_eq!(blocks(readme, "rust"), [program]);
    }
}

#[test]
fn both_languages_have_the_same_commands_and_are_short() {
    assert_eq!(blocks(ENGLISH, "sh"), blocks(CHINESE, "sh"));
    assert_eq!(blocks(ENGLISH, "toml"), blocks(CHINESE, "toml"));
    for readme in [ENGLISH, CHINESE] {
        assert!(readme.lines().count() <= 200);
    }
}

#[test]
fn the_programs_print_the_same_every_time() {
    for (name, wanted) in PROGRAMS {
        for run in 0..50 {
            let output = Command::new(example(name)).output().unwrap();
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
