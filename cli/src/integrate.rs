//! `aegis integrate`: a coding agent's own configuration, so that it asks Aegis before it acts; and the hooks of a git
//! repository, so that nothing is committed or pushed without having been asked about.
//!
//! What others have written there stays as it is, byte by byte; a file that is not understood is not touched.
//! A changed file is replaced as a whole, and what it was before stands beside it.

mod edit;
mod git;
mod hooks;
mod servers;

use std::{
    env, fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use aegis_api::kernel::MAX_WAIT_SECS;
use aegis_protocol::{
    hooks::Agent,
    json::{self, Limits},
};
use anyhow::{Context as _, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use serde_json::Value;

use crate::{
    Outcome,
    output::{Several, Text, Tone},
};

/// Make a coding agent, or a git repository, ask Aegis before something happens; check that it does, or undo it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis integrate claude-code\n  aegis integrate codex --check\n  aegis integrate gemini --scope project --wrap-mcp\n  aegis integrate git"
)]
pub(crate) struct Args {
    /// The agent; or `git`, for the current repository's commits and pushes
    #[arg(value_parser = targets())]
    target: Target,
    /// Change nothing; fail unless the configuration is as it would be written
    #[arg(long, conflicts_with = "remove")]
    check: bool,
    /// Take out what this command has put in
    #[arg(long)]
    remove: bool,
    /// Whose configuration: the user's, which is the default, or that of the current folder. Git's is the repository's
    #[arg(long, value_enum)]
    scope: Option<Scope>,
    /// Put the agent's stdio MCP servers behind `aegis wrap`, too
    #[arg(long)]
    wrap_mcp: bool,
    /// Ask about the user's prompts, too
    #[arg(long)]
    prompts: bool,
    /// Of git: judge what is binary or large by its path, size and digest alone
    #[arg(long)]
    by_path: bool,
    /// How long an action waits for a person's approval. Seconds
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=MAX_WAIT_SECS))]
    wait: u64,
}

/// What is to ask Aegis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Agent(Agent),
    Git,
}

/// The name under which git is one.
const GIT: &str = "git";

fn targets() -> impl clap::builder::TypedValueParser<Value = Target> {
    let names = Agent::ALL.map(Agent::as_str).into_iter().chain([GIT]);
    PossibleValuesParser::new(names).try_map(|name| match Agent::named(&name) {
        Some(agent) => Ok(Target::Agent(agent)),
        None if name == GIT => Ok(Target::Git),
        None => Err("there is no such agent"),
    })
}

/// What is wished of an agent's configuration.
struct Wish {
    agent: Agent,
    check: bool,
    remove: bool,
    scope: Scope,
    wrap_mcp: bool,
    prompts: bool,
    wait: u64,
}

/// Whose configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scope {
    /// The user's, for every folder
    User,
    /// The current folder's
    Project,
}

/// A file and what is to become of it; `None` is no file.
struct Change {
    path: PathBuf,
    before: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
}

pub(crate) fn run(args: &Args, control: &Path) -> anyhow::Result<Outcome> {
    let &Args { check, remove, wrap_mcp, prompts, wait, .. } = args;
    match args.target {
        Target::Git => git::run(args, control),
        Target::Agent(_) if args.by_path => bail!("--by-path is an option of `git` alone"),
        Target::Agent(agent) => {
            let scope = args.scope.unwrap_or(Scope::User);
            integrate(&Wish { agent, check, remove, scope, wrap_mcp, prompts, wait }, control)
        }
    }
}

fn integrate(args: &Wish, control: &Path) -> anyhow::Result<Outcome> {
    let home = env::var_os("HOME").filter(|home| !home.is_empty());
    let home = PathBuf::from(home.context("HOME is not set, so there is no user's configuration")?);
    let project = env::current_dir().context("cannot tell the current folder")?;
    let control = std::path::absolute(control).context("cannot tell where the socket is")?;
    let own = env::current_exe().context("cannot tell where `aegis` is")?;
    let hook_file = hooks::file(args.agent, args.scope, &home, &project)?;
    let mut changes = vec![hook_change(args, hook_file, &command(args, &own, &control)?)?];
    if args.wrap_mcp {
        let Some((path, member)) = servers::file(args.agent, args.scope, &home, &project) else {
            bail!(
                "{} has no MCP servers of this scope; use the other --scope",
                args.agent.as_str()
            );
        };
        let wrapper = servers::Wrapper { program: text(&own)?, socket: text(&control)? };
        // Both may stand in one file.
        let earlier = changes.iter_mut().find(|change| change.path == path);
        let wrapper = (!args.remove).then_some(&wrapper);
        match earlier {
            Some(change) => change.after = wrapped(&path, change.after.take(), member, wrapper)?,
            None => {
                let before = read(&path)?;
                let after = wrapped(&path, before.clone(), member, wrapper)?;
                changes.push(Change { path, before, after });
            }
        }
    }
    if args.check { check(args, &changes) } else { write_all(args, &changes) }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let text =
        path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))?;
    anyhow::ensure!(
        !text.chars().any(char::is_control),
        "the path {} has control characters; use another folder",
        path.display()
    );
    Ok(text.to_owned())
}

