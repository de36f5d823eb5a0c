//! `aegis init`: a commented folder to start from. It overwrites nothing.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use aegis_core::Sponsor;
use anyhow::{Context as _, bail};

use crate::{
    Outcome,
    output::{Text, Tone},
};

/// Write a commented folder to start from: identity, upstream, policy, thresholds, tests
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis init aegis.d")]
pub(crate) struct Args {
    /// The folder, created if need be
    #[arg(default_value = "aegis.d", value_name = "DIR")]
    folder: PathBuf,
}

const IDENTITY: &str = include_str!("init/identity.yaml");
const UPSTREAM: &str = include_str!("init/upstream.yaml");
const POLICY: &str = include_str!("init/policy.yaml");
const THRESHOLDS: &str = include_str!("init/thresholds.yaml");
const SANDBOX: &str = include_str!("init/sandbox.yaml");

/// Who answers for the agent where nothing tells.
const UNKNOWN_SPONSOR: &str = "you@example.com";

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let folder = &args.folder;
    let data = data_folder(folder)?;
    let uid = nix::unistd::getuid().to_string();
    let data_text = data.to_str().with_context(|| {
        format!("the path {} is not UTF-8; choose another folder", data.display())
    })?;
    let files = [
        ("identity.yaml", IDENTITY.replace("{{uid}}", &uid).replace("{{sponsor}}", &sponsor())),
        // A JSON string is a YAML string, whatever the path holds.
        ("upstream.yaml", UPSTREAM.replace("{{data}}", &serde_json::to_string(data_text)?)),
        ("policy.yaml", POLICY.to_owned()),
        ("thresholds.yaml", THRESHOLDS.to_owned()),
        ("sandbox/starter.yaml", SANDBOX.to_owned()),
    ];
    for (name, _) in &files {
        let path = folder.join(name);
        if path.symlink_metadata().is_ok() {
            bail!("{} exists already; nothing was written: choose another folder", path.display());
        }
    }
    for (name, text) in &files {
        write(&folder.join(name), text)?;
    }
    fs::create_dir_all(&data)
        .with_context(|| format!("cannot create the folder {}", data.display()))?;
    announce(folder, &data, files.iter().map(|(name, _)| *name)).print()?;
    Ok(Outcome::Done)
}

/// What the example server may touch: beside the configuration and never in it, so that no agent
/// can write a policy.
fn data_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    let here = env::current_dir().context("cannot tell the current folder")?;
    let whole = here.join(folder);
    let parent = whole.parent().unwrap_or(&whole);
    Ok(parent.join("agent-files"))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    // Another process may have come first: then nothing of it is lost.
    fs::File::create_new(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The address that git knows its user by.
fn sponsor() -> String {
    let asked = Command::new("git")
        .args(["config", "user.email"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let told = asked.ok().filter(|output| output.status.success());
    told.and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|text| text.trim().parse::<Sponsor>().ok())
        .map_or_else(|| UNKNOWN_SPONSOR.to_owned(), |sponsor| sponsor.to_string())
}

fn announce<'a>(folder: &Path, data: &Path, files: impl Iterator<Item = &'a str>) -> Text {
    let mut text = Text::new();
    for name in files {
        text.toned(Tone::Good, format!("wrote {}", folder.join(name).display()));
    }
    text.line(format!("The example server may touch {} and nothing else.", data.display()));
    text.line("Next:");
    let shown = folder.display();
    text.items(&[
        format!("aegis policy check {shown}"),
        format!("aegis policy test {shown}"),
        format!("aegis up --config {shown}"),
    ]);
    text
}
