//! `aegis import`: policies of Agent OS and AgentMesh as policies of Aegis.
//!
//! Every field of the file is enforced by what is written, or refused by name with its line. Where a
//! field is refused nothing is written, unless `--partial` asks for the rest.

mod agent_os_template;
mod cases;
mod emit;
mod expression;
mod listed;
mod narrow;
mod proxy;
mod rules;
mod template;

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use serde_json::json;

use agent_os_template::ToolNames;
use emit::{Document, Imported};
use template::{Field, Refusal, Template};

use crate::{
    Context, Outcome,
    output::{self, Format, Text, Tone, count},
};

/// Translate policies of Agent OS and AgentMesh into policies of Aegis
///
/// Each field of the file is enforced by the result, or refused by name with its line. If any is
/// refused, nothing is written and the exit code is 1; with --partial the rest is written. An entry is
/// left out whole where a field that narrows it is refused; a ban that is left out bans nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis import hipaa.yaml --tool database_read=query,run_sql -O aegis.d/hipaa.yaml\n  aegis policy check aegis.d"
)]
pub(crate) struct Args {
    /// The file: YAML or JSON
    file: PathBuf,
    /// What it is; default: told by its fields
    #[arg(long, value_enum)]
    from: Option<Origin>,
    /// An action of an Agent OS template and the tools that do it here, as ACTION=TOOL[,TOOL…]; globs
    /// are taken; may be repeated
    #[arg(long = "tool", value_name = "ACTION=TOOLS", value_parser = tool_names)]
    tools: Vec<(String, Vec<String>)>,
    /// What the policies are called; default: what the file calls itself
    #[arg(long, value_parser = label)]
    name: Option<String>,
    /// Write AgentPolicies of this namespace; default: ClusterAgentPolicies
    #[arg(long, value_parser = label)]
    namespace: Option<String>,
    /// Write what can be enforced, though fields are refused; they are named in it
    #[arg(long)]
    partial: bool,
    /// Where the policies go; default: standard output
    #[arg(short = 'O', long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Origin {
    /// Agent OS, a template with `kernel` and `policies`
    AgentOsTemplate,
    /// Agent OS, a PolicyDocument with `rules` and `defaults`
    AgentOsDocument,
    /// AgentMesh, a governance policy with conditions as text
    AgentmeshGovernance,
    /// AgentMesh, a trust policy
    AgentmeshTrust,
    /// AgentMesh, a policy of its MCP proxy
    AgentmeshProxy,
}

fn tool_names(text: &str) -> Result<(String, Vec<String>), String> {
    let (action, tools) = text.split_once('=').ok_or("expected ACTION=TOOL[,TOOL…]")?;
    let tools: Vec<String> = tools
        .split(',')
        .map(str::trim)
        .filter(|tool| !tool.is_empty())
        .map(str::to_owned)
        .collect();
    if tools.is_empty() {
        return Err("expected at least one tool after `=`".into());
    }
    Ok((action.trim().to_owned(), tools))
}

fn label(text: &str) -> Result<String, String> {
    aegis_resources::is_label(text)
        .then(|| text.to_owned())
        .ok_or_else(|| "expected lower-case letters, digits and `-`, at most 63".into())
}

pub(crate) fn run(args: &Args, cx: &Context) -> anyhow::Result<Outcome> {
    let file = args.file.display().to_string();
    let text = fs::read_to_string(&args.file).with_context(|| format!("cannot read {file}"))?;
    let template = Template::parse(&file, &text).map_err(anyhow::Error::msg)?;
    let root = template.root();
    let origin = match args.from {
        Some(origin) => origin,
        None => told(&root).with_context(|| {
            format!("{file} is of no format that is known here, or of two; say which with --from")
        })?,
    };
    let mut imported = read(&root, origin, &args.tools.iter().cloned().collect());
    if let Some(name) = &args.name {
        imported.name.clone_from(name);
    }
    let refused = template.refusals();
    let documents = emit::documents(&imported);
    let written = !documents.is_empty() && (refused.is_empty() || args.partial);
    let head = head(&file, &template.notes(), &refused);
    let text = emit::text(&documents, args.namespace.as_deref(), &head)?;
    if let (Some(out), true) = (&args.out, written) {
        fs::write(out, &text).with_context(|| format!("cannot write {}", out.display()))?;
    }
    match cx.format {
        Format::Json => output::json(&json!({
            "from": origin_name(origin),
            "written": written.then_some(&args.out),
            "policies": if written { json!(documents) } else { json!([]) },
            "refused": refused,
            "notes": template.notes(),
        }))?,
        Format::Text => tell(args, &documents, &refused, &text, written)?,
    }
    Ok(if refused.is_empty() && written { Outcome::Done } else { Outcome::Failed })
}

