//! What the repository says about itself, read from the sources: for `xtask edges` and for the
//! tests that keep the documents true.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use serde_json::Value;

/// Which crates of the workspace each crate depends on, tests apart.
pub type Edges = BTreeMap<String, BTreeSet<String>>;

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Reads the edges from `cargo metadata`.
///
/// # Errors
/// When cargo does not answer.
pub fn edges() -> anyhow::Result<Edges> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .context("cannot run cargo")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata.get("packages").and_then(Value::as_array);
    let packages = packages.context("cargo metadata lists no packages")?;
    let name =
        |value: &Value| value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    let edges = packages.iter().map(|package| {
        let dependencies = package.get("dependencies").and_then(Value::as_array);
        let dependencies = dependencies.into_iter().flatten();
        let within = dependencies
            .filter(|dependency| dependency.get("kind").is_none_or(Value::is_null))
            .map(name)
            .filter(|dependency| members.contains(dependency));
        (name(package), within.collect())
    });
    Ok(edges.collect())
}

/// The edges as the table of ARCHITECTURE.md.
#[must_use]
pub fn table(edges: &Edges) -> String {
    let mut table = "| crate | depends on |\n|---|---|\n".to_owned();
    for (name, dependencies) in edges {
        let listed: Vec<&str> = dependencies.iter().map(String::as_str).collect();
        let listed = if listed.is_empty() { "–".to_owned() } else { listed.join(", ") };
        table.push_str(&format!("| {name} | {listed} |\n"));
    }
    table
}
