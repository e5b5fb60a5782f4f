//! The house rules on language, read off the source and the documents: words that are not used,
//! the beginnings of summaries, and a first line in every file that says what is in it.

use std::fs;
use std::path::Path;

use super::tidy::rust_files;

const FOLDERS: [&str; 4] = ["src", "tests", "examples", "benches"];

const DOCUMENTS: [&str; 5] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
];

/// Words that make persons of messages, brokers and threads, or that mean nothing in the field.
const WORDS: [&str; 26] = [
    "whoever",
    "whomever",
    "nobody",
    "somebody",
    "anybody",
    "everybody",
    "told",
    "tell",
    "tells",
    "oblige",
    "obliges",
    "obliged",
    "harmless",
    "guilty",
    "goodbye",
    "letterbox",
    "bury",
    "buries",
    "buried",
    "fate",
    "fates",
    "doubt",
    "doubts",
    "doubted",
    "doubtful",
    "crew",
];

/// First words of summaries that are clauses, or that need another sentence to be understood.
const CLAUSES: [&str; 48] = [
    "what", "who", "whom", "whose", "which", "where", "when", "why", "whether", "how", "if",
    "that", "those", "these", "this", "it", "its", "they", "them", "their", "he", "she", "you",
    "we", "so", "since", "until", "because", "while", "before", "after", "as", "then", "there",
    "and", "or", "but", "in", "for", "to", "at", "by", "of", "on", "from", "with", "is", "has",
];

/// Words that end like a verb of the third person and are none.
const NO_VERBS: [&str; 9] = [
    "this", "its", "as", "unless", "less", "always", "perhaps", "besides", "others",
];

/// Returns every Rust file but this one, with its path.
fn files() -> Vec<(String, String)> {
    let named = |folder: &'static str| {
        let files = rust_files(folder).into_iter();
        files.map(move |(name, text)| (format!("{folder}/{name}"), text))
    };
    let all = FOLDERS.into_iter().flat_map(named);
    all.filter(|(name, _)| name != file!()).collect()
}

/// Returns the words of a line in lower case; those of `snake_case` and `CamelCase` names count too.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for letter in line.chars() {
        if !letter.is_ascii_alphabetic() || (was_lower && letter.is_ascii_uppercase()) {
            words.push(String::new());
        }
        if letter.is_ascii_alphabetic() {
            words.last_mut().unwrap().push(letter.to_ascii_lowercase());
        }
        was_lower = letter.is_ascii_lowercase();
    }
    words
}

#[test]
fn the_words_of_the_list_are_not_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = DOCUMENTS.map(|name| {
        (
            name.to_owned(),
            fs::read_to_string(root.join(name)).unwrap(),
        )
    });
    let mut used = Vec::new();
    for (file, text) in files().into_iter().chain(documents) {
        for (number, line) in text.lines().enumerate() {
            // Scripts read what the examples print: it stays as it is.
            if file.starts_with("examples/") && !line.trim_start().starts_with("//") {
                continue;
            }
            for word in words(line) {
                if WORDS.contains(&word.as_str()) {
                    used.push(format!("{file}:{}: {word}", number + 1));
                }
            }
        }
    }
    assert!(used.is_empty(), "see WORDS:\n{}", used.join("\n"));
}

/// Returns the first line of each documentation comment, its line number, and the line of code below it.
fn summaries(text: &str) -> Vec<(usize, &str, &str)> {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let doc = |line: &str| line.starts_with("///") || line.starts_with("//!");
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if !doc(line) || (at > 0 && doc(lines[at - 1])) {
            continue;
        }
        let mut below = lines[at..].iter();
        let item = below.find(|line| !line.starts_with("//") && !line.starts_with("#["));
        let item = match line.starts_with("//!") {
            true => "",
            false => item.unwrap_or(&""),
        };
        found.push((at + 1, line[3..].trim_start(), item));
    }
    found
}

fn is_function(item: &str) -> bool {
    item.split(' ').any(|word| word == "fn")
}

/// Returns the fault of a summary, if it has one.
fn fault(summary: &str, item: &str) -> Option<&'static str> {
    let first = words(summary).into_iter().find(|word| !word.is_empty());
    let first = first.unwrap_or_default();
    if summary.starts_with("# Errors") {
        return Some("no summary before the errors");
    }
    if CLAUSES.contains(&first.as_str()) || summary.starts_with("The same") {
        return Some("begins with a clause or a pronoun");
    }
    let is_verb = first.ends_with('s') && !NO_VERBS.contains(&first.as_str());
    (is_function(item) && !is_verb).then_some("a function's begins with a third-person verb")
}

/// Allows 3 % of the summaries to break the rule, where a clause is the clearest beginning.
#[test]
fn summaries_begin_with_a_noun_or_a_verb() {
    let (mut all, mut broken) = (0, Vec::new());
    for (file, text) in files() {
        // A test's name says what it shows; its comment adds what it needs.
        if file.starts_with("tests/") {
            continue;
        }
        for (number, summary, item) in summaries(&text) {
            all += 1;
            if let Some(fault) = fault(summary, item) {
                broken.push(format!("{file}:{number}: {fault}: {summary}"));
            }
        }
    }
    assert!(all > 1_000, "the summaries were not found");
    assert!(
        broken.len() * 100 < all * 3,
        "{} of {all} summaries\n{}",
        broken.len(),
        broken.join("\n")
    );
}

#[test]
fn every_file_begins_with_its_purpose() {
    let without = files().into_iter();
    let without = without.filter(|(_, text)| !text.starts_with("//! "));
    let without: Vec<String> = without.map(|(file, _)| file).collect();
    assert!(without.is_empty(), "no `//!`: {without:?}");
}

#[test]
fn the_rules_find_what_they_forbid() {
    assert!(words("the brokerTold_them").contains(&"told".to_owned()));
    assert!(!words("a storytelling stool").contains(&"told".to_owned()));
    assert!(fault("What a caller gets.", "pub struct A;").is_some());
    assert!(fault("Where it goes.", "pub(super) fn place() {").is_some());
    assert!(fault("The reply queue.", "pub fn reply_queue() {").is_some());
    assert!(fault("# Errors", "pub fn open() {").is_some());
    assert_eq!(
        fault("Returns it.", "pub(in crate::a) const fn b() {"),
        None
    );
    assert_eq!(fault("The reply queue.", "pub reply_queue: String,"), None);
    let text = "//! A file.\n\n/// Sets it.\n///\n/// Why.\n#[inline]\npub fn set() {}\n";
    let found = [(1, "A file.", ""), (3, "Sets it.", "pub fn set() {}")];
    assert_eq!(summaries(text), found);
}