/// What the agent runs: the small program where it stands beside `aegis`, with everything spelled out, so
/// that the agent's environment decides nothing. Agents go on after any exit code but 2, so a program that is
/// gone or killed has it too.
fn command(args: &Wish, own: &Path, control: &Path) -> anyhow::Result<String> {
    let small = own.with_file_name("aegis-hook");
    let program = if small.is_file() {
        quoted(&text(&small)?)
    } else {
        format!("{} hook", quoted(&text(own)?))
    };
    let socket = quoted(&text(&control.with_file_name("kernel.sock"))?);
    let wait = if args.wait == 0 { String::new() } else { format!(" --wait {}", args.wait) };
    let agent = args.agent.as_str();
    Ok(format!("{program} --agent {agent} --kernel-socket {socket}{wait} || exit 2"))
}

/// One word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%,:=".contains(c);
    if word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn hook_change(args: &Wish, path: PathBuf, command: &str) -> anyhow::Result<Change> {
    let agent = args.agent;
    let before = read(&path)?;
    let base = hooks::base(agent);
    let Some(text) = before.clone().or_else(|| (!args.remove).then(|| b"{}\n".to_vec())) else {
        return Ok(Change { path, before: None, after: None });
    };
    parsed(&path, &text)?;
    let entries = hooks::entries(agent, command, args.wait, args.prompts)?;
    let after = if args.remove {
        without(&path, agent, text)?
    } else {
        with(&path, agent, text, &entries)?
    };
    let left = parsed(&path, &after)?;
    let nothing = left == base || left.as_object().is_some_and(serde_json::Map::is_empty);
    let empty = args.remove && nothing;
    Ok(Change { path, before, after: (!empty).then_some(after) })
}

/// The file with exactly these entries of Aegis.
fn with(
    path: &Path,
    agent: Agent,
    text: Vec<u8>,
    entries: &[hooks::Entry],
) -> anyhow::Result<Vec<u8>> {
    let odd = |what: &str| {
        format!(
            "{} has something else than a list of hooks at `{what}`; nothing was written",
            path.display()
        )
    };
    let value = parsed(path, &text)?;
    let wanted = |list: [&'static str; 2]| -> Vec<&Value> {
        entries.iter().filter(|entry| entry.path == list).map(|entry| &entry.item).collect()
    };
    let found = |list: [&str; 2]| -> Vec<&Value> {
        let items = value.pointer(&format!("/{}", list.join("/"))).and_then(Value::as_array);
        items
            .map(|items| items.iter().filter(|item| hooks::is_ours(item)).collect())
            .unwrap_or_default()
    };
    if hooks::lists(agent).into_iter().all(|list| found(list) == wanted(list)) {
        return Ok(text);
    }
    let mut text = without(path, agent, text)?;
    if let Value::Object(base) = hooks::base(agent) {
        for (name, value) in base {
            text = edit::with_member(&text, &name, &value).with_context(|| odd(&name))?;
        }
    }
    for entry in entries {
        let at = entry.path.join(".");
        text = edit::append(&text, &entry.path, &entry.item).with_context(|| odd(&at))?;
    }
    Ok(text)
}

/// The file without entries of Aegis.
fn without(path: &Path, agent: Agent, mut text: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    for list in hooks::lists(agent) {
        let value = parsed(path, &text)?;
        if value.pointer(&format!("/{}", list.join("/"))).is_none() {
            continue;
        }
        text = edit::remove(&text, &list, hooks::is_ours).with_context(|| {
            format!(
                "{} has something else than a list of hooks at `{}`; nothing was written",
                path.display(),
                list.join(".")
            )
        })?;
    }
    Ok(text)
}

