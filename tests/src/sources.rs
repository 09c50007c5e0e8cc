//! The project's own sources, for tests that hold them to something.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the project is.
///
/// # Panics
/// If the tests are nowhere.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the project").to_owned()
}

/// All Rust files at or below a path, with their text.
///
/// # Panics
/// If there are none, or one cannot be read.
pub fn sources(path: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut left = vec![root().join(path)];
    let read =
        |path: &Path| fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
            left.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.clone(), read(&path)));
        }
    }
    assert!(!found.is_empty(), "no sources in {path}");
    found
}

/// The text of all of them in one.
pub fn code(path: &str) -> String {
    sources(path).into_iter().map(|(_, text)| text).collect()
}
