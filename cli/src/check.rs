//! `aegis check`: judges files as the editor's saves are judged, for CI and for git's gates.
//!
//! Each file becomes the question that the editor asks about a save (`file.write` at a server, with the absolute path,
//! the content and a mode), read by the same parser. The daemon decides and records it; with `--policies` a kernel of
//! this process decides by a folder, without a daemon and without a record. There is no other way to a verdict.
//!
//! Nothing is passed over in silence: what cannot be judged (a binary or large file, a name that no policy can name, a
//! daemon that is away) is said, and the exit code is 2.

mod content;
mod files;
pub(crate) mod git;
mod local;
mod remote;
mod report;
mod sarif;

use std::{
    io,
    path::{Path, PathBuf},
};

use aegis_api::kernel::MAX_WAIT_SECS;
use aegis_core::TrustDomain;
use anyhow::Context as _;
use serde_json::{Map, Value};

use crate::{Outcome, mcp::daemon::Question, output::Wanted};
use content::{Content, Opaque};

/// The largest question that the daemon reads. Bytes.
const MAX_QUESTION: usize = 1 << 20;
/// The exit code where something could not be judged.
const UNJUDGED: i32 = 2;

/// Judge files as the editor's saves are judged: in CI, before commits, before pushes
///
/// The running daemon decides and records. With --policies a folder is enough: no daemon, no record, nobody asked.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis check --policies aegis.d src\n  aegis check --policies aegis.d --range origin/main..HEAD -o sarif >aegis.sarif\n  aegis check --staged\n\nExit codes: 0 all is allowed, 1 something is refused, 2 something could not be judged."
)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["paths", "staged", "range", "push"]))]
pub(crate) struct Args {
    /// Files, and folders with what is below them; of a git work tree, what git does not ignore
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// What would be committed: the index of git, and not the files on disk
    #[arg(long)]
    staged: bool,
    /// What each commit of a range brought, also where a later one took it away
    #[arg(long, value_name = "A..B")]
    range: Option<String>,
    /// What a push to this remote brings; git's pre-push hook says on standard input what is pushed
    #[arg(long, value_name = "REMOTE")]
    push: Option<String>,
    /// Decide by this folder of resources (YAML), without a daemon
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// Whose actions they are, where the folder has several AgentIdentities
    #[arg(long, value_name = "NAME", requires = "policies")]
    agent: Option<String>,
    /// The trust domain of the agents in the folder
    #[arg(long, env = "AEGIS_TRUST_DOMAIN", default_value = "aegis.local")]
    trust_domain: TrustDomain,
    /// The server that policies know the writes by
    #[arg(long, default_value = "editor", value_name = "NAME")]
    server: String,
    /// Judge what is binary or large by its path, size and digest alone
    #[arg(long)]
    by_path: bool,
    /// The daemon's kernel socket. Default: kernel.sock beside the control socket
    #[arg(long, env = "AEGIS_KERNEL_SOCKET", hide_env_values = true, value_name = "PATH")]
    kernel_socket: Option<PathBuf>,
    /// How long each file waits for a person's approval. Seconds
    #[arg(long, default_value_t = 0, value_name = "SECONDS", conflicts_with = "policies", value_parser = clap::value_parser!(u64).range(..=MAX_WAIT_SECS))]
    wait: u64,
}

/// One file, as it is or would be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Change {
    /// Its name below the root, as bytes: what is no text is said to be none.
    pub(crate) name: Vec<u8>,
    /// The commit that brings it.
    pub(crate) commit: Option<String>,
    /// Where its content is.
    pub(crate) source: Source,
}

/// Where a file's content is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// On disk.
    File(PathBuf),
    /// An object of git.
    Blob(String),
    /// The commit of a submodule.
    Submodule(String),
    /// The file goes.
    Deleted,
    /// It has several, of a merge that is not resolved.
    Unmerged,
}

/// What is to be judged.
#[derive(Debug)]
struct Work {
    root: PathBuf,
    mode: &'static str,
    changes: Vec<Change>,
}

/// What was decided about a file.
#[derive(Clone, Debug, Default)]
struct Said {
    allowed: bool,
    verdict: String,
    reason: String,
    message: String,
    rules: Vec<String>,
    decision_id: Option<String>,
    index: Option<u64>,
    approval: Option<String>,
}

/// What came of a file: what was decided, or why nothing could be.
#[derive(Debug)]
struct Judged {
    change: Change,
    said: Result<Said, String>,
    /// Why it was judged by its path alone.
    note: Option<&'static str>,
}

/// Who decides.
enum Judge {
    Local(Box<local::Local>),
    Remote(remote::Remote),
}

/// Judges, prints, and says by the exit code how it came out. Every failure is one to judge.
pub(crate) async fn run(args: Args, format: Wanted, control: &Path) -> Outcome {
    match check(&args, format, control).await {
        Ok(outcome) => outcome,
        Err(error) => {
            crate::complain(&error);
            Outcome::Exit(UNJUDGED)
        }
    }
}