fn wrapped(
    path: &Path,
    before: Option<Vec<u8>>,
    member: &str,
    wrapper: Option<&servers::Wrapper>,
) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(bytes) = before else { return Ok(None) };
    let what = || format!("{} is not understood, and nothing was written", path.display());
    if path.extension().is_some_and(|extension| extension == "toml") {
        let text = String::from_utf8(bytes).with_context(what)?;
        return Ok(Some(servers::in_toml(&text, member, wrapper).with_context(what)?.into_bytes()));
    }
    parsed(path, &bytes)?;
    Ok(Some(servers::in_json(&bytes, member, wrapper).with_context(what)?))
}

fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The file as JSON: strictly, since another parser may read what this one does not.
fn parsed(path: &Path, bytes: &[u8]) -> anyhow::Result<Value> {
    let value = json::parse(bytes, Limits::default()).with_context(|| {
        format!("{} is not plain JSON, and nothing was written; take out comments and trailing commas, or add the hook by hand", path.display())
    })?;
    anyhow::ensure!(
        value.is_object(),
        "{} holds no JSON object, and nothing was written",
        path.display()
    );
    Ok(value)
}

fn check(args: &Wish, changes: &[Change]) -> anyhow::Result<Outcome> {
    let mut problems = Vec::new();
    for change in changes {
        let shown = change.path.display();
        match &change.before {
            None if change.after.is_some() => problems.push(format!("{shown} is not there")),
            before if *before != change.after => {
                problems.push(format!("{shown} is not as `aegis integrate` writes it"));
            }
            _ => {}
        }
        if let Some(Ok(settings)) = change.before.as_ref().map(|bytes| parsed(&change.path, bytes))
            && let Some(why) = hooks::switched_off(args.agent, &settings)
        {
            problems.push(format!("{shown}: {why}"));
        }
    }
    if !problems.is_empty() {
        let advice = format!("run `aegis integrate {}` with the same options", args.agent.as_str());
        return Err(Several { problems, advice }.into());
    }
    let mut text = Text::new();
    for change in changes.iter().filter(|change| change.before.is_some()) {
        text.toned(Tone::Good, format!("{} is as it should be", change.path.display()));
    }
    text.print()?;
    Ok(Outcome::Done)
}

fn write_all(args: &Wish, changes: &[Change]) -> anyhow::Result<Outcome> {
    let mut text = Text::new();
    for change in changes {
        let shown = change.path.display();
        if change.before == change.after {
            text.line(format!("{shown} stays as it is"));
            continue;
        }
        if let Some(before) = &change.before {
            let backup = keep(&change.path, before)?;
            text.line(format!("what was there is in {}", backup.display()));
        }
        match &change.after {
            Some(after) => {
                // A link stays a link.
                let path = fs::canonicalize(&change.path).unwrap_or_else(|_| change.path.clone());
                replace(&path, after, &change.path)?;
                text.toned(Tone::Good, format!("wrote {shown}"));
            }
            None => {
                fs::remove_file(&change.path).with_context(|| format!("cannot remove {shown}"))?;
                text.toned(Tone::Good, format!("removed {shown}"));
            }
        }
    }
    if !args.remove && args.agent == Agent::Codex {
        text.line("Codex asks to trust a new hook: run `codex`, then `/hooks`.");
    }
    text.print()?;
    Ok(Outcome::Done)
}

fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(more);
    path.with_file_name(name)
}

/// Keeps what was there beside it. A link in that place is replaced and not followed: a repository may bring one
/// that leads to a file of its user's.
fn keep(path: &Path, before: &[u8]) -> anyhow::Result<PathBuf> {
    let backup = beside(path, ".before-aegis");
    replace(&backup, before, path)?;
    Ok(backup)
}

/// Writes a file as a whole, with the permissions of `like`, or for its owner alone. What is in its place is
/// replaced, a link too.
fn replace(path: &Path, bytes: &[u8], like: &Path) -> anyhow::Result<()> {
    let unwritable = || format!("cannot write {}", path.display());
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(unwritable)?;
    let mode = fs::metadata(like).map_or(0o600, |metadata| metadata.permissions().mode());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(unwritable)?;
    file.write_all(bytes).with_context(unwritable)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).with_context(unwritable)?;
    file.as_file().sync_all().with_context(unwritable)?;
    file.persist(path).map_err(|error| error.error).with_context(unwritable)?;
    Ok(())
}

#[cfg(test)]
mod tests;
