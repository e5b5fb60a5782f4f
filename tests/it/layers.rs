//! The house rules on imports: they point one way between the parts of the crate, and no
//! circle joins the files of a folder.

use std::collections::{BTreeMap, BTreeSet};

use super::tidy::{code_of, sources};

const CLIENT: &[&str] = &[
    "base",
    "error",
    "error_code",
    "error_kind",
    "message",
    "registry",
    "resilience",
    "topology",
    "transport",
    "verdict",
];

/// A server gives its handlers a client.
const SERVER: &[&str] = &[
    "base",
    "client",
    "consumer",
    "error",
    "error_code",
    "error_kind",
    "message",
    "registry",
    "resilience",
    "topology",
    "transport",
    "verdict",
];

/// The parts that each part of the crate may import.
const LAYERS: [(&str, &[&str]); 19] = [
    ("error_kind", &[]),
    ("error_code", &[]),
    ("verdict", &["error_code", "error_kind"]),
    ("error", &["error_kind", "verdict"]),
    ("base", &["error"]),
    ("message", &["base", "error"]),
    ("topology", &[]),
    ("transport", &["base", "error", "message", "topology"]),
    ("registry", &["base", "error"]),
    ("resilience", &["base", "error", "error_kind", "verdict"]),
    ("client", CLIENT),
    (
        "cache",
        &[
            "base",
            "client",
            "error",
            "error_kind",
            "message",
            "topology",
            "transport",
        ],
    ),
    ("consumer", SERVER),
    ("server", SERVER),
    ("events", SERVER),
    (
        "redis",
        &["base", "consumer", "error", "registry", "resilience"],
    ),
    ("dead_letters", SERVER),
    ("guide", &[]),
    (
        "internals",
        &["client", "message", "resilience", "transport"],
    ),
];

#[test]
fn imports_point_one_way() {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        let part = file.split(['/', '.']).next().unwrap_or_default();
        if part == "lib" {
            continue;
        }
        let allowed = LAYERS.iter().find(|(name, _)| *name == part);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{file} is in no layer"));
        for path in paths(&code_of(&text)) {
            let target = match path.split_first() {
                Some((first, rest)) if first == "crate" => rest.first().cloned(),
                _ => None,
            };
            if let Some(target) = target
                && LAYERS.iter().any(|(name, _)| *name == target)
                && target != part
                && !allowed.contains(&&*target)
            {
                broken.push(format!("src/{file} imports {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "see LAYERS:\n{}", broken.join("\n"));
}

/// A folder's files, and which of the others each imports. A subfolder counts as one file.
type Folder = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_circle_joins_the_files_of_a_folder() {
    let sources: BTreeMap<String, String> = sources().into_iter().collect();
    let mut broken = Vec::new();
    for index in sources.keys().filter(|file| file.ends_with("mod.rs")) {
        let folder = index.strip_suffix("/mod.rs").unwrap();
        let imports = imports_of(folder, &sources);
        let on_circle = |file: &String| reaches(&imports, file, file);
        let circle: Vec<&String> = imports.keys().filter(|file| on_circle(file)).collect();
        if !circle.is_empty() {
            broken.push(format!("src/{folder}: {circle:?}"));
        }
    }
    assert!(broken.is_empty(), "circles:\n{}", broken.join("\n"));
}

fn imports_of(folder: &str, sources: &BTreeMap<String, String>) -> Folder {
    let exports = exports(&sources[&format!("{folder}/mod.rs")]);
    let inside = |file: &str| {
        let rest = file.strip_prefix(folder)?.strip_prefix('/')?;
        let name = rest.split(['/', '.']).next()?;
        (name != "mod").then(|| name.to_owned())
    };
    let names: BTreeSet<String> = sources.keys().filter_map(|file| inside(file)).collect();
    let at: Vec<&str> = std::iter::once("crate").chain(folder.split('/')).collect();
    let mut imports = Folder::new();
    for (file, text) in sources {
        let Some(name) = inside(file) else { continue };
        // The path of the module: `super` stands for all but its last part.
        let module: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
        let depth = module.len() - usize::from(module.last() == Some(&"mod"));
        let targets = imports.entry(name.clone()).or_default();
        for path in paths(&code_of(text)) {
            let supers = path.iter().take_while(|part| *part == "super").count();
            let absolute: Vec<&str> = match supers {
                0 => path.iter().map(String::as_str).collect(),
                _ => std::iter::once("crate")
                    .chain(module[..depth.saturating_sub(supers)].iter().copied())
                    .chain(path[supers..].iter().map(String::as_str))
                    .collect(),
            };
            let Some(leaf) = absolute.strip_prefix(&*at).and_then(<[_]>::first) else {
                continue;
            };
            let target = exports.get(*leaf).map_or(*leaf, String::as_str);
            if names.contains(target) && target != name {
                targets.insert(target.to_owned());
            }
        }
    }
    imports
}

/// Returns the names that an index re-exports, and from which file.
fn exports(index: &str) -> BTreeMap<String, String> {
    let paths = paths(index).into_iter();
    paths
        .filter_map(|path| match &path[..] {
            [start, file, .., name] if start == "self" => Some((name.clone(), file.clone())),
            _ => None,
        })
        .collect()
}

fn reaches(imports: &Folder, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(file) = open.pop() {
        for next in imports.get(file).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    false
}

/// Returns every path in the text that begins with `crate`, `self` or `super`, the ones in braces
/// one by one.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "self::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back().unwrap_or(' ');
            if !before.is_alphanumeric() && before != '_' && before != ':' {
                path(&text[at..], &mut Vec::new(), &mut found);
            }
        }
    }
    found
}

/// Reads one path, which may branch in braces, and returns the text after it.
fn path<'t>(mut text: &'t str, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'t str {
    let depth = before.len();
    loop {
        text = text.trim_start();
        if let Some(mut rest) = text.strip_prefix('{') {
            while !rest.trim_start().starts_with('}') && !rest.trim_start().is_empty() {
                rest = path(rest, before, found).trim_start();
                rest = rest.strip_prefix(',').unwrap_or(rest);
            }
            before.truncate(depth);
            return rest.trim_start().strip_prefix('}').unwrap_or(rest);
        }
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        let end = end.unwrap_or(text.len());
        if end == 0 {
            // A star, or something that is no path.
            before.truncate(depth);
            return text.get(1..).unwrap_or_default();
        }
        before.push(text[..end].to_owned());
        text = &text[end..];
        match text.strip_prefix("::") {
            Some(rest) => text = rest,
            None => {
                found.push(before.clone());
                before.truncate(depth);
                let rest = text.trim_start();
                return match rest.strip_prefix("as ") {
                    Some(alias) => alias.trim_start().trim_start_matches(char::is_alphanumeric),
                    None => text,
                };
            }
        }
    }
}

#[test]
fn paths_are_read_whatever_their_form() {
    let text = "use crate::a::{self, b::{C, d}, e}; fn f() { super::super::g::h(); x::crate_::y }";
    let read: Vec<String> = paths(text).iter().map(|path| path.join("::")).collect();
    let wanted = [
        "crate::a::self",
        "crate::a::b::C",
        "crate::a::b::d",
        "crate::a::e",
        "super::super::g::h",
    ];
    assert_eq!(read, wanted);
}