fn read(root: &Field<'_>, origin: Origin, tools: &ToolNames) -> Imported {
    match origin {
        Origin::AgentOsTemplate => agent_os_template::read(root, tools),
        Origin::AgentOsDocument => listed::agent_os_document(root),
        Origin::AgentmeshGovernance => listed::agentmesh_governance(root),
        Origin::AgentmeshTrust => listed::agentmesh_trust(root),
        Origin::AgentmeshProxy => proxy::read(root),
    }
}

fn origin_name(origin: Origin) -> String {
    use clap::ValueEnum as _;
    origin.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// What a file is, by its fields; `None` where that is not plain. Two formats differ in nothing but
/// whether a higher or a lower priority comes first, so guessing is out of the question.
fn told(root: &Field<'_>) -> Option<Origin> {
    if root.has("kernel") || root.has("policies") && !root.has("rules") {
        return Some(Origin::AgentOsTemplate);
    }
    let rules = root.list("rules");
    let all = |test: &dyn Fn(&Field<'_>) -> bool| !rules.is_empty() && rules.iter().all(test);
    if all(&|rule| rule.has("tool")) {
        return Some(Origin::AgentmeshProxy);
    }
    if all(&|rule| rule.get("condition").is_some_and(|condition| condition.is_text())) {
        return Some(Origin::AgentmeshGovernance);
    }
    if !all(&|rule| rule.get("condition").is_some_and(|condition| condition.is_mapping())) {
        return None;
    }
    let defaults = root.get("defaults");
    let any = |keys: &[&str]| {
        keys.iter().any(|key| defaults.as_ref().is_some_and(|defaults| defaults.has(key)))
    };
    let document = any(&["action", "max_tokens", "max_tool_calls", "confidence_threshold"]);
    let trust = any(&[
        "min_trust_score",
        "max_delegation_depth",
        "allowed_namespaces",
        "require_handshake",
    ]);
    match (document, trust) {
        (true, false) => Some(Origin::AgentOsDocument),
        (false, true) => Some(Origin::AgentmeshTrust),
        _ => None,
    }
}

/// What is written above the policies.
fn head(file: &str, notes: &[String], refused: &[Refusal]) -> Vec<String> {
    let mut head = vec![format!("Written by `aegis import` from {file}.")];
    head.extend(notes.iter().cloned());
    if !refused.is_empty() {
        head.push(
            "Not enforced, and left out with what it narrows; a ban that is left out bans nothing:"
                .into(),
        );
        head.extend(refused.iter().map(|refusal| format!("  {refusal}")));
    }
    head
}

fn tell(
    args: &Args,
    documents: &[Document],
    refused: &[Refusal],
    policies: &str,
    written: bool,
) -> anyhow::Result<()> {
    let mut text = Text::new();
    for refusal in refused {
        text.toned(Tone::Bad, format!("refused  {refusal}"));
    }
    match (&args.out, written) {
        (None, true) => {
            // The policies alone are the output; what is said of them is for people.
            text.print_aside();
            return output::emit(policies);
        }
        (Some(out), true) => {
            let number = u64::try_from(documents.len()).unwrap_or(u64::MAX);
            let number =
                if number == 1 { "1 policy".to_owned() } else { format!("{number} policies") };
            text.toned(Tone::Good, format!("wrote {number} to {}", out.display()));
        }
        (_, false) if documents.is_empty() => {
            text.toned(Tone::Bad, "nothing in the file can be enforced, so nothing was written");
        }
        (_, false) => {
            let fields = count(u64::try_from(refused.len()).unwrap_or(u64::MAX), "field");
            text.toned(
                Tone::Bad,
                format!(
                    "{fields} cannot be enforced, so nothing was written; --partial writes the rest"
                ),
            );
        }
    }
    text.print()
}
