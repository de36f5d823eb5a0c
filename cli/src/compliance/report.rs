//! `aegis compliance report`: one pass over the ledger, every entry of which is hashed into the tree
//! of the checkpoint that the report names, and proofs of the entries that it cites.
//!
//! A ledger that does not lead to its checkpoint gets no report.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use aegis_audit::{Checkpoint, Entry, TlogProof, Verifier, checkpoint, tree};
use aegis_core::{Digest, Timestamp};
use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    framework::{Control, Framework},
    html, list,
    tally::{Line, Period, Source, Tally},
};
use crate::{
    Context, Outcome,
    audit::{self, beside},
    log::Log,
    output::{self, Format, Progress, Text, Tone},
    policy::folder,
    up,
};

/// Report which controls the ledger holds evidence for, each line with entries and their proofs
///
/// A report counts what is recorded; it does not say that a control is met. Every entry under the
/// latest checkpoint is hashed on the way, so that what is counted is what was signed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis compliance report --framework soc2 --since 2026-01-01T00:00:00Z -O soc2.html\n  aegis compliance report --database copy-of-ledger.db --key \"$(cat log.key)\" -o json > report.json\n\nExit codes: 0 done, 1 the log does not hold or --check fails, 2 wrong usage."
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: audit::Source,
    /// For this framework: eu-ai-act, gdpr, hipaa, soc2, or a file; may be repeated. Default: all four
    #[arg(long, value_name = "NAME|FILE", value_parser = list::framework)]
    framework: Vec<Framework>,
    /// Entries at or after this time (RFC 3339)
    #[arg(long)]
    since: Option<Timestamp>,
    /// Entries before this time (RFC 3339)
    #[arg(long)]
    until: Option<Timestamp>,
    /// The log's verifier key, from somebody you trust; without it the log's own word is taken
    #[arg(long, value_name = "VKEY")]
    key: Option<Verifier>,
    /// Take the controls of policies from these folders and files too, as versions that spoke name them
    #[arg(long, value_name = "DIR|FILE")]
    policies: Vec<PathBuf>,
    /// How many entries are cited per line: the first, and the newest ones
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    cite: u16,
    /// Write the report to this file: as JSON if its name ends in .json, as HTML if in .html
    #[arg(short = 'O', long, value_name = "FILE", value_parser = report_file)]
    out: Option<PathBuf>,
    /// Write the proof of each cited entry into this folder, as `aegis audit prove` does
    #[arg(long, value_name = "DIR")]
    proofs: Option<PathBuf>,
    /// Exit 1 if a control that can be shown has no evidence, or something speaks against it
    #[arg(long)]
    check: bool,
}

fn report_file(name: &str) -> Result<PathBuf, String> {
    let known = [".html", ".json"].iter().any(|ending| name.ends_with(ending));
    known.then(|| PathBuf::from(name)).ok_or_else(|| "the name must end in .html or .json".into())
}

/// A report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// When it was made.
    pub(crate) made: Timestamp,
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
    pub(crate) log: Stand,
    pub(crate) frameworks: Vec<Section>,
    /// The entries that lines cite, by index.
    pub(crate) entries: BTreeMap<u64, Cited>,
}

/// What a report stands on.
#[derive(Debug, Serialize)]
pub(crate) struct Stand {
    pub(crate) origin: String,
    pub(crate) size: u64,
    pub(crate) root: Digest,
    /// The signed note.
    pub(crate) checkpoint: String,
    pub(crate) key: String,
    /// Whether the key was given, or is the log's own word.
    pub(crate) key_given: bool,
    /// Entries of the period.
    pub(crate) entries: u64,
    pub(crate) first: Option<Timestamp>,
    pub(crate) last: Option<Timestamp>,
}

/// One framework's part.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) edition: String,
    pub(crate) about: String,
    pub(crate) controls: Vec<Finding>,
    /// What policies' tags name that cannot be counted.
    pub(crate) doubts: Vec<String>,
}

/// What the ledger says about one control.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) asks: String,
    pub(crate) status: Status,
    pub(crate) evidence: Vec<Row>,
    pub(crate) limits: Option<String>,
    pub(crate) nothing: Option<String>,
}

/// Where a control stands in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// There is evidence.
    Evidence,
    /// There is something that speaks against it.
    Against,
    /// Nothing of it happened in the period, or nothing was recorded.
    NoEvidence,
    /// Nothing here can show it.
    CannotBeShown,
}

