//! `aegis integrate git`: hooks that ask Aegis about what is committed, merged and pushed, and stop where it does not
//! permit.
//!
//! A hook that was there stays, and runs first: it may change what is committed, and that is what is judged. The hooks
//! stand where this git looks for them, also with `core.hooksPath` and in linked work trees, which share them.

use std::{
    env, fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::{Args, Scope, beside, quoted, text};
use crate::{
    Outcome,
    check::git::line_in,
    output::{Several, Text, Tone},
};

/// Where a hook is kept that was there before.
const KEPT: &str = ".before-aegis";
/// The line by which our own are recognised.
const MARK: &str =
    "# Written by `aegis integrate git`; `aegis integrate git --remove` takes it out again.";

/// One gate.
struct Gate {
    /// Git's name for it.
    hook: &'static str,
    /// What is asked.
    asks: &'static str,
    /// What does not happen without a permission.
    stops: &'static str,
    /// Whether git tells it something on standard input, which a kept hook must hear too.
    hears: bool,
}

const GATES: [Gate; 3] = [
    Gate { hook: "pre-commit", asks: "--staged", stops: "nothing is committed", hears: false },
    Gate {
        hook: "pre-merge-commit",
        asks: "--staged",
        stops: "the merge is not committed",
        hears: false,
    },
    Gate { hook: "pre-push", asks: "--push \"$1\"", stops: "nothing is pushed", hears: true },
];

/// What stands in a hook's place.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Ours(String),
    Foreign,
}

pub(super) fn run(args: &Args, control: &Path) -> anyhow::Result<Outcome> {
    if args.wrap_mcp || args.prompts || args.scope == Some(Scope::User) {
        bail!(
            "`aegis integrate git` is for the current repository: --scope user, --wrap-mcp and --prompts are for agents"
        );
    }
    let folder = hooks_folder()?;
    let own = text(&env::current_exe().context("cannot tell where `aegis` is")?)?;
    let socket = std::path::absolute(control.with_file_name("kernel.sock"))
        .context("cannot tell where the socket is")?;
    let command = command(args, &text(&socket)?);
    let script = |gate: &Gate| script(gate, &own, &command);
    if args.check {
        return check(&folder, script);
    }
    let mut told = Text::new();
    for gate in &GATES {
        let path = folder.join(gate.hook);
        match args.remove {
            true => remove(&path, &mut told)?,
            false => write(&path, &script(gate), &mut told)?,
        }
    }
    if !args.remove && line_in(None, &["config", "core.hooksPath"]).is_ok() {
        told.toned(
            Tone::Warn,
            format!(
                "core.hooksPath is set: every repository that uses {} has these gates now",
                folder.display()
            ),
        );
    }
    told.print()?;
    Ok(Outcome::Done)
}

/// Where git looks for the hooks of the current repository.
fn hooks_folder() -> anyhow::Result<PathBuf> {
    let top = line_in(None, &["rev-parse", "--show-toplevel"])?;
    let folder = top.join(line_in(Some(&top), &["rev-parse", "--git-path", "hooks"])?);
    if folder.ends_with(".husky/_") {
        bail!(
            "the hooks in {} are husky's, which writes them anew; add `aegis check --staged` to .husky/pre-commit and `aegis check --push \"$1\"` to .husky/pre-push",
            folder.display()
        );
    }
    Ok(folder)
}

/// The options of the question, with everything spelled out, so that the environment decides nothing.
fn command(args: &Args, socket: &str) -> String {
    let by_path = if args.by_path { " --by-path" } else { "" };
    let wait = if args.wait == 0 { String::new() } else { format!(" --wait {}", args.wait) };
    format!("--output text --server editor --kernel-socket {}{by_path}{wait}", quoted(socket))
}

