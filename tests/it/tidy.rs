//! The house rules that a compiler does not know, read off the source.

use std::fs;
use std::path::Path;

/// Returns every Rust file below a folder, with its path relative to it.
pub fn rust_files(folder: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, root: &Path, out: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, out);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                out.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut out = Vec::new();
    walk(&root, &root, &mut out);
    out
}

/// Returns every source file below `src` but unit tests, with its path relative to it.
pub fn sources() -> Vec<(String, String)> {
    let mut out = rust_files("src");
    out.retain(|(name, _)| !name.ends_with("tests.rs"));
    assert!(out.len() > 30, "the source was not found");
    out
}

/// Returns the lines of code: without comments, and without the tests at the end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end]
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Returns the code of a file as one text.
pub fn code_of(text: &str) -> String {
    let lines: Vec<&str> = code(text).map(|(_, line)| line).collect();
    lines.join("\n")
}

fn check(rule: &str, mut breaks: impl FnMut(&str, &str) -> bool) {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        for (number, line) in code(&text) {
            if breaks(&file, line) {
                broken.push(format!("src/{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(broken.is_empty(), "{rule}\n{}", broken.join("\n"));
}

#[test]
fn only_the_amqp_transport_knows_amiquip_and_mio() {
    check(
        "amiquip and mio stay in src/transport/amqp",
        |file, line| {
            !file.starts_with("transport/amqp/")
                && (line.contains("amiquip") || line.contains("mio::"))
        },
    );
}

#[test]
fn only_src_redis_knows_redis() {
    check("redis and r2d2 stay in src/redis", |file, line| {
        let is_ours = line.contains("mod redis;") || line.contains("pub use redis::");
        !file.starts_with("redis/")
            && !is_ours
            && (line.contains("redis::") || line.contains("r2d2"))
    });
}

#[test]
fn nothing_in_the_library_unwraps_or_prints() {
    check(
        "no unwrap, expect or print in library code",
        |file, line| {
            file != "transport/memory/model.rs"
                && [
                    ".unwrap()",
                    ".expect(",
                    "println!",
                    "todo!",
                    "unimplemented!",
                ]
                .iter()
                .any(|banned| line.contains(banned))
        },
    );
}

#[test]
fn every_thread_has_a_name() {
    check(
        "threads are made by Builder and named coney-…",
        |_, line| {
            line.contains("thread::spawn(")
                || (line.contains(".name(") && line.contains('"') && !line.contains("\"coney-"))
        },
    );
}

#[test]
fn files_hold_one_idea() {
    for (file, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= 400,
            "src/{file} has {lines} lines; is it one idea?"
        );
    }
}

#[test]
fn folders_have_an_index() {
    check(
        "mod.rs declares and exports modules, and nothing else",
        |file, line| {
            let kinds = [
                "fn ",
                "struct ",
                "enum ",
                "trait ",
                "impl",
                "const ",
                "static ",
                "macro_rules!",
            ];
            let line = line
                .trim_start()
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub ");
            file.ends_with("mod.rs") && kinds.iter().any(|kind| line.starts_with(kind))
        },
    );
}

#[test]
fn there_is_no_async_runtime() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock = fs::read_to_string(lock).unwrap();
    for name in [
        "tokio",
        "async-std",
        "smol",
        "async-executor",
        "embassy-executor",
    ] {
        assert!(!lock.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
