//! The rules of the house: who may use whom, and documentation in step with the code.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::PathBuf};

use enforcer_tests::sources::{code, root, sources};

/// Lines of a module that name something that it must not know.
fn offences(module: &str, forbidden: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources(&format!("enforcer/src/{module}")) {
        if path.ends_with("tests.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            if forbidden.iter().any(|word| line.contains(word)) {
                found.push(format!("{}: {}", path.display(), line.trim()));
            }
        }
    }
    found
}

#[test]
fn pure_stages_know_no_kernel_no_files_and_no_clock() {
    let forbidden = [
        "aya",
        "tokio",
        "tracing",
        "std::fs",
        "Instant",
        "SystemTime",
        "crate::kernel",
        "crate::actuation",
        "crate::report",
    ];
    for module in ["signal", "decision"] {
        assert_eq!(offences(module, &forbidden), [""; 0], "{module}");
    }
}

#[test]
fn stages_know_nobody_to_their_right() {
    for (module, forbidden) in [
        (
            "kernel",
            &["crate::decision", "crate::actuation", "crate::report", "crate::agent", "crate::cgroup"][..],
        ),
        (
            "cgroup",
            &["crate::decision", "crate::actuation", "crate::report", "crate::agent", "crate::kernel"],
        ),
        (
            "policy",
            &["crate::decision", "crate::actuation", "crate::report", "crate::agent", "crate::kernel"],
        ),
        ("actuation", &["crate::kernel", "crate::report", "crate::agent"]),
        ("report", &["crate::actuation", "crate::agent"]),
    ] {
        assert_eq!(offences(module, forbidden), [""; 0], "{module}");
    }
}

#[test]
fn every_metric_is_documented_and_every_documented_one_exists() {
    let code = code("enforcer/src/report/metrics");
    let docs = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let tables: String = docs.lines().filter(|line| line.starts_with('|')).collect();
    let names = |text: &str, open: char, close: char| -> Vec<String> {
        let parts = text.split(open).skip(1).filter_map(|part| part.split_once(close));
        let is_metric = |name: &&str| name.starts_with("enforcer_") || name.starts_with("process_");
        parts.map(|(name, _)| name).filter(is_metric).map(str::to_owned).collect()
    };
    for name in names(&code, '"', '"') {
        assert!(tables.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
    }
    for name in names(&tables, '`', '`') {
        assert!(code.contains(&format!("\"{name}\"")), "{name} is documented and does not exist");
    }
}

#[test]
fn the_tests_that_the_docs_name_exist() {
    let docs = fs::read_to_string(root().join("docs/requests.md")).unwrap();
    let tests = fs::read_to_string(root().join("tests/tests/kernel/main.rs")).unwrap();
    let tables = docs.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.rsplit('|').nth(1));
    let named: Vec<&str> = tables.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 10, "{named:?}");
    for name in named.into_iter().filter(|name| !name.contains('/')) {
        assert!(tests.contains(&format!("\"{name}\"")), "docs/requests.md names {name}, which is no test");
    }
}

#[test]
fn the_readme_shows_the_example_policy_as_it_is() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(
        readme.contains(enforcer::policy::EXAMPLE.trim()),
        "copy enforcer/src/policy/example.yaml into README.md"
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<PathBuf> = ["enforcer/src", "enforcer-ebpf/src", "xtask/src", "tests"]
        .iter()
        .flat_map(|directory| sources(directory))
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn nothing_unfinished_is_left_lying() {
    let words = ["todo!(", "unimplemented!(", "dbg!(", concat!("FIX", "ME"), concat!("TO", "DO")];
    for directory in ["enforcer", "enforcer-ebpf", "xtask", "tests"] {
        for (path, text) in sources(directory) {
            let is_this_file = path.ends_with("tests/tests/tidy.rs");
            let found = words.iter().find(|word| !is_this_file && text.contains(**word));
            assert_eq!(found, None, "{}", path.display());
        }
    }
}