fn script(gate: &Gate, program: &str, command: &str) -> String {
    let &Gate { asks, stops, hears, .. } = gate;
    let quoted = quoted(program);
    let (before, heard) = match hears {
        // To the last byte: a shell takes line ends off what it reads.
        true => ("told=$(cat; echo .)\ntold=${told%.}\n", "printf %s \"$told\" | "),
        false => ("", ""),
    };
    // In double quotes, four characters mean something to a shell.
    let shown: String = program
        .chars()
        .flat_map(|c| matches!(c, '"' | '$' | '`' | '\\').then_some('\\').into_iter().chain([c]))
        .collect();
    format!(
        r#"#!/bin/sh
{MARK}
{before}if [ -x "$0{KEPT}" ]; then
  {heard}"$0{KEPT}" "$@" || exit $?
fi
if [ ! -x {quoted} ]; then
  echo "aegis: {shown} is not there, and without it {stops}; install it again, or remove $0" >&2
  exit 1
fi
{heard}{quoted} check {asks} {command} || {{
  echo "aegis: {stops}" >&2
  exit 1
}}
"#
    )
}

fn found(path: &Path) -> anyhow::Result<Found> {
    match fs::symlink_metadata(path) {
        Ok(kind) if kind.is_file() => {}
        Ok(_) => return Ok(Found::Foreign),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) if text.lines().nth(1) == Some(MARK) => Found::Ours(text),
        _ => Found::Foreign,
    })
}

fn write(path: &Path, script: &str, told: &mut Text) -> anyhow::Result<()> {
    let (shown, kept) = (path.display(), beside(path, KEPT));
    match found(path)? {
        Found::Ours(text) if text == script && is_executable(path) => {
            told.line(format!("{shown} stays as it is"));
            return Ok(());
        }
        Found::Foreign => {
            // A second name first: at no moment is there neither the old hook nor the new one.
            fs::hard_link(path, &kept).with_context(|| {
                format!("cannot keep {shown} as {}; is one kept there already?", kept.display())
            })?;
            told.line(format!("the hook that was there is {}, and runs first", kept.display()));
        }
        Found::Ours(_) | Found::Nothing => {}
    }
    let unwritable = || format!("cannot write {shown}");
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(unwritable)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(unwritable)?;
    std::io::Write::write_all(&mut file, script.as_bytes()).with_context(unwritable)?;
    let mode = fs::Permissions::from_mode(0o755);
    file.as_file().set_permissions(mode).with_context(unwritable)?;
    file.persist(path).map_err(|error| error.error).with_context(unwritable)?;
    told.toned(Tone::Good, format!("wrote {shown}"));
    Ok(())
}

fn remove(path: &Path, told: &mut Text) -> anyhow::Result<()> {
    let (shown, kept) = (path.display(), beside(path, KEPT));
    if !matches!(found(path)?, Found::Ours(_)) {
        told.line(format!("{shown} stays as it is"));
        return Ok(());
    }
    let unwritable = || format!("cannot remove {shown}");
    if fs::symlink_metadata(&kept).is_ok() {
        fs::rename(&kept, path).with_context(unwritable)?;
        told.toned(Tone::Good, format!("{shown} is the hook that was there before"));
    } else {
        fs::remove_file(path).with_context(unwritable)?;
        told.toned(Tone::Good, format!("removed {shown}"));
    }
    Ok(())
}

fn check(folder: &Path, script: impl Fn(&Gate) -> String) -> anyhow::Result<Outcome> {
    let (mut problems, mut told) = (Vec::new(), Text::new());
    for gate in &GATES {
        let path = folder.join(gate.hook);
        let shown = path.display();
        match found(&path)? {
            Found::Nothing => problems.push(format!("{shown} is not there")),
            Found::Ours(text) if text == script(gate) && is_executable(&path) => {
                told.toned(Tone::Good, format!("{shown} is as it should be"));
            }
            Found::Ours(_) => {
                problems.push(format!("{shown} is not as `aegis integrate git` writes it"));
            }
            Found::Foreign => problems.push(format!("{shown} is another hook")),
        }
    }
    if !problems.is_empty() {
        let advice = "run `aegis integrate git` with the same options".into();
        return Err(Several { problems, advice }.into());
    }
    told.print()?;
    Ok(Outcome::Done)
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 == 0o111)
}