impl Status {
    /// In words.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Evidence => "evidence",
            Self::Against => "look here",
            Self::NoEvidence => "no evidence",
            Self::CannotBeShown => "cannot be shown",
        }
    }

    pub(crate) const fn tone(self) -> Tone {
        match self {
            Self::Evidence => Tone::Good,
            Self::Against => Tone::Bad,
            Self::NoEvidence | Self::CannotBeShown => Tone::Warn,
        }
    }
}

/// One line of evidence.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) shows: String,
    pub(crate) against: bool,
    pub(crate) count: u64,
    pub(crate) first: Option<Timestamp>,
    pub(crate) last: Option<Timestamp>,
    /// Indices of the entries that are cited.
    pub(crate) entries: Vec<u64>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) policies: BTreeSet<String>,
}

/// A cited entry with what proves it.
#[derive(Debug, Serialize)]
pub(crate) struct Cited {
    /// In its canonical bytes.
    pub(crate) entry: Box<RawValue>,
    /// The text of a `.tlog-proof`.
    pub(crate) proof: String,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let frameworks = list::chosen(&args.framework)?;
    let log = Log::open(args.source.database.as_ref(), &cx.client).await?;
    let note = log.checkpoint().await?;
    let key = match &args.key {
        Some(key) => key.clone(),
        None => log.key().await?,
    };
    let signed = checkpoint::open(&key, &note).context("the log's checkpoint is refused")?;
    let period = Period { since: args.since, until: args.until };
    let mut tally = Tally::new(&frameworks, period, usize::from(args.cite));
    tag(&mut tally, &args.policies)?;
    fold(&log, &signed, &mut tally).await?;
    let entries = cite(&log, &signed, &note, &key, &tally).await?;
    let (first, last) = tally.all.span().unzip();
    let report = Report {
        made: up::now(),
        since: args.since,
        until: args.until,
        log: Stand {
            origin: signed.origin,
            size: signed.head.size,
            root: signed.head.root,
            checkpoint: note,
            key: key.to_string(),
            key_given: args.key.is_some(),
            entries: tally.all.count,
            first,
            last,
        },
        frameworks: sections(&frameworks, &tally),
        entries,
    };
    if let Some(folder) = &args.proofs {
        write_proofs(folder, &report.entries)?;
    }
    if let Some(file) = &args.out {
        let json = file.extension().is_some_and(|ending| ending == "json");
        let text = if json { serde_json::to_string_pretty(&report)? } else { html::page(&report) };
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    match (cx.format, &args.out) {
        (Format::Json, None) => output::json(&report)?,
        (Format::Json, Some(file)) => output::json(&serde_json::json!({ "file": file }))?,
        (Format::Text, _) => show(&report, &args).print()?,
    }
    let lacking = report.frameworks.iter().flat_map(|section| &section.controls);
    let lacks = lacking
        .filter(|control| matches!(control.status, Status::NoEvidence | Status::Against))
        .count();
    Ok(if args.check && lacks > 0 { Outcome::Failed } else { Outcome::Done })
}

/// Notes the controls of policies in folders and files.
fn tag(tally: &mut Tally<'_>, paths: &[PathBuf]) -> anyhow::Result<()> {
    let (resources, problems) = folder::read(paths)?;
    if let Some(problem) = problems.first() {
        anyhow::bail!("{problem}");
    }
    for policy in folder::policies(&resources) {
        tally.tag(policy.digest()?, &policy.id.to_string(), &policy.spec.compliance);
    }
    Ok(())
}

/// Counts every entry under the checkpoint, and checks that they are those that it covers.
async fn fold(log: &Log, signed: &Checkpoint, tally: &mut Tally<'_>) -> anyhow::Result<()> {
    let size = signed.head.size;
    let mut tree = tree::Frontier::default();
    let mut progress = Progress::new("entries counted");
    log.each(size, |record| {
        tree.push(tree::leaf_hash(&record.body));
        let entry = Entry::parse(&record.body)
            .with_context(|| format!("entry {} cannot be counted", record.index))?;
        tally.add(record.index, &entry);
        progress.at(record.index + 1, size);
        Ok(())
    })
    .await?;
    drop(progress);
    ensure!(
        tree.root() == signed.head.root,
        "the log's entries are not those that its checkpoint covers, so there is no report; run `aegis audit verify`"
    );
    Ok(())
}

/// The entries that lines cite, each with its proof against the one checkpoint.
async fn cite(
    log: &Log,
    signed: &Checkpoint,
    note: &str,
    key: &Verifier,
    tally: &Tally<'_>,
) -> anyhow::Result<BTreeMap<u64, Cited>> {
    let indices: BTreeSet<u64> = tally.lines.iter().flat_map(|line| line.seen.cited()).collect();
    let mut cited = BTreeMap::new();
    for index in indices {
        let body = log.body(index).await?;
        let path = log.inclusion(index, signed.head.size).await?;
        let proof = TlogProof { extra: None, index, path, checkpoint: note.to_owned() };
        proof
            .verify(key, &body)
            .with_context(|| format!("entry {index} cannot be proven; run `aegis audit verify`"))?;
        let entry = serde_json::from_slice(&body)?;
        cited.insert(index, Cited { entry, proof: proof.to_text() });
    }
    Ok(cited)
}

fn sections(frameworks: &[Framework], tally: &Tally<'_>) -> Vec<Section> {
    let mut sections = Vec::new();
    for (at, framework) in frameworks.iter().enumerate() {
        let finding = |(number, control): (usize, &Control)| {
            let lines = tally.lines.iter();
            let of_this = lines.filter(|line| (line.framework, line.control) == (at, number));
            finding(control, of_this)
        };
        let doubts = tally.doubts.get(&at).into_iter().flatten().cloned().collect();
        sections.push(Section {
            id: framework.id.clone(),
            title: framework.title.clone(),
            edition: framework.edition.clone(),
            about: framework.about.clone(),
            controls: framework.controls.iter().enumerate().map(finding).collect(),
            doubts,
        });
    }
    sections
}

fn finding<'a>(control: &Control, lines: impl Iterator<Item = &'a Line>) -> Finding {
    let mut evidence: Vec<Row> = Vec::new();
    for line in lines {
        let (shows, against) = match line.source {
            Source::Evidence(number) => match control.evidence.get(number) {
                Some(evidence) => (evidence.shows.clone(), evidence.against),
                None => continue,
            },
            Source::Enforced if line.seen.count > 0 || control.by_policies => {
                ("Decisions of policies that carry this control's tag".to_owned(), false)
            }
            Source::Audited if line.seen.count > 0 => (
                "The same in audit mode: recorded, and nothing was refused or asked".to_owned(),
                false,
            ),
            Source::Enforced | Source::Audited => continue,
        };
        let (first, last) = line.seen.span().unzip();
        evidence.push(Row {
            shows,
            against,
            count: line.seen.count,
            first,
            last,
            entries: line.seen.cited().collect(),
            policies: line.policies.clone(),
        });
    }
    let any = |against: bool| evidence.iter().any(|row| row.against == against && row.count > 0);
    let status = match control.nothing {
        Some(_) => Status::CannotBeShown,
        None if any(true) => Status::Against,
        None if any(false) => Status::Evidence,
        None => Status::NoEvidence,
    };
    Finding {
        id: control.id.clone(),
        title: control.title.clone(),
        asks: control.asks.clone(),
        status,
        evidence,
        limits: control.limits.clone(),
        nothing: control.nothing.clone(),
    }
}

