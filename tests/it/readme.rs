//! The READMEs: their programs are built and run, and their tables are those of the programs.

use std::process::Command;

use crate::support::process::example;

const ENGLISH: &str = include_str!("../../README.md");
const CHINESE: &str = include_str!("../../README.zh-CN.md");

/// The READMEs' programs and the small examples, each with the lines that it prints in some order.
const PROGRAMS: [(&str, &[&str]); 6] = [
    ("readme_call", &["User { id: 7, name: \"user 7\" }"]),
    ("readme_resilience", &["None, from the fallback"]),
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
fn the_programs_are_those_that_are_tested() {
    let programs = [
        include_str!("../readme/call.rs"),
        include_str!("../readme/resilience.rs"),
    ];
    // After the line that says what it is.
    let programs = programs.map(|program| program.split_once("\n\n").unwrap().1);
    for readme in [ENGLISH, CHINESE] {
        assert_eq!(blocks(readme, "rust"), programs);
    }
}

/// Returns the cells of a row of a table.
fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn the_table_about_resilience_has_the_columns_that_the_example_prints() {
    let lines = |text: &'static str| text.lines().filter(|line| line.starts_with("| "));
    let printed = include_str!("../../examples/resilience/counts.rs");
    let printed = cells(lines(printed).next().expect("the heading of the table"));
    let rows = |readme, without: &str, with: &str| {
        let row = |name: &str| lines(readme).map(cells).find(|cells| cells[0] == name);
        [without, with].map(|name| row(name).unwrap_or_else(|| panic!("no row {name}")))
    };
    let mut headings = lines(ENGLISH).map(cells);
    assert!(headings.any(|heading| heading == printed), "{printed:?}");
    let english = rows(ENGLISH, "without resilience", "with resilience");
    let chinese = rows(CHINESE, "没有 resilience", "有 resilience");
    for (english, chinese) in english.iter().zip(chinese) {
        assert_eq!(english.len(), printed.len());
        let number = |cell: &&str| cell.split(' ').next().map(str::to_owned);
        let numbers = |cells: &[&str]| cells[1..].iter().map(number).collect::<Vec<_>>();
        assert_eq!(numbers(english), numbers(&chinese));
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
