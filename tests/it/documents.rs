//! What the documents name exists: files, sections, tests.

use std::fs;
use std::path::Path;

const DOCUMENTS: [&str; 6] = [
    "README.md",
    "README.zh-CN.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// Each document, and the texts between `start` and `end` in it.
fn mentions(start: &str, end: char) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        let rest = text.split(start).skip(1);
        found.extend(rest.map(|rest| (document, rest.split(end).next().unwrap().to_owned())));
    }
    found
}

/// The anchors of a document's sections, as GitHub makes them.
fn anchors(document: &str) -> Vec<String> {
    let text = read(document);
    let titles = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |title: &str| {
        let title = title.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars();
        let kept = kept.filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        kept.collect::<String>().replace(' ', "-")
    };
    titles.map(anchor).collect()
}

#[test]
fn links_lead_to_files_and_sections() {
    let mut broken = Vec::new();
    for (document, target) in mentions("](", ')') {
        if target.starts_with("http") {
            continue;
        }
        let (file, section) = target.split_once('#').unwrap_or((&target, ""));
        let file = if file.is_empty() { document } else { file };
        let exists = root().join(file).exists();
        if !exists || (!section.is_empty() && !anchors(file).iter().any(|it| it == section)) {
            broken.push(format!("{document}: {target}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// In backticks: `src/client`, `tests/it/faults.rs`, `faults::a_lost_connection`, `faults::*`.
#[test]
fn the_files_and_tests_in_backticks_exist() {
    let mut broken = Vec::new();
    for (document, name) in mentions("`", '`') {
        let folders = ["src/", "tests/", "examples/", "benches/"];
        let is_path = folders.iter().any(|folder| name.starts_with(folder))
            && !name.contains([' ', '{', '<', '*']);
        if is_path && !root().join(&name).exists() {
            broken.push(format!("{document}: {name}"));
        }
        if let Some((module, test)) = name.split_once("::")
            && test.starts_with(|first: char| first == '*' || first.is_lowercase())
            && root().join(format!("tests/it/{module}.rs")).exists()
        {
            let text = read(&format!("tests/it/{module}.rs"));
            if test != "*" && !text.contains(&format!("fn {test}(")) {
                broken.push(format!("{document}: {name}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
