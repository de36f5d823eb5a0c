//! The documents say what the sources say, and the sources keep the rules that no lint knows.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what sets a test up may end it; the exemption of tests does not reach these functions"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use xtask::{edges, root, table};

/// The level of each crate: a crate depends only on lower levels, but for level 3, where the
/// command links the others for `aegis up`.
fn level(name: &str) -> u8 {
    match name {
        "aegis-core" | "aegis-runtime" => 0,
        "aegis-policy" | "aegis-audit" | "aegis-identity" | "aegis-protocol"
        | "aegis-resources" | "aegis-api" => 1,
        "aegis-kernel" | "aegis-mesh" => 2,
        "aegis-sidecar" | "aegis-ca" | "aegis-ledger" | "aegis-operator" => 3,
        "aegis" => 4,
        "aegis-e2e" | "xtask" => 5,
        other => panic!("{other} has no level; add it here and to ARCHITECTURE.md"),
    }
}

fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["crates", "sidecar", "ca", "ledger", "operator", "cli", "e2e", "xtask"]
            .iter()
            .map(|folder| root().join(folder))
            .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

#[test]
fn dependencies_point_downwards() {
    for (name, dependencies) in edges().unwrap() {
        for dependency in dependencies {
            assert!(level(&dependency) < level(&name), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn architecture_lists_the_edges_as_they_are() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let listed = text
        .split_once("<!-- edges:begin -->")
        .and_then(|(_, rest)| rest.split_once("<!-- edges:end -->"))
        .map(|(listed, _)| listed.trim())
        .expect("ARCHITECTURE.md has an edges table between its marks");
    assert_eq!(listed, table(&edges().unwrap()).trim(), "run `cargo run -p xtask`");
}

#[test]
fn core_is_pure() {
    let manifest = fs::read_to_string(root().join("crates/aegis-core/Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dev-dependencies]").next().unwrap();
    for framework in ["tokio", "hyper", "kube", "sqlx", "rustls", "rand"] {
        assert!(!dependencies.contains(framework), "aegis-core must not depend on {framework}");
    }
    for file in
        sources().iter().filter(|file| file.starts_with(root().join("crates/aegis-core/src")))
    {
        let text = fs::read_to_string(file).unwrap();
        for forbidden in ["std::fs", "std::env", "std::net", "SystemTime", "Instant::now"] {
            assert!(!text.contains(forbidden), "{}: core must not use {forbidden}", file.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        let first = text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        assert!(
            first.starts_with("//!") || first.starts_with("// @generated"),
            "{} has no `//!`",
            file.display()
        );
    }
}

#[test]
fn no_module_is_a_grab_bag() {
    for file in sources() {
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        for name in ["util", "utils", "common", "helpers", "misc", "support"] {
            assert_ne!(stem, name, "{}: name the concept instead", file.display());
        }
    }
}

/// The one word that ends a type's name says what it is: there is one Decision in the workspace.
#[test]
fn one_decision_and_one_score() {
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        for line in text
            .lines()
            .filter(|line| line.starts_with("pub struct ") || line.starts_with("pub enum "))
        {
            let name: String = line
                .split_whitespace()
                .nth(2)
                .unwrap_or_default()
                .chars()
                .take_while(|c| c.is_alphanumeric())
                .collect();
            if name.ends_with("Decision") || name.ends_with("Score") {
                found.insert(name, file.clone());
            }
        }
    }
    assert_eq!(
        found.keys().map(String::as_str).collect::<Vec<_>>(),
        ["Decision", "TrustScore"],
        "{found:?}"
    );
}

#[test]
fn adrs_are_numbered_without_gaps() {
    let mut numbers: Vec<u32> = fs::read_dir(root().join("docs/adr"))
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.get(..4)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    assert!(!numbers.is_empty());
    assert_eq!(numbers, (1..=u32::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
}

#[test]
fn paths_that_documents_name_exist() {
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/operations.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            let looks_like_a_path = quoted.contains('/')
                && !quoted.contains([' ', '*', '<', '{', '$', ':', '~', '…'])
                && [
                    "crates/",
                    "sidecar/",
                    "ca/",
                    "ledger/",
                    "operator/",
                    "crds/",
                    "cli/",
                    "e2e/",
                    "docs/",
                    "policies/",
                    "bench/",
                    "fuzz/",
                ]
                .iter()
                .any(|folder| quoted.starts_with(folder));
            if looks_like_a_path {
                assert!(Path::new(&root().join(quoted)).exists(), "{document} names `{quoted}`");
            }
        }
    }
}