/// Each as `aegis audit check-proof` reads it.
fn write_proofs(folder: &Path, entries: &BTreeMap<u64, Cited>) -> anyhow::Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    for (index, cited) in entries {
        let file = folder.join(format!("{index}.tlog-proof"));
        for (path, text) in [(&file, cited.proof.as_str()), (&beside(&file), cited.entry.get())] {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

fn show(report: &Report, args: &Args) -> Text {
    let mut text = Text::new();
    let log = &report.log;
    text.field("checkpoint", format!("{}, {} entries, root {}", log.origin, log.size, log.root));
    text.field("in the period", format!("{} of them", log.entries));
    for section in &report.frameworks {
        text.line(format!("{} ({})", section.title, section.edition));
        for control in &section.controls {
            let found: u64 = control.evidence.iter().map(|row| row.count).sum();
            let line = format!(
                "  {:<16} {:<24} {} ({found})",
                control.status.words(),
                control.id,
                control.title
            );
            text.toned(control.status.tone(), line);
        }
        for doubt in &section.doubts {
            text.toned(Tone::Warn, format!("  doubt: {doubt}"));
        }
    }
    text.line("Evidence is counted, not judged: that a control is met is for a person to say.");
    if !log.key_given {
        text.toned(
            Tone::Warn,
            format!(
                "note: the key was read from the log itself; give the key that you trust: {}",
                log.key
            ),
        );
    }
    for path in args.out.iter().chain(&args.proofs) {
        text.line(format!("written: {}", path.display()));
    }
    text
}
