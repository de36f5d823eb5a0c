//! `cargo run -p xtask` prints the edges table for ARCHITECTURE.md; `cargo run -p xtask -- crds
//! FOLDER` writes the CustomResourceDefinitions.

use std::{env, fs, path::Path};

use anyhow::Context as _;

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => print!("{}", xtask::table(&xtask::edges()?)),
        ["crds", folder] => crds(Path::new(folder))?,
        _ => anyhow::bail!("expected nothing, or `crds FOLDER`"),
    }
    Ok(())
}

/// Writes one file for each kind; a file of a kind that is no more is removed.
fn crds(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let files = aegis_resources::crd::yaml_files()?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let known = files.iter().any(|(name, _)| path.ends_with(name));
        if !known && path.extension().is_some_and(|extension| extension == "yaml") {
            fs::remove_file(&path)?;
        }
    }
    for (name, yaml) in files {
        let path = folder.join(name);
        fs::write(&path, yaml).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
