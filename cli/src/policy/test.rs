//! `aegis policy test`: the sandboxes and Rego tests of packs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aegis_policy::sandbox::{PackReport, run_pack};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{check, folder};
use crate::{
    Context, Outcome,
    output::{self, Format, Progress, Text, Tone},
};

/// Run the tests of policy packs: folders with policy.yaml, sandbox/*.yaml and *_test.rego
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis policy test policies")]
pub(crate) struct Args {
    /// Packs, or folders that hold packs
    #[arg(default_value = ".", value_name = "DIR")]
    folders: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args, cx: &Context) -> anyhow::Result<Outcome> {
    let mut packs = Vec::new();
    for folder in &args.folders {
        find_packs(folder, &mut packs, 0)
            .with_context(|| format!("cannot read the folder {}", folder.display()))?;
    }
    packs.sort();
    if packs.is_empty() {
        bail!("there is no pack to test: a pack is a folder with policy.yaml and sandbox/*.yaml");
    }
    let (compiler, engines) = (folder::compiler()?, folder::engines()?);
    let mut reports = Vec::new();
    let mut progress = Progress::new("packs tested");
    for pack in &packs {
        let report = run_pack(pack, &compiler, &engines)
            .with_context(|| format!("the pack {} cannot be tested", pack.display()))?;
        reports.push((pack.as_path(), report));
        progress.at(reports.len() as u64, packs.len() as u64);
    }
    drop(progress);
    let sound = reports.iter().all(|(_, report)| passes(report));
    match cx.format {
        Format::Json => {
            let told: Vec<Value> = reports.iter().map(|(pack, r)| as_json(pack, r)).collect();
            output::json(&json!({ "ok": sound, "packs": told }))?;
        }
        Format::Text => {
            let mut text = Text::new();
            for (pack, report) in &reports {
                tell(&mut text, pack, report);
            }
            text.print()?;
        }
    }
    Ok(if sound { Outcome::Done } else { Outcome::Failed })
}

fn find_packs(folder: &Path, packs: &mut Vec<PathBuf>, depth: u8) -> std::io::Result<()> {
    if folder.join("policy.yaml").is_file() && folder.join("sandbox").is_dir() {
        packs.push(folder.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !path.is_symlink() && !hidden && depth < 8 {
            find_packs(&path, packs, depth + 1)?;
        }
    }
    Ok(())
}

fn passes(report: &PackReport) -> bool {
    report.policies.iter().all(check::is_ready)
        && report.cases.iter().all(|case| case.problem.is_none())
        && report.rego.as_ref().is_none_or(|(passed, _)| *passed)
}

fn as_json(pack: &Path, report: &PackReport) -> Value {
    let cases: Vec<Value> = report
        .cases
        .iter()
        .map(|case| json!({ "file": case.file, "name": case.name, "problem": case.problem }))
        .collect();
    let policies: Vec<Value> = report
        .policies
        .iter()
        .map(|status| {
            json!({
                "policy": status.policy.to_string(), "ready": check::is_ready(status),
                "message": status.message,
            })
        })
        .collect();
    let rego = report.rego.as_ref().map(|(passed, said)| json!({ "ok": passed, "output": said }));
    json!({
        "pack": pack, "ok": passes(report), "policies": policies, "cases": cases, "rego": rego,
    })
}

fn tell(text: &mut Text, pack: &Path, report: &PackReport) {
    let (tone, word) = if passes(report) { (Tone::Good, "ok") } else { (Tone::Bad, "failed") };
    let cases = report.cases.len();
    text.toned(tone, format!("{word:<6} {}: {cases} cases", pack.display()));
    for status in report.policies.iter().filter(|status| !check::is_ready(status)) {
        check::tell(text, status, None);
    }
    for case in &report.cases {
        if let Some(problem) = &case.problem {
            let file = case.file.display();
            text.toned(Tone::Bad, format!("       {file}: {}: {problem}", case.name));
        }
    }
    if let Some((false, said)) = &report.rego {
        text.items(&said.lines().collect::<Vec<_>>());
    }
}