async fn check(args: &Args, format: Wanted, control: &Path) -> anyhow::Result<Outcome> {
    let Work { root, mode, changes } = work(args)?;
    let mut judged = Vec::new();
    if !changes.is_empty() {
        let mut judge = match &args.policies {
            Some(folder) => {
                let local = local::Local::open(folder, args).await?;
                Judge::Local(Box::new(local))
            }
            None => Judge::Remote(remote::Remote::new(args, control)),
        };
        let mut blobs = None;
        for change in changes {
            let (said, note) = match question(args, &root, mode, &change, &mut blobs)? {
                Ok((asked, note)) => (judge.judge(&asked, &args.server).await?, note),
                Err(why) => (Err(why), None),
            };
            judged.push(Judged { change, said, note });
        }
    }
    let code = code(&judged);
    match format {
        Wanted::Text => report::text(&judged).print()?,
        Wanted::Json => crate::output::json(&report::json(&judged, code))?,
        Wanted::Sarif => crate::output::json(&sarif::log(&root, &judged, code))?,
    }
    Ok(Outcome::Exit(code))
}

/// What could not be judged weighs more than what is refused.
fn code(judged: &[Judged]) -> i32 {
    if judged.iter().any(|one| one.said.is_err()) {
        UNJUDGED
    } else {
        i32::from(!judged.iter().all(|one| one.said.as_ref().is_ok_and(|said| said.allowed)))
    }
}

fn work(args: &Args) -> anyhow::Result<Work> {
    if !args.paths.is_empty() {
        let root = std::env::current_dir().context("cannot tell the current folder")?;
        return Ok(Work { changes: files::below(&root, &args.paths)?, root, mode: "check" });
    }
    let root = git::work_tree()?;
    let (mode, changes) = if args.staged {
        ("commit", git::staged()?)
    } else if let Some(range) = &args.range {
        ("check", git::range(range)?)
    } else {
        let remote = args.push.as_deref().unwrap_or_default();
        ("push", git::pushed(remote, io::stdin().lock())?)
    };
    Ok(Work { root, mode, changes })
}

/// What is asked about a file, and why by its path alone; or why nothing can be asked.
type Asked = Result<(Question, Option<&'static str>), String>;

/// # Errors
/// When git does not give the content: then nothing is known of any file.
fn question(
    args: &Args,
    root: &Path,
    mode: &'static str,
    change: &Change,
    blobs: &mut Option<git::Blobs>,
) -> anyhow::Result<Asked> {
    let path = match path_of(root, &change.name) {
        Ok(path) => path,
        Err(why) => return Ok(Err(why.into())),
    };
    let mut arguments = Map::new();
    arguments.insert("path".into(), path.as_str().into());
    let content = match &change.source {
        Source::Unmerged => return Ok(Err("it has a conflict that is not resolved".into())),
        Source::Deleted => {
            arguments.insert("deleted".into(), true.into());
            None
        }
        // As git shows it.
        Source::Submodule(commit) => Some(Content::Text(format!("Subproject commit {commit}\n"))),
        Source::Blob(id) => {
            let reading = match blobs {
                Some(reading) => reading,
                None => blobs.insert(git::Blobs::open()?),
            };
            Some(reading.read(id)?)
        }
        Source::File(path) => match content::of_file(path) {
            Ok(content) => Some(content),
            Err(error) => return Ok(Err(format!("it cannot be read: {error}"))),
        },
    };
    arguments.insert("mode".into(), mode.into());
    let opaque = match content {
        None => None,
        Some(Content::Opaque(opaque)) => Some(opaque),
        Some(Content::Text(text)) => {
            let opaque = || Opaque::large(text.as_bytes());
            let mut whole = arguments.clone();
            whole.insert("content".into(), text.as_str().into());
            let question = asked(&path, whole);
            if crate::mcp::daemon::body(&args.server, &question, Value::Null).len() <= MAX_QUESTION
            {
                return Ok(Ok((question, None)));
            }
            Some(opaque())
        }
    };
    let Some(opaque) = opaque else { return Ok(Ok((asked(&path, arguments), None))) };
    if !args.by_path {
        let why = opaque.why;
        return Ok(Err(format!("{why}; --by-path judges it by its path, size and digest alone")));
    }
    arguments.insert("unread".into(), opaque.word.into());
    arguments.insert("size".into(), opaque.size.into());
    arguments.insert("digest".into(), opaque.digest.into());
    Ok(Ok((asked(&path, arguments), Some(opaque.why))))
}

fn asked(path: &str, arguments: Map<String, Value>) -> Question {
    Question { method: "file.write", on: "file", id: path.into(), arguments }
}

/// The absolute path by which policies know a file.
fn path_of(root: &Path, name: &[u8]) -> Result<String, &'static str> {
    let name = std::str::from_utf8(name)
        .map_err(|_| "its name is not UTF-8, and no policy can name it; rename it")?;
    if name.chars().any(char::is_control) {
        return Err("its name has control characters, and no policy can name it; rename it");
    }
    let whole = root.join(name);
    whole.into_os_string().into_string().map_err(|_| "the path of its folder is not UTF-8")
}

impl Judge {
    /// # Errors
    /// When nothing can be decided at all.
    async fn judge(
        &mut self,
        question: &Question,
        server: &str,
    ) -> anyhow::Result<Result<Said, String>> {
        match self {
            Self::Local(local) => {
                let body = crate::mcp::daemon::body(server, question, Value::Object(Map::new()));
                Ok(local.judge(&body).map_err(|error| error.to_string()))
            }
            Self::Remote(remote) => Ok(Ok(remote.judge(question).await?)),
        }
    }
}
