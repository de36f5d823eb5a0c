//! Running a command: the program and its words as they were judged, no shell in between, in a folder of the
//! workspace, with an environment that holds nobody's secrets, and with an end.
//!
//! It is the leader of a process group, and the group ends with it: when its time is up, when the client no longer
//! wants the answer, when the daemon says that the agent is stopped, and when this process ends in order. A process that
//! leaves its group is not found, and `kill -9` of this process leaves the group alone.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};

/// The most that is kept of each of its two outputs. Bytes.
pub(super) const MAX_OUTPUT: usize = 128 << 10;
/// How long a command may run unless told otherwise, and at most. Seconds.
pub(super) const TIMEOUT: u64 = 60;
/// The longest that a command may ask for. Seconds.
pub(super) const MAX_TIMEOUT: u64 = 1_800;
/// How long what has been written is still read after the command has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What a command is told of this process' environment.
const KEPT: [&str; 9] =
    ["HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"];

/// Why a command does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// No such program.
    #[error("there is no program of this name on the PATH")]
    Unknown,
    /// It cannot be started.
    #[error("the program cannot be started: {0}")]
    Start(std::io::Error),
}

/// What is run.
#[derive(Debug)]
pub(super) struct Run {
    /// The program's file.
    pub(super) program: PathBuf,
    /// The command's words; the first is the program as it was named.
    pub(super) words: Vec<String>,
    /// Leads to the folder that was judged.
    pub(super) folder: String,
    /// Where that folder is.
    pub(super) at: String,
    /// How long it may take.
    pub(super) timeout: Duration,
}

/// Why a command ended before it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Its time was up.
    Timeout,
    /// The client does not want its answer any more.
    Cancelled,
    /// The agent is stopped.
    Stopped,
    /// The daemon has not been heard of.
    Ungoverned,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Ran {
    /// The exit code; `None` where a signal ended it.
    pub(super) code: Option<i32>,
    /// Why it was ended.
    pub(super) cut: Option<Cut>,
    /// Standard output.
    pub(super) stdout: Output,
    /// Standard error.
    pub(super) stderr: Output,
}

/// What a command wrote.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// The first of it.
    pub(super) kept: Vec<u8>,
    /// How many bytes more there were.
    pub(super) dropped: usize,
}

/// The environment of commands: what is harmless of one's own, and what is named by whoever configured it.
#[derive(Clone, Debug)]
pub(super) struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Out of one's own.
    pub(super) fn new(more: &[String]) -> Self {
        let names = KEPT.into_iter().chain(more.iter().map(String::as_str));
        let mut kept: BTreeMap<OsString, OsString> =
            names.filter_map(|name| Some((name.into(), env::var_os(name)?))).collect();
        kept.entry("PATH".into()).or_insert_with(|| "/usr/local/bin:/usr/bin:/bin".into());
        kept.insert("TERM".into(), "dumb".into());
        Self(kept)
    }

    /// The file of a program that is named without a slash.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf, CommandError> {
        let path = self.0.get(&OsString::from("PATH")).cloned().unwrap_or_default();
        // A relative folder would be the agent's to fill.
        let mut folders = env::split_paths(&path).filter(|folder| folder.is_absolute());
        folders
            .find_map(|folder| Some(folder.join(name)).filter(|file| is_program(file)))
            .ok_or(CommandError::Unknown)
    }
}

/// Whether a file can be run.
pub(super) fn is_program(file: &Path) -> bool {
    let metadata = std::fs::metadata(file);
    metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The words as one line, as a POSIX shell would read them: what policies look at.
pub(super) fn line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%,:=".contains(c);
    let quoted = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// A process group, which ends with this.
struct Group(Option<Pid>);

impl Group {
    fn end(&mut self) {
        if let Some(group) = self.0.take() {
            let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a command until it ends, its time is up, or `cut` says that it must.
pub(super) async fn run(
    run: &Run,
    environment: &Environment,
    cut: impl Future<Output = Cut>,
) -> Result<Ran, CommandError> {
    let mut command = Command::new(&run.program);
    command
        .env_clear()
        .envs(&environment.0)
        .env("PWD", &run.at)
        .current_dir(&run.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some((name, words)) = run.words.split_first() {
        command.arg0(name).args(words);
    }
    let mut child = command.spawn().map_err(CommandError::Start)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let mut group = Group(pid);
    let (stdout, stderr) = (Reading::of(child.stdout.take()), Reading::of(child.stderr.take()));
    let (status, cut) = tokio::select! {
        status = child.wait() => (Some(status), None),
        () = tokio::time::sleep(run.timeout) => (None, Some(Cut::Timeout)),
        cut = cut => (None, Some(cut)),
    };
    // Also what it has left behind: nobody would be there to end it.
    group.end();
    let status = match status {
        Some(status) => status,
        None => child.wait().await,
    };
    let code = status.ok().and_then(|status| status.code());
    Ok(Ran { code, cut, stdout: stdout.last().await, stderr: stderr.last().await })
}

/// Output that is being read.
struct Reading {
    read: Arc<Mutex<Output>>,
    task: tokio::task::JoinHandle<()>,
}

impl Reading {
    /// Reads all of it, so that nobody is held up, and keeps the first of it.
    fn of(from: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let read = Arc::new(Mutex::new(Output::default()));
        let into = Arc::clone(&read);
        let task = tokio::spawn(async move {
            let Some(mut from) = from else { return };
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer).await {
                let mut output = into.lock();
                let room = MAX_OUTPUT.saturating_sub(output.kept.len());
                let kept = buffer.get(..count.min(room)).unwrap_or_default();
                output.kept.extend_from_slice(kept);
                output.dropped += count - kept.len();
            }
        });
        Self { read, task }
    }

    /// What was read once nobody writes any more, or nobody should.
    async fn last(mut self) -> Output {
        if tokio::time::timeout(LAST_WORDS, &mut self.task).await.is_err() {
            self.task.abort();
        }
        std::mem::take(&mut *self.read.lock())
    }
}

impl Output {
    /// As text; what is none is replaced.
    pub(super) fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.kept).into_owned();
        if self.dropped > 0 {
            text.push_str(&format!("\n[{} bytes more]", self.dropped));
        }
        text
    }
}

#[cfg(test)]
mod tests;
